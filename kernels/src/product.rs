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
/// Columns of [`add_gram`] are a multiple of it.
pub const GRAM_COLS: usize = 16;

multilevel! {
    /// `y += x w` for `x` `[n_rows, n_inner]`, `w` `[n_inner, n_cols]` and `y` `[n_rows, n_cols]`.
    ///
    /// # Panics
    ///
    /// If the slices are not of these sizes, or `n_inner` is 0.
    pub fn add_product(level: Level, x: &[f32], w: &[f32], n_inner: usize, y: &mut [f32]) {
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
                    let sums = product(|r, k| rows[r][k], panel, |sum, x, w| sum + x * w);
                    for (r, sums) in sums[..n_left].iter().enumerate() {
                        let y = &mut y[(i + r) * n_cols + j..][..n];
                        y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
                    }
                }
            }
        }
    }
}

/// `g += x^T x` for `x` `[n_rows, n]` of float32 values and `g` `[n, n]`, of which only the values on
/// and above the diagonal are whole.
///
/// # Panics
///
/// If `n` is not a multiple of [`GRAM_COLS`], or the slices are not of these sizes.
pub fn add_gram(level: Level, x: &[f64], n: usize, g: &mut [f64]) {
    assert!(n.is_multiple_of(GRAM_COLS) && x.len().is_multiple_of(n) && g.len() == n * n);
    let has_fused = level != Level::Scalar || cfg!(target_arch = "aarch64");
    add_gram_on(level, has_fused, x, n, g);
}

multilevel! {
    fn add_gram_on(level: Level, has_fused: bool, x: &[f64], n: usize, g: &mut [f64]) {
        // Products of float32 values are exact in float64, so that both give the same.
        #[cfg(feature = "std")]
        if has_fused {
            return add_gram_by(|sum, x, y| x.mul_add(y, sum), x, n, g);
        }
        let _ = has_fused;
        add_gram_by(|sum, x, y| sum + x * y, x, n, g);
    }
}

#[inline(always)]
fn add_gram_by(add: impl Fn(f64, f64, f64) -> f64, x: &[f64], n: usize, g: &mut [f64]) {
    let mut panel = [[0.0; GRAM_COLS]; INNER];
    for x in x.chunks(INNER * n) {
        let panel = &mut panel[..x.len() / n];
        for j in (0..n).step_by(GRAM_COLS) {
            for (to, from) in panel.iter_mut().zip(x.chunks_exact(n)) {
                to.copy_from_slice(&from[j..j + GRAM_COLS]);
            }
            for i in (0..j + GRAM_COLS).step_by(ROWS) {
                let sums = product(|r, k| x[k * n + i + r], panel, &add);
                for (r, sums) in sums.iter().enumerate() {
                    let g = &mut g[(i + r) * n + j..][..GRAM_COLS];
                    g.iter_mut().zip(sums).for_each(|(g, sum)| *g += sum);
                }
            }
        }
    }
}

/// The sums over `k` of `x(r, k) w[k]`.
#[inline(always)]
fn product<T: Copy + Default, const N: usize>(
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
