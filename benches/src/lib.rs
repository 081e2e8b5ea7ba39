//! Shared by the microbenchmarks: random data, as zeros would be faster than anything real.

use tandem_kernels::{DType, Level, Q8_SUPER, Q8Super, quant, quantize_q8};

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

/// Random rows rounded to int8, `[n_tokens, n_cols]`; `n_cols` a multiple of 256.
pub fn rounded(n_tokens: usize, n_cols: usize) -> Vec<Q8Super> {
    let n = n_tokens * n_cols;
    let mut rounded = vec![Q8Super::default(); n / Q8_SUPER];
    quantize_q8(Level::detect(), &random(n), n_cols, 0, &mut rounded);
    rounded
}
