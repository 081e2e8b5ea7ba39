//! Types that store each element by itself.

use crate::DType;
use crate::lanes::f16_to_f32;
use half::{bf16, f16};

/// Decodes `src` into `dst`; the caller has checked the lengths.
#[inline(always)] // into functions with more instructions than the baseline's
pub(crate) fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) {
    match dtype {
        DType::F32 => each(src, dst, f32::from_le_bytes),
        DType::F16 => each(src, dst, |b| f16_to_f32(u16::from_le_bytes(b))),
        DType::BF16 => each(src, dst, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F64 => each(src, dst, |b| f64::from_le_bytes(b) as f32),
        DType::I8 => each(src, dst, |b| f32::from(i8::from_le_bytes(b))),
        DType::I16 => each(src, dst, |b| f32::from(i16::from_le_bytes(b))),
        DType::I32 => each(src, dst, |b| i32::from_le_bytes(b) as f32),
        DType::I64 => each(src, dst, |b| i64::from_le_bytes(b) as f32),
        _ => unreachable!("{dtype} is quantized"),
    }
}

#[inline(always)]
fn each<const N: usize>(src: &[u8], dst: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (dst, src) in dst.iter_mut().zip(src.as_chunks::<N>().0) {
        *dst = decode(*src);
    }
}

/// Encodes `src` as F32, F16 or BF16, rounding to nearest, ties to even; the caller has checked
/// the lengths.
pub(super) fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) {
    match dtype {
        DType::F32 => each_out(src, dst, f32::to_le_bytes),
        DType::F16 => each_out(src, dst, |x| f16::from_f32(x).to_le_bytes()),
        DType::BF16 => each_out(src, dst, |x| bf16::from_f32(x).to_le_bytes()),
        _ => panic!("{dtype} cannot be encoded"),
    }
}

fn each_out<const N: usize>(src: &[f32], dst: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (dst, src) in dst.as_chunks_mut::<N>().0.iter_mut().zip(src) {
        *dst = encode(*src);
    }
}
