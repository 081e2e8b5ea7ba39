//! Int8 products for every quantized format: a dot product for decode and a tile for prefill.

use core::mem::MaybeUninit;

use super::load::{self, Format, Kind, super_bytes};
use super::{PAIR_ROWS, PANEL_ROWS, Panel, SUPER, Simd, TILE_PAIRS, TILE_ROWS, on_level};
use crate::dtype::dtypes;
use crate::input::INTEGER;
use crate::{DType, Level, Matrix, Q8_BLOCK, Q8Rows, Q8Super, TileMut};

/// How far ahead of the weights in use decode asks for those to come: what the memory gives one core
/// in the time until the first byte of it arrives. Servers give a core 30 GB/s after 150 ns and more,
/// boards less, as a rule.
const PREFETCH_BYTES: usize = if cfg!(target_arch = "x86_64") {
    6144
} else {
    2048
};
/// From this many tokens on [`matmul`](crate::matmul) multiplies quantized weights tile by tile, which
/// is faster than a dot product for each output, but adds up in another order.
pub const MIN_TILE_TOKENS: usize = 4;
/// Tokens that all rows of a tile are multiplied with in turn: a multiple of those that go at once.
const CHUNK_TOKENS: usize = 24;
/// Tokens whose outputs of rows that are no whole pair of panels are computed at once.
const BESIDE_TOKENS: usize = 256;

/// In which order products are added up.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Method {
    /// A dot product for each output.
    Dots,
    /// Tile by tile.
    Tiles,
}

/// `y[t][r] = w[r] . x[t]` for quantized `w` `[n_rows, n_cols]` and int8 `x` `[n_tokens, n_cols]`;
/// the caller checked the shapes. False, and nothing done, at the scalar level.
pub(crate) fn matmul(
    level: Level,
    method: Method,
    w: &Matrix<'_>,
    x: &Q8Rows<'_>,
    y: &mut TileMut<'_>,
) -> bool {
    /// Calls the level's entry point for the format.
    macro_rules! run {
        ([$simd:ty, $features:literal] $(
            $name:ident = $id:literal, $len:literal in $bytes:literal, $coding:ident $(, $module:ident $format:ident)?;
        )*) => {
            match w.dtype() {
                $(DType::$name => run!(@ $simd, $features $(, $format)?),)*
            }
        };
        (@ $simd:ty, $features:literal) => { unreachable!("{} is not quantized", w.dtype()) };
        (@ $simd:ty, $features:literal, $format:ident) => {{
            #[inline(never)] // a tile's buffers would lie on the caller's stack for every method
            #[target_feature(enable = $features)]
            fn entry(method: Method, w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
                // SAFETY: this function has the level's features.
                unsafe { matmul_format::<$simd, load::$format>(method, w, x, y) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(method, w, x, y) }
        }};
        // Last, as nothing else is tried where this does not parse.
        ($simd:ty, $features:literal) => { dtypes!(run $simd, $features) };
    }
    on_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn matmul_format<S: Simd, F: Format>(
    method: Method,
    w: &Matrix<'_>,
    x: &Q8Rows<'_>,
    y: &mut TileMut<'_>,
) {
    let (n_rows, n_tokens) = (w.n_rows(), y.n_rows());
    if method == Method::Dots {
        let mut t = 0;
        while t < n_tokens {
            // SAFETY: the caller's.
            t += unsafe {
                match n_tokens - t {
                    4.. => dots::<S, F, 4>(w, x, t, y),
                    2.. => dots::<S, F, 2>(w, x, t, y),
                    _ => dots::<S, F, 1>(w, x, t, y),
                }
            };
        }
        return;
    }
    let n_whole = n_rows / PAIR_ROWS * PAIR_ROWS;
    for r in (0..n_whole).step_by(TILE_ROWS) {
        let rows = r..n_whole.min(r + TILE_ROWS);
        // SAFETY: the caller's.
        unsafe { tile::<S, F>(&w.rows(rows), x, y, r) };
    }
    if n_whole < n_rows {
        // SAFETY: the caller's.
        unsafe { last_rows::<S, F>(&w.rows(n_whole..n_rows), x, y, n_whole) };
    }
}

/// Prefill of rows that are no whole pair of panels: one is computed beside `y`, which has them from column
/// `first` on.
///
/// # Safety
///
/// As [`matmul_format`].
#[inline(always)]
unsafe fn last_rows<S: Simd, F: Format>(
    w: &Matrix<'_>,
    x: &Q8Rows<'_>,
    y: &mut TileMut<'_>,
    first: usize,
) {
    let n_tokens = y.n_rows();
    let mut beside = [0.0; BESIDE_TOKENS * PAIR_ROWS];
    for t in (0..n_tokens).step_by(BESIDE_TOKENS) {
        let n = BESIDE_TOKENS.min(n_tokens - t);
        let mut target = TileMut::new(&mut beside[..n * PAIR_ROWS], PAIR_ROWS);
        // SAFETY: the caller's.
        unsafe { tile::<S, F>(w, &x.tokens(t..t + n), &mut target, 0) };
        for i in 0..n {
            y.row(t + i)[first..].copy_from_slice(&target.row(i)[..w.n_rows()]);
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

/// Decode: `y[t][r] = w[r] . x[t]` for the `N` tokens from `t` on, 16 rows at a time, a row in each lane. Gives
/// `N`.
///
/// # Safety
///
/// As [`matmul_format`].
#[inline(always)]
unsafe fn dots<S: Simd, F: Format, const N: usize>(
    w: &Matrix<'_>,
    x: &Q8Rows<'_>,
    t: usize,
    y: &mut TileMut<'_>,
) -> usize {
    let n_bytes = super_bytes(F::DTYPE);
    let n_rest = w.n_cols() % SUPER;
    let n_supers = w.n_cols().div_ceil(SUPER);
    for i in 0..N {
        assert!(y.row(t + i).len() >= w.n_rows());
        if n_supers == 0 {
            y.row(t + i).fill(0.0);
        }
    }
    if n_supers == 0 {
        return N;
    }
    let (x, stride) = x.tokens_from(t, N, n_supers);
    let mut tails = [[0; MAX_TAIL_BYTES]; PANEL_ROWS];
    for first in (0..w.n_rows()).step_by(PANEL_ROWS) {
        let n_rows = PANEL_ROWS.min(w.n_rows() - first);
        let mut rows: [&[u8]; PANEL_ROWS] = [&[]; PANEL_ROWS];
        for (r, row) in rows.iter_mut().enumerate() {
            // Past the last it is taken again and again.
            *row = w.row(first + r.min(n_rows - 1));
        }
        // SAFETY: the caller's.
        let mut sums = unsafe { [S::splat_float(0.0); N] };
        for s in 0..n_supers {
            let start = s * n_bytes;
            let is_tail = s + 1 == n_supers && n_rest > 0;
            let mut here = [core::ptr::null(); PANEL_ROWS];
            for ((here, row), tail) in here.iter_mut().zip(rows).zip(&mut tails) {
                *here = match is_tail {
                    true => {
                        *tail = weight_tail(row, start);
                        tail.as_ptr()
                    }
                    false => {
                        let here = row[start..][..n_bytes].as_ptr();
                        // Behind these rows lie the next ones.
                        prefetch::<0>(here.wrapping_add(PANEL_ROWS * row.len()), n_bytes);
                        here
                    }
                };
            }
            let n_blocks = if is_tail {
                n_rest / Q8_BLOCK
            } else {
                SUPER / Q8_BLOCK
            };
            // SAFETY: each pointer is to 256 weights, in the row or in a tail filled up; the input has as
            // many blocks of each token.
            unsafe {
                sums = add_supers::<S, F, N>(&here, x.add(s * stride), n_blocks, sums);
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let mut outputs = [0.0; PANEL_ROWS];
            // SAFETY: the caller's; there are 16 of them.
            unsafe { S::store(sums, outputs.as_mut_ptr()) };
            y.row(t + i)[first..][..n_rows].copy_from_slice(&outputs[..n_rows]);
        }
    }
    N
}

/// Adds the products of 256 weights of 16 rows with `n_blocks` blocks of `N` tokens' inputs.
///
/// # Safety
///
/// As [`matmul_format`]; each row points to 256 weights.
#[inline(always)]
unsafe fn add_supers<S: Simd, F: Format, const N: usize>(
    rows: &[*const u8; PANEL_ROWS],
    x: *const Q8Super,
    n_blocks: usize,
    sums: [S::Floats; N],
) -> [S::Floats; N] {
    // SAFETY: the caller's; all pointers stay inside the weights and the inputs.
    unsafe {
        let zero = S::splat_float(0.0);
        let mut scale = [zero; PANEL_ROWS];
        let mut min = [zero; PANEL_ROWS];
        let mut steps = [0.0_f32; PANEL_ROWS];
        // Of each token and each 64 columns the sums of four groups of 16, of four rows each.
        let mut groups = [[[S::splat_int(0); 4]; 4]; N];
        for quad in 0..4 {
            let mut parts = [[[S::splat_int(0); 4]; 4]; N];
            for j in 0..4 {
                let r = 4 * quad + j;
                let w = F::load::<S>(rows[r]);
                if F::Kind::INTEGER_SCALES {
                    (scale[r], steps[r]) = F::scales::<S>(rows[r]);
                } else {
                    scale[r] = w.scale;
                }
                if F::Kind::OFFSET.is_none() {
                    min[r] = w.min;
                }
                for (n, parts) in parts.iter_mut().enumerate() {
                    let q = (&raw const (*x.add(n)).q).cast::<i8>();
                    parts[0][j] = S::products::<F::Kind>(w.q[0], q);
                    parts[1][j] = S::products::<F::Kind>(w.q[1], q.add(64));
                    parts[2][j] = S::products::<F::Kind>(w.q[2], q.add(128));
                    parts[3][j] = S::products::<F::Kind>(w.q[3], q.add(192));
                }
            }
            for (groups, parts) in groups.iter_mut().zip(&parts) {
                for (groups, parts) in groups.iter_mut().zip(parts) {
                    groups[quad] = S::gather(*parts);
                }
            }
        }
        S::transpose(&mut scale);
        if F::Kind::OFFSET.is_none() {
            S::transpose(&mut min);
        }
        let mut all = sums;
        for (n, sums) in all.iter_mut().enumerate() {
            for groups in &mut groups[n] {
                S::transpose_quads(groups);
            }
            let x = x.add(n);
            let mut acc = if F::Kind::INTEGER_SCALES { zero } else { *sums };
            for b in 0..n_blocks {
                let x_scale = S::splat_float(super::scale(x, b));
                let (first, last) = (groups[n][b / 2][b % 2 * 2], groups[n][b / 2][b % 2 * 2 + 1]);
                if F::Kind::WIDE {
                    let offset = S::splat_int(super::offset_sum(x, b, 0, S::added::<F::Kind>()));
                    let products = S::int_floats(S::add_ints(S::add_ints(first, last), offset));
                    acc = S::mul_add(S::mul(products, scale[2 * b]), x_scale, acc);
                    if F::Kind::OFFSET.is_none() {
                        let x_sum = S::splat_float(super::sum(x, 2 * b));
                        acc = S::mul_add(min[2 * b], x_sum, acc);
                    }
                    continue;
                }
                let mut before = zero;
                for (half, products) in [first, last].into_iter().enumerate() {
                    let group = 2 * b + half;
                    let offset = super::offset_sum(x, b, 1 + half, S::added::<F::Kind>());
                    let products = S::int_floats(S::add_ints(products, S::splat_int(offset)));
                    if F::Kind::INTEGER_SCALES {
                        // Integers, and so is the sum of both halves.
                        before = S::mul_add(products, scale[group], before);
                        continue;
                    }
                    acc = S::mul_add(S::mul(products, scale[group]), x_scale, acc);
                    let x_sum = S::splat_float(super::sum(x, group));
                    acc = S::mul_add(min[group], x_sum, acc);
                }
                if F::Kind::INTEGER_SCALES {
                    acc = S::mul_add(before, x_scale, acc);
                }
            }
            *sums = match F::Kind::INTEGER_SCALES {
                true => S::mul_add(acc, S::floats(steps.as_ptr()), *sums),
                false => acc,
            };
        }
        all
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
    let n_bytes = super_bytes(F::DTYPE);
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
                    fill::<S, F>(panel.add(i), rows);
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
unsafe fn fill<S: Simd, F: Format>(p: *mut Panel<S>, rows: &[*const u8; PANEL_ROWS]) {
    let is_centered = F::Kind::OFFSET.is_some();
    let has_step = F::Kind::INTEGER_SCALES;
    let has_min = !is_centered;
    let starts_high = S::HIGH_STARTS && is_centered;
    // SAFETY: the fields are written through pointers into the panel, all of them before it is
    // taken for whole; the reads are the caller's.
    unsafe {
        for (r, row) in rows.iter().enumerate() {
            let w = F::load::<S>(*row);
            for (i, q) in w.q.into_iter().enumerate() {
                (&raw mut (*p).q[i][r]).write(q);
            }
            let (mut scale, mut min) = (w.scale, S::splat_float(0.0));
            if has_min {
                min = w.min;
            }
            let mut step = 1.0;
            if has_step {
                (scale, step) = F::scales::<S>(*row);
            }
            (&raw mut (*p).scale[r]).write(scale);
            (&raw mut (*p).min[r]).write(min);
            (&raw mut (*p).step).cast::<f32>().add(r).write(step);
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
