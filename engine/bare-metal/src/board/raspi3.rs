//! Raspberry Pi 3 and Zero 2 W (BCM2837): memory, then devices, in 1 GiB.

use super::{Map, device, memory};

pub(crate) const NAME: &str = "raspi3";
/// The PL011, and what drives it, in Hz.
pub(crate) const SERIAL: usize = 0x3f20_1000;
pub(crate) const SERIAL_CLOCK: u32 = 48_000_000;

/// 30 bits begin at level 2: blocks of 2 MiB.
pub(crate) const VA_BITS: u64 = 30;
pub(crate) static MAP: Map<512> = Map(map());

const fn map() -> [u64; 512] {
    let mut map = [0; 512];
    let mut i = 0;
    while i < map.len() {
        let address = (i as u64) << 21;
        map[i] = if address < 0x3f00_0000 {
            memory(address)
        } else {
            device(address)
        };
        i += 1;
    }
    map
}

/// Function select 1 of the GPIO pins.
const GPFSEL1: usize = 0x3f20_0004;

/// Leads the PL011 to pins 14 and 15 (function ALT0), where Bluetooth would have it.
pub(crate) fn connect_serial() {
    let register = GPFSEL1 as *mut u32;
    // SAFETY: the address is that of a register that the map holds as a device's, and this core
    // is the only one that runs.
    unsafe {
        let others = register.read_volatile() & !(0b111_111 << 12);
        register.write_volatile(others | 0b100_100 << 12);
    }
}
