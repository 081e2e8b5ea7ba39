//! The CPU: what it can do, and how to stop it.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use tandem_engine::Level;

use crate::serial;

/// The best instructions that this CPU has, by its identification registers (Arm ARM, D19.2).
pub(crate) fn level() -> Level {
    let (isar0, isar1): (u64, u64);
    // SAFETY: at EL1 these registers may be read, without any effect.
    unsafe {
        asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nomem, nostack));
        asm!("mrs {}, id_aa64isar1_el1", out(reg) isar1, options(nomem, nostack));
    }
    let has_dot_products = (isar0 >> 44) & 0xf != 0;
    let has_matrix_products = (isar1 >> 52) & 0xf != 0;
    let name = match (has_dot_products, has_matrix_products) {
        (true, true) => "i8mm",
        (true, false) => "dotprod",
        // Advanced SIMD is part of the target, and `boot` has turned it on.
        _ => "neon",
    };
    // SAFETY: the registers say so.
    unsafe { Level::assume(name) }.unwrap_or(Level::Scalar)
}

static EXITING: AtomicBool = AtomicBool::new(false);

/// Ends the emulator with this status by Arm semihosting (`SYS_EXIT`); on a machine that nobody
/// watches, stops.
pub(crate) fn exit(status: u64) -> ! {
    serial::flush();
    if !EXITING.swap(true, Ordering::Relaxed) {
        // Application exit, status.
        let reason: [u64; 2] = [0x20026, status];
        // SAFETY: either the emulator ends, or the instruction is undefined and the exception
        // leads back here.
        unsafe { asm!("hlt #0xf000", in("x0") 0x18, in("x1") reason.as_ptr()) };
    }
    park()
}

fn park() -> ! {
    loop {
        // SAFETY: it waits.
        unsafe { asm!("wfe", options(nomem, nostack)) };
    }
}
