//! Shared by the microbenchmarks: random data, as zeros would be faster than anything real.

use tandem_kernels::{
    DType, Input, Level, Q8_BLOCK, Q8_GROUP, Q8_STARTS, Q8Rows, quant, quantize_q8,
};

/// `n` numbers between -1 and 1, the same in every run.
pub fn random(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // Xorshift64* (Vigna, arXiv 1402.6246).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `n` random weights of a type that can be encoded.
pub fn weights(dtype: DType, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n / dtype.block_len() * dtype.block_bytes()];
    quant::quantize(dtype, &random(n), &mut bytes);
    bytes
}

/// Random input rounded to int8.
pub struct Rounded {
    q: Vec<i8>,
    scale: Vec<f32>,
    sum: Vec<f32>,
    start: Vec<i32>,
}

impl Rounded {
    /// `n` elements, a multiple of 32.
    pub fn new(n: usize) -> Rounded {
        let mut r = Rounded {
            q: vec![0; n],
            scale: vec![0.0; n / Q8_BLOCK],
            sum: vec![0.0; n / Q8_GROUP],
            start: vec![0; n / Q8_BLOCK * Q8_STARTS],
        };
        let level = Level::detect();
        quantize_q8(
            level,
            &random(n),
            &mut r.q,
            &mut r.scale,
            &mut r.sum,
            &mut r.start,
        );
        r
    }

    /// As a matmul takes it.
    pub fn input(&self) -> Input<'_> {
        Input::Q8(Q8Rows {
            q: &self.q,
            scale: &self.scale,
            sum: &self.sum,
            start: &self.start,
        })
    }
}
