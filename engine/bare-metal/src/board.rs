//! What differs between machines: the map of memory, and how the serial port is connected.

#[cfg(all(feature = "virt", not(feature = "raspi3")))]
mod virt;
#[cfg(all(feature = "virt", not(feature = "raspi3")))]
pub(crate) use virt::{MAP, NAME, SERIAL, SERIAL_CLOCK, VA_BITS, connect_serial};

#[cfg(all(feature = "raspi3", not(feature = "virt")))]
mod raspi3;
#[cfg(all(feature = "raspi3", not(feature = "virt")))]
pub(crate) use raspi3::{MAP, NAME, SERIAL, SERIAL_CLOCK, VA_BITS, connect_serial};

#[cfg(not(any(feature = "virt", feature = "raspi3")))]
compile_error!("choose a machine: --features virt or --features raspi3");
#[cfg(all(feature = "virt", feature = "raspi3"))]
compile_error!("an image is for one machine: --features virt or --features raspi3");

/// A translation table (Arm ARM, D8.3) of blocks that stay where they are. Which level it is of
/// follows from the number of its address bits.
#[repr(C, align(4096))]
pub(crate) struct Map<const N: usize>(pub(crate) [u64; N]);

const BLOCK: u64 = 0b01;
const ACCESSED: u64 = 1 << 10;

/// Ordinary memory, cached, inner shareable: attributes 1 of `MAIR_EL1`. Unaligned access is
/// allowed in such memory only.
pub(crate) const fn memory(address: u64) -> u64 {
    address | ACCESSED | 0b11 << 8 | 1 << 2 | BLOCK
}

/// Registers of devices, never executed: attributes 0 of `MAIR_EL1`.
pub(crate) const fn device(address: u64) -> u64 {
    address | 1 << 54 | 1 << 53 | ACCESSED | BLOCK
}
