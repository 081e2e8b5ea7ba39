//! Int8 products for every quantized format: four rows at a time for few tokens, tiles for many. Both add
//! up in one order, see [`matmul`](crate::matmul).

use core::mem::MaybeUninit;
use core::sync::atomic::{Ordering, compiler_fence};

use super::load::{self, Format, Kind, Quads, super_bytes};
use super::{
    PAIR_ROWS, PANEL_ROWS, Panel, Quad, SUPER, Simd, TILE_PAIRS, TILE_ROWS, ahead, on_level, start,
};
use crate::input::INTEGER;
use crate::quant::Unpacked;
use crate::{DType, Level, Matrix, Q8_BLOCK, Q8Rows, Q8Super, TileMut};

/// Tokens that four rows are multiplied with in turn.
const FEW_TOKENS: usize = 8;
/// From this many tokens on tiles are faster, which take longer to make of narrow kinds. (Measured with
/// AVX-512.)
const fn min_tile_tokens<K: Kind>() -> usize {
    if K::WIDE { 4 } else { FEW_TOKENS + 1 }
}
/// Tokens that all rows of a tile are multiplied with in turn: a multiple of those that go at once.
const CHUNK_TOKENS: usize = 24;

/// `y[t][r] = w[r] . x[t]` for quantized `w` `[n_rows, n_cols]` and int8 `x` `[n_tokens, n_cols]`;
/// the caller checked the shapes. False, and nothing done, at the scalar level.
pub(crate) fn matmul(level: Level, w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) -> bool {
    /// Calls the level's entry point for a format.
    macro_rules! enter {
        ($simd:ty, $features:literal, $format:ident) => {{
            #[inline(never)] // a tile's buffers would lie on the caller's stack
            #[target_feature(enable = $features)]
            fn entry(w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
                // SAFETY: this function has the level's features.
                unsafe { matmul_format::<$simd, load::$format>(w, x, y) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(w, x, y) }
        }};
    }
    macro_rules! run {
        ($simd:ty, $features:literal) => {
            match w.dtype() {
                DType::Q4_0 => enter!($simd, $features, Q40),
                DType::Q4_1 => enter!($simd, $features, Q41),
                DType::Q5_0 => enter!($simd, $features, Q50),
                DType::Q5_1 => enter!($simd, $features, Q51),
                DType::Q8_0 => enter!($simd, $features, Q80),
                DType::Q2_K => enter!($simd, $features, Q2K),
                DType::Q3_K => enter!($simd, $features, Q3K),
                DType::Q4_K => enter!($simd, $features, Q4K),
                DType::Q5_K => enter!($simd, $features, Q5K),
                DType::Q6_K => enter!($simd, $features, Q6K),
                DType::IQ4_NL => enter!($simd, $features, Iq4Nl),
                DType::IQ4_XS => enter!($simd, $features, Iq4Xs),
                DType::MXFP4 => enter!($simd, $features, Mxfp4),
                other => {
                    assert!(other.is_quantized(), "{other} is not quantized");
                    enter!($simd, $features, Others)
                }
            }
        };
    }
    on_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn matmul_format<S: Simd, F: Format>(w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
    let (n_rows, n_tokens) = (w.n_rows(), y.n_rows());
    if n_tokens == 1 {
        // SAFETY: the caller's.
        return unsafe { rows_by_four::<S, F, 1>(w, 0, x, 0, y) };
    }
    let n_tiled = match n_tokens < min_tile_tokens::<F::Kind>() {
        true => 0,
        false => n_rows / PAIR_ROWS * PAIR_ROWS,
    };
    for r in (0..n_tiled).step_by(TILE_ROWS) {
        let rows = r..n_tiled.min(r + TILE_ROWS);
        // SAFETY: the caller's.
        unsafe { tile::<S, F>(&w.rows(rows), x, y, r) };
    }
    if n_tiled < n_rows {
        for t in (0..n_tokens).step_by(FEW_TOKENS) {
            // SAFETY: the caller's.
            unsafe { rows_by_four::<S, F, FEW_TOKENS>(w, n_tiled, x, t, y) };
        }
    }
}

/// The longest 256 weights of formats whose rows need not be a multiple of them: Q8_1's.
const MAX_TAIL_BYTES: usize = super_bytes(DType::Q8_1);

/// A row's last weights, filled up with zero bytes, which every format with blocks of 32 reads as
/// finite weights (and the input is zero there).
fn weight_tail(row: &[u8], n_whole: usize) -> [u8; MAX_TAIL_BYTES] {
    let mut tail = [0; MAX_TAIL_BYTES];
    let rest = &row[n_whole..];
    tail[..rest.len()].copy_from_slice(rest);
    tail
}

/// `y[t][r] = w[r] . x[t]` for rows from `first` on and up to `N` tokens from `t` on, four rows at a time, so
/// that what is done to a block's sum is done to four at once.
///
/// # Safety
///
/// As [`matmul_format`].
#[inline(always)]
unsafe fn rows_by_four<S: Simd, F: Format, const N: usize>(
    w: &Matrix<'_>,
    first: usize,
    x: &Q8Rows<'_>,
    t: usize,
    y: &mut TileMut<'_>,
) {
    let n_tokens = if N == 1 { 1 } else { N.min(y.n_rows() - t) };
    let dtype = F::DTYPE.unwrap_or(w.dtype());
    let n_bytes = super_bytes(dtype);
    let n_whole = w.n_cols() / SUPER;
    let n_rest = w.n_cols() % SUPER;
    for i in 0..n_tokens {
        assert!(y.row(t + i).len() >= w.n_rows());
        if w.n_cols() == 0 {
            y.row(t + i)[first..].fill(0.0);
        }
    }
    if w.n_cols() == 0 {
        return;
    }
    let (x, stride) = x.tokens_from(t, n_tokens, w.n_cols().div_ceil(SUPER));
    let mut tails = [[0; MAX_TAIL_BYTES]; 4];
    let four_rows = 4 * w.row_bytes();
    for r in (first..w.n_rows()).step_by(4) {
        let n_rows = (w.n_rows() - r).min(4);
        // Past the last row it is taken again and again.
        let rows = four!(i => w.row(r + i.min(n_rows - 1)));
        let starts = four!(i => rows[i].as_ptr());
        // SAFETY: the caller's.
        let mut sums = unsafe { [S::Quad::splat(0.0); N] };
        let mut columns = Columns {
            x,
            n_blocks: SUPER / Q8_BLOCK,
            n_tokens,
        };
        for s in 0..n_whole {
            let here = ahead(starts, s * n_bytes);
            for here in here {
                // Behind these rows lie the next ones.
                prefetch::<0>(here.wrapping_add(four_rows), n_bytes);
            }
            // SAFETY: each pointer is to 256 weights of a row; the input has as many of each token.
            unsafe {
                columns.x = x.add(s * stride);
                add_supers::<S, F, N>(dtype, here, &columns, &mut sums);
            }
        }
        if dtype.block_len() < SUPER && n_rest > 0 {
            for (tail, row) in tails.iter_mut().zip(rows) {
                *tail = weight_tail(row, n_whole * n_bytes);
            }
            let here = four!(i => tails[i].as_ptr());
            columns.n_blocks = n_rest / Q8_BLOCK;
            // SAFETY: likewise, of tails filled up.
            unsafe {
                columns.x = x.add(n_whole * stride);
                add_supers::<S, F, N>(dtype, here, &columns, &mut sums);
            }
        }
        for (i, sum) in sums[..n_tokens].iter().enumerate() {
            let mut outputs = [0.0; 4];
            // SAFETY: the caller's; there are four of them.
            unsafe { sum.store(outputs.as_mut_ptr()) };
            y.row(t + i)[r..][..n_rows].copy_from_slice(&outputs[..n_rows]);
        }
    }
}

/// 256 columns of up to `N` tokens' inputs, and how many blocks of them there are.
struct Columns {
    x: *const Q8Super,
    n_blocks: usize,
    n_tokens: usize,
}

/// Adds the products of 256 weights of a type of four rows.
///
/// # Safety
///
/// As [`matmul_format`]; each row points to 256 weights.
#[inline(always)]
unsafe fn add_supers<S: Simd, F: Format, const N: usize>(
    dtype: DType,
    rows: [*const u8; 4],
    x: &Columns,
    sums: &mut [S::Quad; N],
) {
    // SAFETY: the caller's; all pointers stay inside the weights and the inputs.
    unsafe {
        let mut spaces = [Unpacked::ZERO; 4];
        let mut opened = rows;
        for i in 0..4 {
            opened[i] = F::open::<S>(dtype, rows[i], &mut spaces[i]);
        }
        let quads = F::quads::<S>(opened);
        let weights = Weights {
            rows: opened,
            quads: &quads,
        };
        if !F::Kind::INTEGER_SCALES {
            return weights.add::<F, N>(x, sums);
        }
        let mut steps = [S::Quad::splat(0.0); N];
        weights.add::<F, N>(x, &mut steps);
        for i in 0..N {
            sums[i] = steps[i].mul_add(quads.step, sums[i]);
        }
    }
}

/// 256 weights of four rows.
struct Weights<'a, S: Simd> {
    rows: [*const u8; 4],
    quads: &'a Quads<S>,
}

impl<S: Simd> Weights<'_, S> {
    /// Adds the products of all columns of up to `N` tokens.
    ///
    /// # Safety
    ///
    /// As [`add_supers`].
    #[inline(always)]
    unsafe fn add<F: Format, const N: usize>(&self, x: &Columns, sums: &mut [S::Quad; N]) {
        // SAFETY: the caller's.
        unsafe {
            // The fences keep the compiler from loading all weights first, for which there are not
            // registers enough.
            self.add_64::<F, N>(0, x, sums);
            compiler_fence(Ordering::SeqCst);
            self.add_64::<F, N>(1, x, sums);
            compiler_fence(Ordering::SeqCst);
            self.add_64::<F, N>(2, x, sums);
            compiler_fence(Ordering::SeqCst);
            self.add_64::<F, N>(3, x, sums);
        }
    }

    /// Adds the products of columns `64 i` to `64 i + 63` of up to `N` tokens.
    ///
    /// # Safety
    ///
    /// As [`add_supers`].
    #[inline(always)]
    unsafe fn add_64<F: Format, const N: usize>(
        &self,
        i: usize,
        columns: &Columns,
        sums: &mut [S::Quad; N],
    ) {
        // SAFETY: the caller's.
        unsafe {
            let w = four!(r => F::q::<S>(self.rows[r], i));
            let n_tokens = if N == 1 { 1 } else { columns.n_tokens };
            #[expect(clippy::needless_range_loop, reason = "names a token of both")]
            for n in 0..n_tokens {
                let x = columns.x.add(n);
                if 2 * i < columns.n_blocks {
                    let q = (&raw const (*x).q).cast::<i8>().add(64 * i);
                    sums[n] = match F::Kind::WIDE {
                        true => {
                            let dots = S::dots_32::<F::Kind>(&w, q);
                            let sum = self.add_block::<F>(2 * i, dots[0], x, sums[n]);
                            match 2 * i + 1 < columns.n_blocks {
                                true => self.add_block::<F>(2 * i + 1, dots[1], x, sum),
                                false => sum,
                            }
                        }
                        false => {
                            let [a, b, c, d] = S::dots_16::<F::Kind>(&w, q);
                            let sum = self.add_halves::<F>(2 * i, [a, b], x, sums[n]);
                            match 2 * i + 1 < columns.n_blocks {
                                true => self.add_halves::<F>(2 * i + 1, [c, d], x, sum),
                                false => sum,
                            }
                        }
                    };
                }
            }
        }
    }

    /// `sum` with the products of block `b`, of wide kinds.
    ///
    /// # Safety
    ///
    /// As [`add_supers`].
    #[inline(always)]
    unsafe fn add_block<F: Format>(
        &self,
        b: usize,
        dots: <S::Quad as Quad>::Ints,
        x: *const Q8Super,
        sum: S::Quad,
    ) -> S::Quad {
        // SAFETY: the caller's.
        unsafe {
            let start = start::<F::Kind>(x, b, 0);
            let products = S::Quad::centered(dots, S::added::<F::Kind>(), start);
            let x_scale = S::Quad::splat(super::scale(x, b));
            let scaled = products.mul(self.quads.scale[0][b]);
            let sum = scaled.mul_add(x_scale, sum);
            match F::Kind::OFFSET {
                Some(_) => sum,
                None => {
                    let x_sum = S::Quad::splat(super::sum(x, 2 * b));
                    self.quads.min[0][b].mul_add(x_sum, sum)
                }
            }
        }
    }

    /// Likewise of narrow kinds, with the products of both halves.
    ///
    /// # Safety
    ///
    /// As [`add_supers`].
    #[inline(always)]
    unsafe fn add_halves<F: Format>(
        &self,
        b: usize,
        dots: [<S::Quad as Quad>::Ints; 2],
        x: *const Q8Super,
        mut sum: S::Quad,
    ) -> S::Quad {
        let (scale, min) = (&self.quads.scale[b / 4], &self.quads.min[b / 4]);
        let (i, added) = (b % 4 * 2, S::added::<F::Kind>());
        // SAFETY: the caller's.
        unsafe {
            let x_scale = S::Quad::splat(super::scale(x, b));
            let first = S::Quad::centered(dots[0], added, start::<F::Kind>(x, b, 0));
            let last = S::Quad::centered(dots[1], added, start::<F::Kind>(x, b, 1));
            if F::Kind::INTEGER_SCALES {
                // Integers, and so is the sum of both halves.
                let both = last.mul_add(scale[i + 1], first.mul(scale[i]));
                return both.mul_add(x_scale, sum);
            }
            sum = first.mul(scale[i]).mul_add(x_scale, sum);
            sum = min[i].mul_add(S::Quad::splat(super::sum(x, 2 * b)), sum);
            sum = last.mul(scale[i + 1]).mul_add(x_scale, sum);
            min[i + 1].mul_add(S::Quad::splat(super::sum(x, 2 * b + 1)), sum)
        }
    }
}

/// Asks the memory for the lines of `bytes`.
pub(crate) fn prefetch_lines(bytes: &[u8]) {
    for line in bytes.chunks(LINE_BYTES) {
        prefetch::<0>(line.as_ptr(), 1);
    }
}

/// Bytes that the memory gives at once.
pub(super) const LINE_BYTES: usize = 64;

/// Asks for the `n_bytes`, 320 at most, that come `AHEAD` after `p`; they need not exist.
#[inline(always)]
pub(super) fn prefetch<const AHEAD: usize>(p: *const u8, n_bytes: usize) {
    prefetch_line::<AHEAD, 0>(p, n_bytes);
    prefetch_line::<AHEAD, 64>(p, n_bytes);
    prefetch_line::<AHEAD, 128>(p, n_bytes);
    prefetch_line::<AHEAD, 192>(p, n_bytes);
    prefetch_line::<AHEAD, 256>(p, n_bytes);
}

/// Asks for the line `LINE` bytes on, if there are more than that.
#[inline(always)]
fn prefetch_line<const AHEAD: usize, const LINE: usize>(p: *const u8, n_bytes: usize) {
    if LINE >= n_bytes {
        return;
    }
    // SAFETY: x86-64 has the instruction, and it faults nowhere.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(AHEAD + LINE).cast());
    }
    // The offset is part of the instruction, or the compiler would take the address ahead as the
    // base of all loads, which are out of reach from there.
    // SAFETY: likewise; it touches no memory, register or flag.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            "prfm pldl1keep, [{p}, #{offset}]",
            p = in(reg) p, offset = const AHEAD + LINE,
            options(nostack, preserves_flags, readonly)
        );
    }
}

/// Prefill: up to 64 rows for all tokens, `y[t][first + r] = w[r] . x[t]`; where they are no whole
/// pairs of panels, the last is taken again and again. The weights go through panels of 256 columns,
/// so that they are unpacked once for all tokens; sums between panels are kept in `y`.
///
/// # Safety
///
/// As [`matmul_format`].
#[inline(always)]
unsafe fn tile<S: Simd, F: Format>(
    w: &Matrix<'_>,
    x: &Q8Rows<'_>,
    y: &mut TileMut<'_>,
    first: usize,
) {
    let (n_cols, n_tokens) = (w.n_cols(), y.n_rows());
    let n_pairs = w.n_rows().div_ceil(PAIR_ROWS);
    let n_rows = n_pairs * PAIR_ROWS;
    assert!(n_rows <= TILE_ROWS && first + n_rows <= y.n_cols());
    if n_cols == 0 {
        return (0..n_tokens).for_each(|t| y.row(t)[first..][..n_rows].fill(0.0));
    }
    let dtype = F::DTYPE.unwrap_or(w.dtype());
    let n_bytes = super_bytes(dtype);
    let rows = tile_rows(w);
    let mut tails = [[0; MAX_TAIL_BYTES]; PAIR_ROWS];
    let mut panels = [const { MaybeUninit::<[Panel<S>; 2]>::uninit() }; TILE_PAIRS];
    let panels = &mut panels[..n_pairs];
    for c in (0..n_cols).step_by(SUPER) {
        let start = c / SUPER * n_bytes;
        for (pair, rows) in panels.iter_mut().zip(rows.as_chunks::<PAIR_ROWS>().0) {
            let here = match n_cols - c < SUPER {
                true => weight_tails(rows, start, &mut tails),
                false => weights_at(rows, start, n_bytes),
            };
            // SAFETY: each pointer is to 256 weights, in the row or in a tail filled up.
            unsafe {
                let panel = pair.as_mut_ptr().cast::<Panel<S>>();
                for (i, rows) in here.as_chunks().0.iter().enumerate() {
                    fill::<S, F>(panel.add(i), dtype, rows);
                }
            }
        }
        // Where each row's next weights begin: further on, or in the next tile.
        let next = match n_cols - c > SUPER {
            true => start + n_bytes,
            false => n_rows * w.row_bytes(),
        };
        let mut n_asked = 0;
        let n_blocks = (n_cols - c).min(SUPER) / Q8_BLOCK;
        let x = &x.of(c / SUPER, 0)[..n_tokens];
        let (y, stride) = y.parts();
        for t in (0..n_tokens).step_by(CHUNK_TOKENS) {
            let n = CHUNK_TOKENS.min(n_tokens - t);
            // Some rows' with each of the last chunks: earlier they would be gone again from the nearest
            // cache, and the CPU sees no stream in it.
            let n_due = n_rows.saturating_sub((n_tokens - t - n) / 4);
            if n_asked < n_due {
                prefetch_weights(&rows[n_asked..n_due], next, n_bytes);
                n_asked = n_due;
            }
            for (i, pair) in panels.iter().enumerate() {
                // SAFETY: the caller's; the pair is filled, and these are `n` tokens' inputs and 32
                // outputs each, of columns from `first` on.
                unsafe {
                    let pair = pair.assume_init_ref();
                    let y = y.add(t * stride + first + i * PAIR_ROWS);
                    let mut tokens = Tokens {
                        x: x.as_ptr().add(t),
                        y,
                        n,
                        stride,
                        n_blocks,
                        is_first: c == 0,
                    };
                    if S::WIDE_TILE && <F::Kind as Kind>::WIDE {
                        multiply::<S, F::Kind, 6>(pair, &mut tokens);
                    }
                    multiply::<S, F::Kind, 4>(pair, &mut tokens);
                    multiply::<S, F::Kind, 1>(pair, &mut tokens);
                }
            }
        }
    }
}

// These are functions of their own, or every format and level would have a copy.

/// The rows of a tile; past the last it is taken again and again.
#[inline(never)]
fn tile_rows<'a>(w: &Matrix<'a>) -> [&'a [u8]; TILE_ROWS] {
    let mut rows: [&[u8]; TILE_ROWS] = [&[]; TILE_ROWS];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = w.row(r.min(w.n_rows() - 1));
    }
    rows
}

/// Where the `n_bytes` from `start` on of each row are.
#[inline(never)]
fn weights_at(rows: &[&[u8]; PAIR_ROWS], start: usize, n_bytes: usize) -> [*const u8; PAIR_ROWS] {
    let mut here = [core::ptr::null(); PAIR_ROWS];
    for (here, row) in here.iter_mut().zip(rows) {
        *here = row[start..][..n_bytes].as_ptr();
    }
    here
}

/// As [`weights_at`] for less than 256 weights, which are filled up in `tails`.
#[inline(never)]
fn weight_tails(
    rows: &[&[u8]; PAIR_ROWS],
    start: usize,
    tails: &mut [[u8; MAX_TAIL_BYTES]; PAIR_ROWS],
) -> [*const u8; PAIR_ROWS] {
    let mut here = [core::ptr::null(); PAIR_ROWS];
    for ((here, tail), row) in here.iter_mut().zip(tails).zip(rows) {
        *tail = weight_tail(row, start);
        *here = tail.as_ptr();
    }
    here
}

/// Asks for the `n_bytes` that come `start` after the start of each row.
#[inline(never)]
fn prefetch_weights(rows: &[&[u8]], start: usize, n_bytes: usize) {
    for row in rows {
        let p = row.as_ptr().wrapping_add(start);
        for line in (0..n_bytes).step_by(LINE_BYTES) {
            prefetch::<0>(p.wrapping_add(line), 1);
        }
        // The last of them may be in one line more.
        prefetch::<0>(p.wrapping_add(n_bytes - 1), 1);
    }
}

/// Unpacks 256 weights of each of 16 rows into the panel at `p`.
///
/// # Safety
///
/// As [`matmul_format`]; `p` is a panel to write, and each row points to the bytes of 256 readable
/// weights.
#[inline(always)]
unsafe fn fill<S: Simd, F: Format>(p: *mut Panel<S>, dtype: DType, rows: &[*const u8; PANEL_ROWS]) {
    let is_centered = F::Kind::OFFSET.is_some();
    let has_step = F::Kind::INTEGER_SCALES;
    let has_min = !is_centered;
    let starts_high = S::HIGH_STARTS && is_centered;
    // SAFETY: the fields are written through pointers into the panel, all of them before it is
    // taken for whole; the reads are the caller's.
    unsafe {
        for (r, row) in rows.iter().enumerate() {
            let mut space = Unpacked::ZERO;
            let row = F::open::<S>(dtype, *row, &mut space);
            (&raw mut (*p).q[0][r]).write(F::q::<S>(row, 0));
            (&raw mut (*p).q[1][r]).write(F::q::<S>(row, 1));
            (&raw mut (*p).q[2][r]).write(F::q::<S>(row, 2));
            (&raw mut (*p).q[3][r]).write(F::q::<S>(row, 3));
            let scales = F::scales::<S>(row);
            (&raw mut (*p).scale[r]).write(scales.scale);
            let min = match has_min {
                true => scales.min,
                false => S::splat_float(0.0),
            };
            (&raw mut (*p).min[r]).write(min);
            (&raw mut (*p).step).cast::<f32>().add(r).write(scales.step);
        }
        let panel = &mut *p;
        // No closure: that would be compiled without the level's features.
        for (q, high) in panel.q.iter_mut().zip(&mut panel.high) {
            S::arrange::<F::Kind>(q, high);
        }
        S::transpose(&mut panel.scale);
        if has_step {
            S::arrange_scales(&mut panel.scale, &mut panel.min);
        }
        if has_min {
            S::transpose(&mut panel.min);
        }
        if starts_high {
            for (min, scale) in panel.min.iter_mut().zip(&panel.scale) {
                *min = S::mul(*scale, S::splat_float(-INTEGER));
            }
        }
    }
}

/// Tokens still to be multiplied: where their inputs and their outputs begin.
struct Tokens {
    n: usize,
    x: *const Q8Super,
    y: *mut f32,
    /// From one token's outputs to the next.
    stride: usize,
    /// Blocks of each input.
    n_blocks: usize,
    /// Whether the outputs hold nothing yet.
    is_first: bool,
}

/// [`Simd::multiply`] for `N` tokens at once, as long as there are so many.
///
/// # Safety
///
/// As [`matmul_format`]; the inputs have as many blocks as it says, and each output 32 elements.
#[inline(always)]
unsafe fn multiply<S: Simd, K: Kind, const N: usize>(panels: &[Panel<S>; 2], tokens: &mut Tokens) {
    let Tokens {
        stride,
        n_blocks,
        is_first,
        ..
    } = *tokens;
    while tokens.n >= N {
        let mut outputs = [tokens.y; N];
        for (i, output) in outputs.iter_mut().enumerate() {
            *output = tokens.y.wrapping_add(i * stride);
        }
        // SAFETY: the caller's.
        unsafe { S::multiply::<K, N>(panels, tokens.x, n_blocks, is_first, outputs) }
        tokens.n -= N;
        tokens.x = tokens.x.wrapping_add(N);
        tokens.y = tokens.y.wrapping_add(N * stride);
    }
}
