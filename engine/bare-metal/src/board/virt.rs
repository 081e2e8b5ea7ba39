//! QEMU's `-M virt`: devices in the first GiB, memory from there on.

use super::{Map, device, memory};

pub(crate) const NAME: &str = "virt";
/// The PL011, and what drives it, in Hz.
pub(crate) const SERIAL: usize = 0x0900_0000;
pub(crate) const SERIAL_CLOCK: u32 = 24_000_000;

/// 31 bits begin at level 1: blocks of 1 GiB.
pub(crate) const VA_BITS: u64 = 31;
pub(crate) static MAP: Map<2> = Map([device(0), memory(1 << 30)]);

pub(crate) fn connect_serial() {}
