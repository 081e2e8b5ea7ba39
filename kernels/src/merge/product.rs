//! Products of dense matrices of floats, for merges that look at adapters as a whole; the results are
//! the same to the bit at every level.

use core::array;

use crate::Level;
use crate::level::multilevel;

/// Rows of a product whose sums are kept in registers.
const ROWS: usize = 4;
/// Its columns, in float32.
const COLS: usize = 32;
/// Rows of `w` that are copied to lie beside each other.
const INNER: usize = 64;
/// What the columns of products in float64 are a multiple of.
pub const WIDE_COLS: usize = 16;

/// Whether two vectors of 512 bits are a row's sums, or two of 256.
fn is_wide(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    if matches!(level, Level::Avx512(_)) {
        return true;
    }
    let _ = level;
    false
}

multilevel! {
    /// `y = x w` for `x` `[n_rows, n_inner]`, `w` `[n_inner, n_cols]` and `y` `[n_rows, n_cols]`.
    ///
    /// # Panics
    ///
    /// If the slices are not of these sizes, or `n_inner` is 0.
    pub fn multiply(level: Level, x: &[f32], w: &[f32], n_inner: usize, y: &mut [f32]) {
        let (n_rows, n_cols) = (x.len() / n_inner, w.len() / n_inner);
        assert!(x.len() == n_rows * n_inner && w.len() == n_inner * n_cols);
        assert!(y.len() == n_rows * n_cols);
        let mut panel = [[0.0; COLS]; INNER];
        for k in (0..n_inner).step_by(INNER) {
            let panel = &mut panel[..INNER.min(n_inner - k)];
            for j in (0..n_cols).step_by(COLS) {
                let n = COLS.min(n_cols - j);
                for (to, from) in panel.iter_mut().zip(w[k * n_cols..].chunks_exact(n_cols)) {
                    to[..n].copy_from_slice(&from[j..j + n]);
                }
                for i in (0..n_rows).step_by(ROWS) {
                    let n_left = ROWS.min(n_rows - i);
                    // The last rows twice where there are not enough.
                    let rows: [&[f32]; ROWS] =
                        array::from_fn(|r| &x[(i + r.min(n_left - 1)) * n_inner + k..]);
                    let sums = tile::<_, COLS, ROWS>(|r, k| rows[r][k], panel, |sum, x, w| sum + x * w);
                    for (r, sums) in sums[..n_left].iter().enumerate() {
                        let y = &mut y[(i + r) * n_cols + j..][..n];
                        match k {
                            0 => y.copy_from_slice(&sums[..n]),
                            _ => y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
                        }
                    }
                }
            }
        }
    }
}

/// Rows that are transposed together: a line of a cache.
const LINE: usize = 8;

multilevel! {
    /// The columns of `x` `[_, n_cols]` from `first` on as rows of `y` `[_, width]`, as many as it has;
    /// what is beyond the rows of `x` stays as it is.
    ///
    /// # Panics
    ///
    /// If `x` has fewer columns, or more rows than `width`.
    pub fn transpose(
        level: Level,
        x: &[f32],
        n_cols: usize,
        first: usize,
        y: &mut [f64],
        width: usize,
    ) {
        let (n_rows, n) = (x.len() / n_cols, y.len() / width);
        assert!(n_rows <= width && first + n <= n_cols);
        for k in (0..n_rows).step_by(LINE) {
            let n_left = LINE.min(n_rows - k);
            // The last row again where there are not enough.
            let rows: [&[f32]; LINE] =
                array::from_fn(|r| &x[(k + r.min(n_left - 1)) * n_cols + first..][..n]);
            for (c, y) in y.chunks_exact_mut(width).enumerate() {
                match y[k..].first_chunk_mut::<LINE>() {
                    Some(line) if n_left == LINE => {
                        for (y, row) in line.iter_mut().zip(rows) {
                            *y = f64::from(row[c]);
                        }
                    }
                    _ => {
                        for (y, row) in y[k..].iter_mut().zip(&rows[..n_left]) {
                            *y = f64::from(row[c]);
                        }
                    }
                }
            }
        }
    }
}

multilevel! {
    /// The values of `x` `[n_rows, n_cols]` at the beginnings of the rows of `y` `[n_rows, width]`.
    ///
    /// # Panics
    ///
    /// If `x` has more columns than `width`.
    pub fn widen(level: Level, x: &[f32], n_cols: usize, y: &mut [f64], width: usize) {
        for (x, y) in x.chunks_exact(n_cols).zip(y.chunks_exact_mut(width)) {
            for (x, y) in x.iter().zip(&mut y[..n_cols]) {
                *y = f64::from(*x);
            }
        }
    }
}

/// `g += x^T x` for `x` `[n_rows, n]` of float32 values and `g` `[n, n]`, of which only the values on
/// and above the diagonal are whole.
///
/// # Panics
///
/// If `n` is not a multiple of [`WIDE_COLS`], or the slices are not of these sizes.
pub fn add_gram(level: Level, x: &[f64], n: usize, g: &mut [f64]) {
    let how = How {
        // Products of float32 values are exact in float64, so that both give the same.
        is_fused: level != Level::Scalar || cfg!(target_arch = "aarch64"),
        is_wide: is_wide(level),
        is_gram: true,
    };
    let x = WideMatrix {
        values: x,
        n_cols: n,
    };
    add_wide(level, how, x, x, g);
}

/// A matrix in float64.
#[derive(Clone, Copy, Debug)]
pub struct WideMatrix<'a> {
    /// Row by row.
    pub values: &'a [f64],
    /// Columns.
    pub n_cols: usize,
}

/// `z += x^T y` for `x` `[n_inner, n_rows]`, `y` `[n_inner, n_cols]` and `z` `[n_rows, n_cols]`.
///
/// # Panics
///
/// If `n_rows` or `n_cols` is not a multiple of [`WIDE_COLS`], or the slices are not of these sizes.
pub fn add_transposed_product(level: Level, x: WideMatrix<'_>, y: WideMatrix<'_>, z: &mut [f64]) {
    let how = How {
        is_fused: false,
        is_wide: is_wide(level),
        is_gram: false,
    };
    add_wide(level, how, x, y, z);
}

#[derive(Clone, Copy)]
struct How {
    is_fused: bool,
    is_wide: bool,
    /// Whether what is below the diagonal may be left out.
    is_gram: bool,
}

multilevel! {
    fn add_wide(
        level: Level,
        how: How,
        x: WideMatrix<'_>,
        y: WideMatrix<'_>,
        z: &mut [f64],
    ) {
        let (n_rows, n_cols) = (x.n_cols, y.n_cols);
        assert!(n_rows.is_multiple_of(WIDE_COLS) && n_cols.is_multiple_of(WIDE_COLS));
        let n_inner = x.values.len() / n_rows;
        assert!(x.values.len() == n_inner * n_rows && y.values.len() == n_inner * n_cols);
        assert!(z.len() == n_rows * n_cols);
        #[cfg(feature = "std")]
        if how.is_fused {
            let add = |sum, x: f64, y| x.mul_add(y, sum);
            return match how.is_wide {
                true => add_in::<16, 8>(add, how, x, y, z),
                false => add_in::<8, 4>(add, how, x, y, z),
            };
        }
        let _ = how.is_fused;
        let add = |sum, x, y| sum + x * y;
        match how.is_wide {
            true => add_in::<16, 8>(add, how, x, y, z),
            false => add_in::<8, 4>(add, how, x, y, z),
        }
    }
}

/// [`add_wide`], of which `ROWS` times `COLS` sums are kept in registers.
#[inline(always)]
fn add_in<const COLS: usize, const ROWS: usize>(
    add: impl Fn(f64, f64, f64) -> f64,
    how: How,
    x: WideMatrix<'_>,
    y: WideMatrix<'_>,
    z: &mut [f64],
) {
    let (n_rows, n_cols) = (x.n_cols, y.n_cols);
    let (x, y) = (x.values, y.values);
    let mut panel = [[0.0; COLS]; INNER];
    for (x, y) in x.chunks(INNER * n_rows).zip(y.chunks(INNER * n_cols)) {
        let panel = &mut panel[..y.len() / n_cols];
        for j in (0..n_cols).step_by(COLS) {
            for (to, from) in panel.iter_mut().zip(y.chunks_exact(n_cols)) {
                to.copy_from_slice(&from[j..j + COLS]);
            }
            let n_rows_used = if how.is_gram { j + COLS } else { n_rows };
            for i in (0..n_rows_used).step_by(ROWS) {
                let x = |r: usize, k: usize| x[k * n_rows + i..][..ROWS][r];
                let sums = tile::<_, COLS, ROWS>(x, panel, &add);
                for (r, sums) in sums.iter().enumerate() {
                    let z = &mut z[(i + r) * n_cols + j..][..COLS];
                    z.iter_mut().zip(sums).for_each(|(z, sum)| *z += sum);
                }
            }
        }
    }
}

/// The sums over `k` of `x(r, k) w[k]`.
#[inline(always)]
fn tile<T: Copy + Default, const N: usize, const ROWS: usize>(
    x: impl Fn(usize, usize) -> T,
    w: &[[T; N]],
    add: impl Fn(T, T, T) -> T,
) -> [[T; N]; ROWS] {
    let mut sums = [[T::default(); N]; ROWS];
    for (k, w) in w.iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = x(r, k);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = add(*sum, x, *w);
            }
        }
    }
    sums
}
