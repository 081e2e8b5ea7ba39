//! The serial port: an Arm PL011, written to one byte at a time.

use core::fmt;

use crate::board::{SERIAL, SERIAL_CLOCK, connect_serial};

const BAUD: u32 = 115_200;

// Registers, by their distance from the port's address (Arm DDI 0183).
const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const BAUD_WHOLE: usize = 0x24;
const BAUD_FRACTION: usize = 0x28;
const LINE: usize = 0x2c;
const CONTROL: usize = 0x30;
const INTERRUPT_CLEAR: usize = 0x44;

/// A flag: no room for another byte.
const TRANSMIT_FULL: u32 = 1 << 5;
/// A flag: bytes are still on their way.
const BUSY: u32 = 1 << 3;

/// Readies the port: 115200 baud, 8 bits, no parity.
pub(crate) fn start() {
    connect_serial();
    write(CONTROL, 0);
    write(INTERRUPT_CLEAR, 0x7ff);
    // The divisor clock / (16 * baud) in 64ths, rounded.
    let divisor = (8 * SERIAL_CLOCK / BAUD + 1) / 2;
    write(BAUD_WHOLE, divisor >> 6);
    write(BAUD_FRACTION, divisor & 0x3f);
    write(LINE, 0b11 << 5 | 1 << 4); // 8 bits, queue on
    write(CONTROL, 1 << 9 | 1 << 8 | 1); // receive, transmit, port on
}

/// Waits until everything that was written has left the port.
pub(crate) fn flush() {
    while read(FLAGS) & BUSY != 0 {}
}

fn read(register: usize) -> u32 {
    // SAFETY: a register of the port, which the map holds as a device's; reading has no effect on
    // memory.
    unsafe { ((SERIAL + register) as *const u32).read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: a register of the port, which the map holds as a device's; writing has no effect on
    // memory.
    unsafe { ((SERIAL + register) as *mut u32).write_volatile(value) }
}

/// What `print` writes to.
pub(crate) struct Port;

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while read(FLAGS) & TRANSMIT_FULL != 0 {}
            write(DATA, u32::from(byte));
        }
        Ok(())
    }
}

macro_rules! print {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // The port never refuses.
        let _ = write!($crate::serial::Port, $($arg)*);
    }};
}
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::serial::Port, $($arg)*);
    }};
}
pub(crate) use {print, println};
