//! The packed scales and minima that Q4_K and Q5_K share.

/// Eight 6-bit scales and eight 6-bit minima.
///
/// Scales 0 to 3 lie in the low 6 bits of bytes 0 to 3, minima 0 to 3 in those of bytes 4 to 7.
/// Scale 4 + j has its low 4 bits in the low half of byte 8 + j and its high 2 bits at the top of
/// byte j; minimum 4 + j has them in the high half of byte 8 + j and at the top of byte 4 + j.
/// Source: ggml's `get_scale_min_k4`.
#[inline]
pub fn unpack_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    // Four bytes at a time.
    let word =
        |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (sc, m, both) = (word(0), word(4), word(8));
    let low_6 = |v: u32| u64::from(v & 0x3f3f_3f3f);
    let join = |low: u32, high: u32| u64::from(low & 0x0f0f_0f0f | (high >> 6 & 0x0303_0303) << 4);
    let scales = low_6(sc) | join(both, sc) << 32;
    let mins = low_6(m) | join(both >> 4, m) << 32;
    (scales.to_le_bytes(), mins.to_le_bytes())
}

/// Packs what [`unpack_scales`] unpacks; every value is below 64.
pub(super) fn pack_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | scales[4 + j] >> 4 << 6;
        packed[4 + j] = mins[j] | mins[4 + j] >> 4 << 6;
        packed[8 + j] = scales[4 + j] & 15 | mins[4 + j] << 4;
    }
    packed
}
