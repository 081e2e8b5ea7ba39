//! Block formats: how each one lies in memory, decodes and encodes. Scalar, to be read first.
//!
//! Every quantized format unpacks into one shape, [`Unpacked`]: small integers `q` with a scale
//! and a minimum for each group of 16,
//!
//! ```text
//! w[i] = scale[i / 16] * q[i] + min[i / 16]
//! ```
//!
//! Formats with wider groups repeat their scale. The layouts, and the meaning of every bit, are
//! ggml's; each file names the layout of one format. The faster kernels are tested against this.

pub(crate) mod grids;
mod kscales;
pub(crate) mod plain;
mod search;
mod search_min;
mod search_signed;

pub mod iq1_m;
pub mod iq1_s;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod q8_1;
pub mod q8_k;
pub mod tq1_0;
pub mod tq2_0;

use crate::DType;
use crate::dtype::dtypes;

/// The elements of the largest block.
pub const MAX_BLOCK_LEN: usize = 256;

/// The elements that share a scale and a minimum in [`Unpacked`].
pub const GROUP_LEN: usize = 16;

/// The minimum of formats that have none: adding negative zero changes no float, not even -0.0.
/// It compares equal to 0.0.
const NO_MIN: f32 = -0.0;

/// One block, unpacked: `w[i] = scale[i / 16] * q[i] + min[i / 16]`.
///
/// A block of 32 elements fills `q[..32]`, `scale[..2]` and `min[..2]`, and leaves the rest as it
/// was.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Unpacked {
    /// Integers, `[256]`.
    pub q: [i8; MAX_BLOCK_LEN],
    /// Scales, one for 16 integers.
    pub scale: [f32; MAX_BLOCK_LEN / GROUP_LEN],
    /// Minima, one for 16 integers; -0.0 (which equals 0.0) where the format has none.
    pub min: [f32; MAX_BLOCK_LEN / GROUP_LEN],
}

impl Unpacked {
    /// All zero.
    pub const ZERO: Unpacked = Unpacked {
        q: [0; MAX_BLOCK_LEN],
        scale: [0.0; MAX_BLOCK_LEN / GROUP_LEN],
        min: [0.0; MAX_BLOCK_LEN / GROUP_LEN],
    };

    /// Gives scale and minimum to the `n`-th run of `len` elements, `len` a multiple of 16.
    fn set_run(&mut self, n: usize, len: usize, scale: f32, min: f32) {
        let n_groups = len / GROUP_LEN;
        self.scale[n * n_groups..][..n_groups].fill(scale);
        self.min[n * n_groups..][..n_groups].fill(min);
    }
}

impl Default for Unpacked {
    fn default() -> Self {
        Self::ZERO
    }
}

/// Unpacks one block, `[block_bytes]`, into the first [`DType::block_len`] elements of `out`.
///
/// # Panics
///
/// If `block.len()` is not [`DType::block_bytes`], or the type is not quantized.
pub fn unpack(dtype: DType, block: &[u8], out: &mut Unpacked) {
    assert_eq!(block.len(), dtype.block_bytes(), "{dtype}: one block");
    macro_rules! unpack {
        ([] $(
            $name:ident = $id:literal, $len:literal in $bytes:literal, $coding:ident $(, $module:ident)?;
        )*) => {
            match dtype {
                $(DType::$name => unpack!(@ $($module)?),)*
            }
        };
        (@) => { panic!("{dtype} is not quantized") };
        // Blocks are byte arrays of the size just asserted, aligned to 1: the cast holds.
        (@ $module:ident) => { $module::unpack(bytemuck::from_bytes(block), out) };
    }
    dtypes!(unpack);
}

/// Decodes elements of any type: `src` `[row_bytes(n)]` into `dst` `[n]`.
///
/// Bit for bit what ggml computes: a product and then a sum, each rounded. F64 and the integer
/// types are cast.
///
/// # Panics
///
/// If `dst` is no whole number of blocks, or `src.len()` is not the size of as many elements.
pub fn dequantize(dtype: DType, src: &[u8], dst: &mut [f32]) {
    assert_eq!(
        Some(src.len()),
        dtype.row_bytes(dst.len()),
        "{dtype}: bytes of {} elements",
        dst.len()
    );
    if !dtype.is_quantized() {
        return plain::decode(dtype, src, dst);
    }
    let mut block = Unpacked::ZERO;
    let n_bytes = dtype.block_bytes();
    for (src, dst) in src
        .chunks_exact(n_bytes)
        .zip(dst.chunks_exact_mut(dtype.block_len()))
    {
        unpack(dtype, src, &mut block);
        for (g, w) in dst.chunks_exact_mut(GROUP_LEN).enumerate() {
            for (w, q) in w.iter_mut().zip(&block.q[g * GROUP_LEN..]) {
                *w = block.scale[g] * f32::from(*q) + block.min[g];
            }
        }
    }
}

/// Whether [`quantize`] can produce this type.
pub const fn can_encode(dtype: DType) -> bool {
    macro_rules! can_encode {
        ([] $(
            $name:ident = $id:literal, $len:literal in $bytes:literal, $coding:ident $(, $module:ident)?;
        )*) => {
            match dtype {
                $(DType::$name => can_encode!(@ $coding),)*
            }
        };
        (@ encoded) => { true };
        (@ decoded) => { false };
    }
    dtypes!(can_encode)
}

/// Encodes `src` `[n]` into `dst` `[row_bytes(n)]`.
///
/// Q4_0 to Q8_1, Q8_K and the ternary types come out byte for byte as from ggml's reference; the
/// other K formats and the IQ4 ones are searched for the least squared error, every element
/// weighing the same.
///
/// A block with a NaN or an infinity in it gets a scale of NaN, so that all of it decodes to NaN:
/// a broken tensor is seen, and the blocks beside it are whole. As in ggml, scales beyond the range
/// of f16 become infinite (the block then decodes to infinities and NaN) or zero.
///
/// # Panics
///
/// If `src` is no whole number of blocks, `dst.len()` is not the size of as many elements, or
/// [`can_encode`] denies the type.
pub fn quantize(dtype: DType, src: &[f32], dst: &mut [u8]) {
    assert!(can_encode(dtype), "{dtype} cannot be encoded");
    assert_eq!(
        Some(dst.len()),
        dtype.row_bytes(src.len()),
        "{dtype}: bytes of {} elements",
        src.len()
    );
    if !dtype.is_quantized() {
        return plain::encode(dtype, src, dst);
    }
    let n_bytes = dtype.block_bytes();
    for (src, dst) in src
        .chunks_exact(dtype.block_len())
        .zip(dst.chunks_exact_mut(n_bytes))
    {
        if src.iter().all(|x| x.is_finite()) {
            encode_block(dtype, src, dst);
        } else {
            dst.fill(0);
            set_scale_to_nan(dtype, dst);
        }
    }
}

/// Encodes one block of finite elements; the caller has checked the lengths.
fn encode_block(dtype: DType, src: &[f32], dst: &mut [u8]) {
    macro_rules! encode {
        ([] $(
            $name:ident = $id:literal, $len:literal in $bytes:literal, $coding:ident $(, $module:ident)?;
        )*) => {
            match dtype {
                $(DType::$name => encode!(@ $coding $($module)?),)*
            }
        };
        (@ encoded $module:ident) => {{
            let src = src.try_into().expect("one block");
            dst.copy_from_slice(bytemuck::bytes_of(&$module::encode(src)));
        }};
        (@ $coding:ident $($module:ident)?) => {
            unreachable!("{dtype} is plain, or cannot be encoded")
        };
    }
    dtypes!(encode);
}

/// Makes a block of a type that [`can_encode`] decode to NaN throughout.
fn set_scale_to_nan(dtype: DType, block: &mut [u8]) {
    let at = match dtype {
        DType::Q2_K => core::mem::offset_of!(q2_k::Block, d),
        DType::Q3_K => core::mem::offset_of!(q3_k::Block, d),
        DType::Q6_K => core::mem::offset_of!(q6_k::Block, d),
        DType::TQ1_0 => core::mem::offset_of!(tq1_0::Block, d),
        DType::TQ2_0 => core::mem::offset_of!(tq2_0::Block, d),
        DType::Q8_K => return block[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
        // The other formats begin with their scale.
        _ => 0,
    };
    block[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
}
