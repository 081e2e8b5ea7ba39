//! The best approximation of a matrix by one of low rank.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use nalgebra::DMatrix;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use tandem_formats::adapter::Floats;
use tandem_kernels::{
    Level, Pool, SharedMatrix, WIDE_COLS, WideMatrix, add_gram, add_transposed_product,
    largest_magnitude, multiply, transpose, widen,
};

use crate::exec::Compute;

/// Turns of the power iteration for dense matrices; with each the directions that do not belong to
/// the largest singular values lose the square of their share.
const N_POWERS: usize = 8;
/// Directions followed besides those asked for, at least.
const OVERSAMPLING: usize = 8;
/// Directions followed are a multiple of it: whole columns of the kernels.
const DIRECTIONS: usize = 32;

/// A matrix `b a` by its factors.
#[derive(Default)]
pub(super) struct LowRankProduct {
    /// `[rank, n_cols]`.
    pub a: Floats,
    /// `[n_rows, rank]`.
    pub b: Floats,
}

fn matrix(x: &Floats) -> DMatrix<f64> {
    let values = x.values.iter().map(|x| f64::from(*x));
    DMatrix::from_row_iterator(x.n_rows, x.n_cols, values)
}

fn floats(x: &DMatrix<f64>) -> Floats {
    Floats {
        n_rows: x.nrows(),
        n_cols: x.ncols(),
        // nalgebra stores columns, we rows.
        values: x.transpose().iter().map(|x| *x as f32).collect(),
    }
}

/// The factors of `u s v^T` cut to `rank`: `b = u s`, `a = v^T`. `None` where a value is not finite,
/// or the decomposition does not converge.
fn cut(x: DMatrix<f64>, rank: usize) -> Option<LowRankProduct> {
    if !x.iter().all(|x| x.is_finite()) {
        return None;
    }
    let svd = x.try_svd(true, true, f64::EPSILON, 10_000)?;
    let (u, v_t) = (svd.u?, svd.v_t?);
    let n = rank.min(svd.singular_values.len());
    let mut b = u.columns(0, n).into_owned();
    for (mut column, s) in b.column_iter_mut().zip(svd.singular_values.iter()) {
        column *= *s;
    }
    Some(LowRankProduct {
        a: floats(&v_t.rows(0, n).into_owned()),
        b: floats(&b),
    })
}

impl LowRankProduct {
    /// `a a^T`.
    fn gram_a(&self, level: Level) -> Wide {
        let a = &self.a;
        gram(level, a.n_rows, a.n_cols, |columns, rows, width| {
            transpose(level, &a.values, a.n_cols, columns.start, rows, width);
        })
    }

    /// `b^T b`.
    fn gram_b(&self, level: Level) -> Wide {
        let (b, n) = (&self.b, self.b.n_cols);
        gram(level, n, b.n_rows, |run, rows, width| {
            widen(level, &b.values[run.start * n..run.end * n], n, rows, width);
        })
    }

    /// The inner products of two parts of `b a`, of which the first is made of the first `n_first` ranks: of
    /// the first with itself, of both, of the second with itself.
    pub(super) fn inner_products(&self, level: Level, n_first: usize) -> [f64; 3] {
        let (gram_a, gram_b) = (self.gram_a(level), self.gram_b(level));
        let mut sums = [0.0; 3];
        for i in 0..self.a.n_rows {
            for j in 0..self.a.n_rows {
                let part = usize::from(i >= n_first) + usize::from(j >= n_first);
                sums[part] += gram_a.at(i, j) * gram_b.at(i, j);
            }
        }
        // Both orders of both.
        [sums[0], sums[1] / 2.0, sums[2]]
    }
}

/// Cuts `b a` to `rank`: the best approximation, by way of the factors' Gram matrices, which
/// are small.
///
/// With `l l^T = a a^T` the right singular vectors of `b l` are those of `b a` seen from the rows of
/// `a`, and the eigenvectors `u` of `m = l^T (b^T b) l`; the eigenvalues `s^2` are the squares of its
/// singular values. The columns of `b l u / s` are orthonormal, and the result is `b a` projected
/// to those of the largest: `b' = b (l u)`, `a' = (s^-2 u^T l^T b^T b) a`. Whatever `l` is, that
/// is a projection, so that the small number added to the diagonal for its sake costs nothing but
/// directions as small.
pub(super) fn cut_product(
    level: Level,
    x: &LowRankProduct,
    rank: usize,
    cut_to: &mut LowRankProduct,
) -> Option<()> {
    let LowRankProduct { a, b } = x;
    let n = a.n_rows;
    if n > b.n_rows.min(a.n_cols) {
        // The Gram matrices would be larger than the product, and than all that they are made of.
        let mut dense = Floats::default();
        product(level, &b.values, &a.values, n, &mut dense);
        *cut_to = cut(matrix(&dense), rank)?;
        return Some(());
    }
    let (mut gram_a, mut gram_b) = (x.gram_a(level), x.gram_b(level));
    let shift = SHIFT * n as f64;
    // Rows of `a` of one length, and columns of `b` that make up for it, nothing for a row of zeros.
    let norms: Vec<f64> = (0..n).map(|i| libm::sqrt(gram_a.at(i, i))).collect();
    let inverse = |norm: &f64| if *norm > 0.0 { 1.0 / norm } else { 0.0 };
    let inverses: Vec<f64> = norms.iter().map(inverse).collect();
    for i in 0..n {
        for j in 0..n {
            *gram_a.at_mut(i, j) *= inverses[i] * inverses[j];
            *gram_b.at_mut(i, j) *= norms[i] * norms[j];
        }
        *gram_a.at_mut(i, i) += shift;
    }
    let l = DMatrix::from_fn(n, n, |i, j| gram_a.at(i, j))
        .cholesky()?
        .unpack();
    let l_t = Wide::from_fn(n, n, |i, j| l[(j, i)]);
    let l = Wide::from_fn(n, n, |i, j| l[(i, j)]);
    let m = l.transposed_product(level, &gram_b.transposed_product(level, &l));
    let m = DMatrix::from_fn(n, n, |i, j| m.at(i, j));
    let eigen = m.try_symmetric_eigen(f64::EPSILON, 10_000)?;
    let values = &eigen.eigenvalues;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| values[*j].total_cmp(&values[*i]));
    let largest = order.first().map_or(0.0, |i| values[*i]);
    if !largest.is_finite() {
        return None;
    }
    order.truncate(rank);
    // Of nothing at all something is left, too.
    let n_kept = order
        .partition_point(|i| values[*i] > shift * largest)
        .max(1);
    let kept = |j: usize| (values[order[j]] > shift * largest).then_some(order[j]);
    let u = Wide::from_fn(n, n_kept, |k, j| {
        kept(j).map_or(0.0, |i| eigen.eigenvectors[(k, i)])
    });
    let l_u = l_t.transposed_product(level, &u);
    let mut to_a = vec![0.0; n_kept * n];
    let mut to_b = vec![0.0; n * n_kept];
    let a_rows = l_u.transposed_product(level, &gram_b);
    for j in 0..n_kept {
        let square = kept(j).map_or(1.0, |i| values[i]);
        for k in 0..n {
            to_a[j * n + k] = (a_rows.at(j, k) / square * inverses[k]) as f32;
            to_b[k * n_kept + j] = (norms[k] * l_u.at(k, j)) as f32;
        }
    }
    product(level, &to_a, &a.values, n, &mut cut_to.a);
    product(level, &b.values, &to_b, n, &mut cut_to.b);
    Some(())
}

/// Times its order, what is added to a matrix with ones on its diagonal to make it positive definite;
/// eigenvalues of this share of the largest are rounding errors.
const SHIFT: f64 = 1e-14;

/// A matrix as the kernels for float64 want it: rows and columns are filled up with zeros.
struct Wide {
    n_cols: usize,
    values: Vec<f64>,
}

impl Wide {
    fn zeros(n_rows: usize, n_cols: usize) -> Wide {
        let [n_rows, n_cols] = [n_rows, n_cols].map(|n| n.next_multiple_of(WIDE_COLS));
        Wide {
            n_cols,
            values: vec![0.0; n_rows * n_cols],
        }
    }

    fn from_fn(n_rows: usize, n_cols: usize, value: impl Fn(usize, usize) -> f64) -> Wide {
        let mut x = Wide::zeros(n_rows, n_cols);
        for i in 0..n_rows {
            for j in 0..n_cols {
                *x.at_mut(i, j) = value(i, j);
            }
        }
        x
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n_cols + j]
    }

    fn at_mut(&mut self, i: usize, j: usize) -> &mut f64 {
        &mut self.values[i * self.n_cols + j]
    }

    fn view(&self) -> WideMatrix<'_> {
        WideMatrix {
            values: &self.values,
            n_cols: self.n_cols,
        }
    }

    /// `self^T y`.
    fn transposed_product(&self, level: Level, y: &Wide) -> Wide {
        let mut z = Wide::zeros(self.n_cols, y.n_cols);
        add_transposed_product(level, self.view(), y.view(), &mut z.values);
        z
    }
}

/// `x^T x` for `x` `[n_rows, n]`, of which `fill` writes a run of rows `[_, width]`.
fn gram(
    level: Level,
    n: usize,
    n_rows: usize,
    fill: impl Fn(Range<usize>, &mut [f64], usize),
) -> Wide {
    /// Rows written before they are read.
    const RUN: usize = 64;
    let mut gram = Wide::zeros(n, n);
    let width = gram.n_cols;
    let mut run = vec![0.0; RUN * width];
    for start in (0..n_rows).step_by(RUN) {
        let rows = start..n_rows.min(start + RUN);
        let run = &mut run[..rows.len() * width];
        fill(rows, run, width);
        add_gram(level, run, width, &mut gram.values);
    }
    for i in 0..n {
        for j in 0..i {
            *gram.at_mut(i, j) = gram.at(j, i);
        }
    }
    gram
}

/// `x w` for `x` `[_, n_inner]` and `w` `[n_inner, _]`.
fn product(level: Level, x: &[f32], w: &[f32], n_inner: usize, y: &mut Floats) {
    y.reshape(x.len() / n_inner, w.len() / n_inner);
    multiply(level, x, w, n_inner, &mut y.values);
}

/// Cuts a dense `x` to `rank`. Exact for small matrices; for others by subspace iteration from a
/// random start (Halko, Martinsson, Tropp, arXiv 0909.4061), nearly the best where singular values
/// are nearly equal, else the best. The pool must have no job; `x` is spoiled.
pub(super) fn cut_dense(
    compute: Compute<'_>,
    x: &mut Floats,
    rank: usize,
    cut_to: &mut LowRankProduct,
) -> Option<()> {
    let Compute { level, ref pool } = compute;
    let mut largest = 0.0;
    largest_magnitude(level, &x.values, &mut largest);
    if !largest.is_finite() {
        return None;
    }
    let rank = rank.min(x.n_rows).min(x.n_cols);
    let n_kept = (rank + OVERSAMPLING).next_multiple_of(DIRECTIONS);
    if n_kept >= x.n_rows.min(x.n_cols) {
        *cut_to = cut(matrix(x), rank)?;
        return Some(());
    }
    let mut random = Xoshiro256PlusPlus::seed_from_u64(0);
    let (mut p, mut q, mut p_t) = <(Floats, Floats, Floats)>::default();
    p.reshape(x.n_cols, n_kept);
    for value in &mut p.values {
        *value = random.next_u32() as f32 / u32::MAX as f32 - 0.5;
    }
    // The largest near 1, or sums of the very large and very small would leave the range.
    let exponent = libm::frexp(f64::from(largest)).1.clamp(-126, 126);
    let power = |exponent| libm::ldexp(1.0, exponent) as f32;
    x.values.iter_mut().for_each(|x| *x *= power(-exponent));
    for i in 0..=N_POWERS {
        if i > 0 {
            transposed(&p_t, &mut p);
            orthonormalize(level, &mut p, false)?;
        }
        product_on(pool, level, x, &p, &mut q);
        orthonormalize(level, &mut q, i == N_POWERS)?;
        let mut q_t = Floats::default();
        transposed(&q, &mut q_t);
        product_on(pool, level, &q_t, x, &mut p_t);
    }
    cut_product(level, &LowRankProduct { a: p_t, b: q }, rank, cut_to)?;
    let values = cut_to.b.values.iter_mut();
    values.for_each(|b| *b *= power(exponent));
    Some(())
}

/// Makes the columns of `x` orthonormal by Cholesky factors of its Gram matrix, twice, as the first
/// time leaves errors that grow with the condition (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015,
/// "Roundoff error analysis of the CholeskyQR2 algorithm").
///
/// Of columns that depend on those before them the first time leaves rounding errors only, which may
/// depend on the others, too. The iteration does not mind them, and finds what is small among them;
/// at its end `drops_errors` sets them to zero.
fn orthonormalize(level: Level, x: &mut Floats, drops_errors: bool) -> Option<()> {
    let n = x.n_cols;
    for is_second in [false, true] {
        let gram = gram(level, n, x.n_rows, |run, rows, width| {
            widen(level, &x.values[run.start * n..run.end * n], n, rows, width);
        });
        let inverse = |i: usize| match libm::sqrt(gram.at(i, i)) {
            0.0 => 0.0,
            norm => 1.0 / norm,
        };
        let inverses: Vec<f64> = (0..n).map(inverse).collect();
        let shift = SHIFT * n as f64;
        let correlations = DMatrix::from_fn(n, n, |i, j| {
            let correlation = gram.at(i, j) * inverses[i] * inverses[j];
            if i == j {
                correlation + shift
            } else {
                correlation
            }
        });
        // With `l l^T` the Gram matrix of the columns brought to length 1, these times `l^-T`.
        let l = correlations.cholesky()?.unpack();
        let inverse = l.solve_lower_triangular(&DMatrix::identity(n, n))?;
        let drops = |j: usize| drops_errors && is_second && l[(j, j)] < LEAST_NEW;
        let to: Vec<f32> = (0..n * n)
            .map(|i| (i / n, i % n))
            .map(|(i, j)| match drops(j) {
                true => 0.0,
                false => (inverse[(j, i)] * inverses[i]) as f32,
            })
            .collect();
        let from = core::mem::take(&mut x.values);
        x.values.resize(from.len(), 0.0);
        multiply(level, &from, &to, n, &mut x.values);
    }
    Some(())
}

/// The share of a column that is not in those before it, where these are orthonormal but for rounding
/// errors and it is one of them.
const LEAST_NEW: f64 = 1e-2;

/// `x w`, rows of which are shared among the threads.
fn product_on(pool: &dyn Pool, level: Level, x: &Floats, w: &Floats, y: &mut Floats) {
    /// Rows at once: so few that their part of a row of `x` stays in a core's cache.
    const ROWS: usize = 32;
    y.reshape(x.n_rows, w.n_cols);
    let n_at_once = x.n_rows.div_ceil(pool.n_threads()).clamp(1, ROWS);
    let n_at_once = n_at_once.max(x.n_rows.div_ceil(SharedMatrix::<f32>::MAX_TILES));
    let n_tasks = x.n_rows.div_ceil(n_at_once);
    let tiles = SharedMatrix::new(&mut y.values, w.n_cols, n_at_once, w.n_cols);
    pool.run(n_tasks, &|i| {
        let rows = i * n_at_once..x.n_rows.min((i + 1) * n_at_once);
        let x = &x.values[rows.start * x.n_cols..rows.end * x.n_cols];
        multiply(level, x, &w.values, w.n_rows, tiles.tile(i, 0).all());
    });
}

fn transposed(x: &Floats, y: &mut Floats) {
    /// Rows and columns of a part, whose lines stay in the cache.
    const PART: usize = 16;
    y.reshape(x.n_cols, x.n_rows);
    for i in (0..x.n_rows).step_by(PART) {
        for j in (0..x.n_cols).step_by(PART) {
            for i in i..x.n_rows.min(i + PART) {
                for j in j..x.n_cols.min(j + PART) {
                    y.values[j * x.n_rows + i] = x.values[i * x.n_cols + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_kernels::Serial;

    use super::*;

    fn random(n_rows: usize, n_cols: usize, seed: u64) -> Floats {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut next = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
        Floats {
            n_rows,
            n_cols,
            values: (0..n_rows * n_cols).map(|_| next()).collect(),
        }
    }

    fn product_cut(a: &Floats, b: &Floats, rank: usize) -> LowRankProduct {
        let mut cut = LowRankProduct::default();
        let (a, b) = (a.clone(), b.clone());
        cut_product(Level::detect(), &LowRankProduct { a, b }, rank, &mut cut).unwrap();
        cut
    }

    fn compute() -> Compute<'static> {
        Compute::new(Level::detect(), &Serial)
    }

    fn dense_cut(mut x: Floats, rank: usize) -> LowRankProduct {
        let mut cut = LowRankProduct::default();
        cut_dense(compute(), &mut x, rank, &mut cut).unwrap();
        cut
    }

    /// What is left of `x` beyond `b a`, squared.
    fn rest(x: &DMatrix<f64>, found: &LowRankProduct) -> f64 {
        (x - matrix(&found.b) * matrix(&found.a)).norm_squared()
    }

    /// The same for the best `b a`: the sum of the smaller singular values' squares.
    fn least_rest(x: &DMatrix<f64>, rank: usize) -> f64 {
        let values = x.clone().singular_values();
        values.iter().skip(rank).map(|s| s * s).sum()
    }

    #[test]
    fn products_and_small_matrices_are_cut_exactly() {
        let (a, b) = (random(9, 40, 1), random(30, 9, 2));
        let dense = matrix(&b) * matrix(&a);
        for rank in [1, 4, 9, 20] {
            let least = least_rest(&dense, rank);
            for found in [product_cut(&a, &b, rank), dense_cut(floats(&dense), rank)] {
                assert!(found.a.n_rows <= rank && found.a.n_rows == found.b.n_cols);
                assert!(rest(&dense, &found) <= least * 1.00001 + 1e-9);
            }
        }
    }

    #[test]
    fn what_lies_in_few_directions_keeps_them_only() {
        // The adapters' factors are nearly the same, as after a start from the same A.
        let mut a = random(3, 40, 1);
        let near: Vec<f32> = a.values.iter().map(|x| x * (1.0 + 1e-6)).collect();
        a.values.extend(near);
        a.n_rows = 6;
        let b = random(30, 6, 2);
        let dense = matrix(&b) * matrix(&a);
        let found = product_cut(&a, &b, 6);
        assert!(rest(&dense, &found) <= 1e-12 * dense.norm_squared());
        let nothing = Floats {
            values: vec![0.0; 180],
            n_rows: 30,
            n_cols: 6,
        };
        let LowRankProduct { a, b } = product_cut(&a, &nothing, 6);
        assert_eq!((a.n_rows, b.n_cols), (1, 1));
        assert!(a.values.iter().chain(&b.values).all(|x| *x == 0.0));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
            // With more ranks than outputs, and with fewer.
            for (n_out, rank) in [(2, 5), (30, 5)] {
                let (mut a, mut b) = (random(rank, 40, 1), random(n_out, rank, 2));
                a.values[3] = bad;
                b.values[1] = f32::MAX;
                let mut cut = LowRankProduct::default();
                let done = cut_product(Level::detect(), &LowRankProduct { a, b }, 2, &mut cut);
                let is_finite = |x: &Floats| x.values.iter().all(|x| x.is_finite());
                assert!(done.is_none() || !is_finite(&cut.a) || !is_finite(&cut.b));
            }
            let mut dense = random(100, 90, 3);
            dense.values[7] = bad;
            let mut cut = LowRankProduct::default();
            let done = cut_dense(compute(), &mut dense, 3, &mut cut);
            assert!(bad == f32::MAX || done.is_none());
        }
    }

    #[test]
    fn many_copies_of_a_factor_are_cut() {
        let (one, b) = (random(60, 700, 1), random(650, 300, 2));
        let a = Floats {
            n_rows: 300,
            n_cols: 700,
            values: one.values.repeat(5),
        };
        let dense = matrix(&b) * matrix(&a);
        let found = product_cut(&a, &b, 100);
        assert_eq!(found.a.n_rows, 60);
        assert!(rest(&dense, &found) <= 1e-11 * dense.norm_squared());
    }

    #[test]
    fn factors_of_very_different_sizes_are_cut() {
        let (mut a, mut b) = (random(4, 40, 1), random(30, 4, 2));
        // Products of one size.
        for (k, size) in [1e15, 1e-15, 1e5, 1.0].into_iter().enumerate() {
            let a = a.values[k * 40..][..40].iter_mut();
            a.for_each(|x| *x *= size);
            let b = b.values[k..].iter_mut().step_by(4);
            b.for_each(|x| *x /= size);
        }
        let dense = matrix(&b) * matrix(&a);
        for rank in [2, 4] {
            let least = least_rest(&dense, rank);
            let allowed = least * 1.00001 + 1e-12 * dense.norm_squared();
            assert!(rest(&dense, &product_cut(&a, &b, rank)) <= allowed);
        }
    }

    #[test]
    fn large_matrices_are_cut_nearly_as_well_as_can_be() {
        // Singular values of a random matrix are close to each other: the worst case.
        let x = random(120, 100, 3);
        let found = dense_cut(x.clone(), 5);
        let least = least_rest(&matrix(&x), 5);
        assert!(rest(&matrix(&x), &found) <= 1.002 * least);
    }

    #[test]
    fn large_matrices_of_few_or_fading_directions_keep_them() {
        let (a, b) = (random(3, 400, 1), random(300, 3, 2));
        let few = floats(&(matrix(&b) * matrix(&a)));
        let found = dense_cut(few.clone(), 20);
        assert!(rest(&matrix(&few), &found) <= 1e-12 * matrix(&few).norm_squared());

        let (mut a, b) = (random(150, 400, 3), random(300, 150, 4));
        for (i, row) in a.values.chunks_exact_mut(400).enumerate() {
            row.iter_mut().for_each(|x| *x *= 0.8_f32.powi(i as i32));
        }
        let fading = floats(&(matrix(&b) * matrix(&a)));
        for rank in [5, 20] {
            let least = least_rest(&matrix(&fading), rank);
            let found = rest(&matrix(&fading), &dense_cut(fading.clone(), rank));
            assert!(found <= 1.000_01 * least + 1e-12 * matrix(&fading).norm_squared());
        }

        let nothing = Floats {
            n_rows: 300,
            n_cols: 400,
            values: vec![0.0; 300 * 400],
        };
        let LowRankProduct { a, b } = dense_cut(nothing, 5);
        assert!(a.values.iter().chain(&b.values).all(|x| *x == 0.0));
    }

    #[test]
    fn large_matrices_with_few_rows_or_patterns_of_rows_are_cut() {
        let cut_exactly = |x: &Floats, rank| {
            let found = dense_cut(x.clone(), rank);
            let least = least_rest(&matrix(x), rank);
            let allowed = least * 1.00001 + 1e-11 * matrix(x).norm_squared();
            assert!(rest(&matrix(x), &found) <= allowed, "rank {rank}");
        };
        // Directions that are followed beyond those there are have no place to go.
        for n_rows in [1, 5, 10] {
            let mut x = random(300, 400, 1);
            for (i, row) in x.values.chunks_exact_mut(400).enumerate() {
                if i % 30 != 7 || i / 30 >= n_rows {
                    row.fill(0.0);
                }
            }
            for size in [1.0, 1e-34, 1e37] {
                let mut x = x.clone();
                x.values.iter_mut().for_each(|x| *x *= size);
                if size == 1.0 {
                    cut_exactly(&x, n_rows);
                    cut_exactly(&x, 3);
                }
                let found = dense_cut(x.clone(), n_rows);
                let all = matrix(&x);
                let square = |x: DMatrix<f64>| (x / f64::from(size)).norm_squared();
                let rest = square(&all - matrix(&found.b) * matrix(&found.a));
                assert!(rest <= 1e-11 * square(all), "{n_rows} rows of {size}");
            }
        }
        let (a, patterns) = (random(2, 400, 2), random(16, 2, 3));
        let b = Floats {
            n_rows: 304,
            n_cols: 2,
            values: patterns.values.repeat(19),
        };
        cut_exactly(&floats(&(matrix(&b) * matrix(&a))), 5);
    }

    #[test]
    fn tall_and_wide_factors_are_cut() {
        // More ranks than outputs.
        let (a, b) = (random(12, 40, 4), random(8, 12, 5));
        let dense = matrix(&b) * matrix(&a);
        let found = product_cut(&a, &b, 3);
        assert!(rest(&dense, &found) <= least_rest(&dense, 3) * 1.00001 + 1e-9);
    }
}
