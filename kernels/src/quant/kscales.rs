//! The packed scales and minima that Q4_K and Q5_K share.

/// Eight 6-bit scales and eight 6-bit minima.
///
/// Scales 0 to 3 lie in the low 6 bits of bytes 0 to 3, minima 0 to 3 in those of bytes 4 to 7.
/// Scale 4 + j has its low 4 bits in the low half of byte 8 + j and its high 2 bits at the top of
/// byte j; minimum 4 + j has them in the high half of byte 8 + j and at the top of byte 4 + j.
/// Source: ggml's `get_scale_min_k4`.
pub fn unpack_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let mut scales = [0; 8];
    let mut mins = [0; 8];
    for j in 0..4 {
        let (sc, m, both) = (packed[j], packed[4 + j], packed[8 + j]);
        scales[j] = sc & 63;
        mins[j] = m & 63;
        scales[4 + j] = both & 15 | sc >> 6 << 4;
        mins[4 + j] = both >> 4 | m >> 6 << 4;
    }
    (scales, mins)
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
