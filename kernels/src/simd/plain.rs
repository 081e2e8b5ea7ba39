//! Plain Rust in place of vectors, for the scalar level.

// Safety: see `Lanes`. Pointers are read and written as far as the trait says.
#![allow(unsafe_op_in_unsafe_fn)]

use core::array::from_fn;

use half::bf16;

use super::Lanes;
use crate::lanes::f16_to_f32;

pub(crate) struct Plain;

impl Lanes for Plain {
    type Floats = [f32; 16];
    const WIDE_TILE: bool = false;

    #[inline(always)]
    unsafe fn floats(p: *const f32) -> [f32; 16] {
        p.cast::<[f32; 16]>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn store(v: [f32; 16], p: *mut f32) {
        p.cast::<[f32; 16]>().write_unaligned(v);
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sum(v: [f32; 16]) -> f32 {
        v.into_iter().sum()
    }

    #[inline(always)]
    unsafe fn half(p: *const u8) -> [f32; 16] {
        [f16_to_f32(u16::from_le_bytes(p.cast::<[u8; 2]>().read())); 16]
    }

    #[inline(always)]
    unsafe fn from_f16(p: *const u8) -> [f32; 16] {
        let halves = p.cast::<[[u8; 2]; 16]>().read();
        halves.map(|h| f16_to_f32(u16::from_le_bytes(h)))
    }

    #[inline(always)]
    unsafe fn from_bf16(p: *const u8) -> [f32; 16] {
        let halves = p.cast::<[[u8; 2]; 16]>().read();
        halves.map(|h| bf16::from_le_bytes(h).to_f32())
    }

    #[inline(always)]
    unsafe fn from_i8(p: *const i8) -> [f32; 16] {
        p.cast::<[i8; 16]>().read().map(f32::from)
    }
}
