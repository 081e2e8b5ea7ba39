//! From the first instruction to `main`, and what happens on an exception.
//!
//! The image begins with the header of 64-bit Arm Linux kernels (Linux's `booting.rst`), so boot
//! loaders, the Raspberry Pi's firmware and QEMU know where to put it. They enter it at EL2 or EL1
//! with the MMU off. Until that is on, all memory is treated as a device's: nothing is cached, and
//! unaligned access is an exception. So everything up to there is assembly.

use core::arch::global_asm;

use crate::board::{MAP, VA_BITS};
use crate::cpu;
use crate::serial::println;

global_asm!(
    r#"
    .section .text.boot, "ax"
    .global _start
_start:
    b       1f
    .long   0
    .quad   0x80000             // from the beginning of memory
    .quad   IMAGE_BYTES         // zeros and stack included
    .quad   0b0010              // little-endian, pages of 4 KiB
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    // One core is enough.
1:  mrs     x0, mpidr_el1
    and     x0, x0, #0xff
    cbnz    x0, park

    mrs     x0, CurrentEL
    cmp     x0, #(1 << 2)
    b.eq    el1
    cmp     x0, #(2 << 2)
    b.ne    park

    // From EL2 to EL1: that is AArch64, its vectors do not trap, interrupts are off.
    mov     x0, #(1 << 31)
    msr     hcr_el2, x0
    mov     x0, #0x33ff
    msr     cptr_el2, x0
    msr     hstr_el2, xzr
    mov     x0, #0x3c5
    msr     spsr_el2, x0
    adr     x0, el1
    msr     elr_el2, x0
    ldr     x0, ={sctlr_off}
    msr     sctlr_el1, x0
    eret

    // Floats and vectors on (CPACR_EL1.FPEN).
el1:
    mov     x0, #(0b11 << 20)
    msr     cpacr_el1, x0
    ldr     x0, =vectors
    msr     vbar_el1, x0
    isb

    // Memory where it is, cached.
    ldr     x0, ={mair}
    msr     mair_el1, x0
    ldr     x0, ={tcr}
    msr     tcr_el1, x0
    ldr     x0, ={map}
    msr     ttbr0_el1, x0
    dsb     sy
    tlbi    vmalle1
    ic      iallu
    dsb     sy
    isb
    ldr     x0, ={sctlr_on}
    msr     sctlr_el1, x0
    isb

    ldr     x0, =__zeros_start
    ldr     x1, =__zeros_end
2:  cmp     x0, x1
    b.hs    3f
    stp     xzr, xzr, [x0], #16
    b       2b

3:  ldr     x0, =__stack_top
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    b       {main}

park:
    wfe
    b       park

    .ltorg

    // All sixteen vectors are alike: none is expected.
    .balign 2048
vectors:
    .rept   16
    .balign 128
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    b       {exception}
    .endr
    .text
    "#,
    // Bits that must be 1; then MMU, caches, and the alignment of the stack on, that of data off.
    sctlr_off = const SCTLR_RESERVED,
    sctlr_on = const SCTLR_RESERVED | 1 | 1 << 2 | 1 << 3 | 1 << 12,
    // Attributes 0: a device's (nGnRE). 1: cached, written back.
    mair = const 0xff04_u64,
    // One table, in cached memory, pages of 4 KiB, addresses of 32 bits.
    tcr = const (64 - VA_BITS) | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 1 << 23,
    map = sym MAP,
    main = sym crate::main,
    exception = sym exception,
);

const SCTLR_RESERVED: u64 = 0x30d0_0800;

unsafe extern "C" {
    static __stack_bottom: u64;
    static __stack_top: u64;
}

/// The most bytes of the stack that were in use: above the lowest word that is no longer zero;
/// `None` where there is none, as more may have been.
pub(crate) fn peak_stack() -> Option<usize> {
    // The two are labels: the words between them belong to no object of Rust's.
    let (bottom, top) = (&raw const __stack_bottom, &raw const __stack_top);
    let (bottom, top) = (bottom.expose_provenance(), top.addr());
    let is_used = |address: &usize| {
        let word = core::ptr::with_exposed_provenance::<u64>(*address);
        // SAFETY: the words from the stack's bottom to its top are memory that was set to zero;
        // that the ones above `sp` change meanwhile does not matter to whoever reads them as
        // volatile.
        unsafe { word.read_volatile() != 0 }
    };
    let lowest = (bottom..top).step_by(8).find(is_used)?;
    (lowest > bottom).then(|| top - lowest)
}

/// What the vectors lead to: the syndrome (`ESR_EL1`), where it happened, and the address that
/// could not be reached, where it was that.
extern "C" fn exception(syndrome: u64, instruction: u64, address: u64) -> ! {
    println!("exception {syndrome:#x} at {instruction:#x}, address {address:#x}");
    cpu::exit(102)
}
