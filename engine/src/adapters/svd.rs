//! The best approximation of a matrix by one of low rank.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use nalgebra::DMatrix;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use tandem_formats::adapter::{Floats, Lora};
use tandem_kernels::{GRAM_COLS, Level, add_gram, add_product};

/// Turns of the power iteration for dense matrices; with each the directions that do not belong to
/// the largest singular values lose the square of their share.
const N_POWERS: usize = 8;
/// Directions followed besides those asked for.
const OVERSAMPLING: usize = 8;

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
fn cut(x: DMatrix<f64>, rank: usize) -> Option<(DMatrix<f64>, DMatrix<f64>)> {
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
    Some((b, v_t.rows(0, n).into_owned()))
}

/// Cuts `scale b a` to `rank`: the best approximation, by way of the factors' Gram matrices, which
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
    lora: &Lora,
    rank: usize,
    (cut_a, cut_b): (&mut Floats, &mut Floats),
) -> Option<()> {
    let (Lora { a, b, .. }, n) = (lora, lora.a.n_rows);
    if n > b.n_rows.min(a.n_cols) {
        // The Gram matrices would be larger than the product, and than all that they are made of.
        let mut dense = Floats::default();
        product(level, (&b.values, &a.values), n, &mut dense);
        let (b, a) = cut(matrix(&dense) * f64::from(lora.scale), rank)?;
        (*cut_a, *cut_b) = (floats(&a), floats(&b));
        return Some(());
    }
    let mut gram_a = gram(level, n, a.n_cols, |columns, rows, width| {
        for (k, a) in a.values.chunks_exact(a.n_cols).enumerate() {
            let column = rows[k..].iter_mut().step_by(width);
            column
                .zip(&a[columns.clone()])
                .for_each(|(x, a)| *x = f64::from(*a));
        }
    });
    let mut gram_b = gram(level, n, b.n_rows, |run, rows, width| {
        let b = &b.values[run.start * n..run.end * n];
        for (row, b) in rows.chunks_exact_mut(width).zip(b.chunks_exact(n)) {
            row.iter_mut().zip(b).for_each(|(x, b)| *x = f64::from(*b));
        }
    });
    let shift = SHIFT * n as f64;
    // Rows of `a` of one length, and columns of `b` that make up for it, nothing for a row of zeros.
    let norms = gram_a.diagonal().map(libm::sqrt);
    let inverses = norms.map(|norm| if norm > 0.0 { 1.0 / norm } else { 0.0 });
    for i in 0..n {
        for j in 0..n {
            gram_a[(i, j)] *= inverses[i] * inverses[j];
            gram_b[(i, j)] *= norms[i] * norms[j];
        }
        gram_a[(i, i)] += shift;
    }
    let l = gram_a.cholesky()?.unpack();
    let lb = l.tr_mul(&gram_b);
    let eigen = (&lb * &l).try_symmetric_eigen(f64::EPSILON, 10_000)?;
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
    let mut to_a = vec![0.0; n_kept * n];
    let mut to_b = vec![0.0; n * n_kept];
    let kept = order
        .into_iter()
        .take_while(|i| values[*i] > shift * largest);
    for (j, i) in kept.enumerate() {
        let u = eigen.eigenvectors.column(i);
        let (a, b) = (lb.tr_mul(&u) / values[i], &l * u);
        for k in 0..n {
            to_a[j * n + k] = (a[k] * inverses[k]) as f32;
            to_b[k * n_kept + j] = (f64::from(lora.scale) * norms[k] * b[k]) as f32;
        }
    }
    product(level, (&to_a, &a.values), n, cut_a);
    product(level, (&b.values, &to_b), n, cut_b);
    Some(())
}

/// Times its order, what is added to a matrix with ones on its diagonal to make it positive definite;
/// eigenvalues of this share of the largest are rounding errors.
const SHIFT: f64 = 1e-14;

/// `x^T x` for `x` `[n_rows, n]`, of which `fill` writes a run of rows `[_, width]`, where a row is
/// filled up with zeros.
fn gram(
    level: Level,
    n: usize,
    n_rows: usize,
    fill: impl Fn(Range<usize>, &mut [f64], usize),
) -> DMatrix<f64> {
    /// Rows written before they are read.
    const RUN: usize = 64;
    let width = n.next_multiple_of(GRAM_COLS);
    let mut run = vec![0.0; RUN * width];
    let mut gram = vec![0.0; width * width];
    for start in (0..n_rows).step_by(RUN) {
        let rows = start..n_rows.min(start + RUN);
        let run = &mut run[..rows.len() * width];
        fill(rows, run, width);
        add_gram(level, run, width, &mut gram);
    }
    DMatrix::from_fn(n, n, |i, j| gram[i.min(j) * width + i.max(j)])
}

/// `x w` for `x` `[_, n_inner]` and `w` `[n_inner, _]`.
pub(super) fn product(level: Level, (x, w): (&[f32], &[f32]), n_inner: usize, y: &mut Floats) {
    (y.n_rows, y.n_cols) = (x.len() / n_inner, w.len() / n_inner);
    y.values.clear();
    y.values.resize(y.n_rows * y.n_cols, 0.0);
    add_product(level, x, w, n_inner, &mut y.values);
}

/// Cuts a dense `x` to `rank`. Exact for small matrices; for others by subspace iteration from a
/// random start (Halko, Martinsson, Tropp, arXiv 0909.4061), nearly the best where singular values
/// are nearly equal, else the best.
pub(super) fn cut_dense(x: &Floats, rank: usize) -> Option<(Floats, Floats)> {
    if !x.values.iter().all(|x| x.is_finite()) {
        return None;
    }
    let x = matrix(x);
    let rank = rank.min(x.nrows()).min(x.ncols());
    let n_kept = 2 * rank + OVERSAMPLING;
    if n_kept >= x.nrows().min(x.ncols()) {
        let (b, a) = cut(x, rank)?;
        return Some((floats(&a), floats(&b)));
    }
    let mut random = Xoshiro256PlusPlus::seed_from_u64(0);
    let start: Vec<f64> = (0..x.ncols() * n_kept)
        .map(|_| random.next_u32() as f64 / f64::from(u32::MAX) - 0.5)
        .collect();
    let mut q = (&x * DMatrix::from_vec(x.ncols(), n_kept, start)).qr().q();
    for _ in 0..N_POWERS {
        let p = x.tr_mul(&q).qr().q();
        q = (&x * p).qr().q();
    }
    let (b, a) = cut(q.tr_mul(&x), rank)?;
    Some((floats(&a), floats(&(q * b))))
}

#[cfg(test)]
mod tests {
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

    fn product_cut(lora: &Lora, rank: usize) -> (Floats, Floats) {
        let (mut a, mut b) = Default::default();
        cut_product(Level::detect(), lora, rank, (&mut a, &mut b)).unwrap();
        (a, b)
    }

    /// What is left of `x` beyond `b a`, squared.
    fn rest(x: &DMatrix<f64>, (a, b): &(Floats, Floats)) -> f64 {
        (x - matrix(b) * matrix(a)).norm_squared()
    }

    /// The same for the best `b a`: the sum of the smaller singular values' squares.
    fn least_rest(x: &DMatrix<f64>, rank: usize) -> f64 {
        let values = x.clone().singular_values();
        values.iter().skip(rank).map(|s| s * s).sum()
    }

    #[test]
    fn products_and_small_matrices_are_cut_exactly() {
        let lora = Lora {
            module: Default::default(),
            a: random(9, 40, 1),
            b: random(30, 9, 2),
            scale: 1.5,
        };
        let dense = matrix(&lora.b) * matrix(&lora.a) * 1.5;
        for rank in [1, 4, 9, 20] {
            let least = least_rest(&dense, rank);
            for found in [
                product_cut(&lora, rank),
                cut_dense(&floats(&dense), rank).unwrap(),
            ] {
                assert!(found.0.n_rows <= rank && found.0.n_rows == found.1.n_cols);
                assert!(rest(&dense, &found) <= least * 1.00001 + 1e-9);
            }
        }
    }

    #[test]
    fn what_lies_in_few_directions_keeps_them_only() {
        let lora = |b: Floats| Lora {
            module: Default::default(),
            // The adapters' factors are nearly the same, as after a start from the same A.
            a: {
                let mut a = random(3, 40, 1);
                let near: Vec<f32> = a.values.iter().map(|x| x * (1.0 + 1e-6)).collect();
                a.values.extend(near);
                Floats { n_rows: 6, ..a }
            },
            b,
            scale: 1.0,
        };
        let three = lora(random(30, 6, 2));
        let dense = matrix(&three.b) * matrix(&three.a);
        let found = product_cut(&three, 6);
        assert!(rest(&dense, &found) <= 1e-12 * dense.norm_squared());
        let nothing = lora(Floats {
            values: vec![0.0; 180],
            n_rows: 30,
            n_cols: 6,
        });
        let (a, b) = product_cut(&nothing, 6);
        assert_eq!((a.n_rows, b.n_cols), (1, 1));
        assert!(a.values.iter().chain(&b.values).all(|x| *x == 0.0));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
            // With more ranks than outputs, and with fewer.
            for (n_out, rank) in [(2, 5), (30, 5)] {
                let mut lora = Lora {
                    module: Default::default(),
                    a: random(rank, 40, 1),
                    b: random(n_out, rank, 2),
                    scale: f32::MAX,
                };
                lora.a.values[3] = bad;
                lora.b.values[1] = f32::MAX;
                let (mut a, mut b) = Default::default();
                let cut = cut_product(Level::detect(), &lora, 2, (&mut a, &mut b));
                let is_finite = |x: &Floats| x.values.iter().all(|x| x.is_finite());
                assert!(cut.is_none() || !is_finite(&a) || !is_finite(&b));
            }
            let mut dense = random(100, 90, 3);
            dense.values[7] = bad;
            assert!(bad == f32::MAX || cut_dense(&dense, 3).is_none());
        }
    }

    #[test]
    fn many_copies_of_a_factor_are_cut() {
        let (a, b) = (random(60, 700, 1), random(650, 300, 2));
        let copies = Lora {
            module: Default::default(),
            a: Floats {
                n_rows: 300,
                n_cols: 700,
                values: a.values.repeat(5),
            },
            b,
            scale: 1.0,
        };
        let dense = matrix(&copies.b) * matrix(&copies.a);
        let found = product_cut(&copies, 100);
        assert_eq!(found.0.n_rows, 60);
        assert!(rest(&dense, &found) <= 1e-11 * dense.norm_squared());
    }

    #[test]
    fn factors_of_very_different_sizes_are_cut() {
        let mut lora = Lora {
            module: Default::default(),
            a: random(4, 40, 1),
            b: random(30, 4, 2),
            scale: 2.0,
        };
        // Products of one size.
        for (k, size) in [1e15, 1e-15, 1e5, 1.0].into_iter().enumerate() {
            lora.a.values[k * 40..][..40]
                .iter_mut()
                .for_each(|x| *x *= size);
            lora.b.values[k..]
                .iter_mut()
                .step_by(4)
                .for_each(|x| *x /= size);
        }
        let dense = matrix(&lora.b) * matrix(&lora.a) * 2.0;
        for rank in [2, 4] {
            let least = least_rest(&dense, rank);
            let allowed = least * 1.00001 + 1e-12 * dense.norm_squared();
            assert!(rest(&dense, &product_cut(&lora, rank)) <= allowed);
        }
    }

    #[test]
    fn large_matrices_are_cut_nearly_as_well_as_can_be() {
        // Singular values of a random matrix are close to each other: the worst case.
        let x = random(120, 100, 3);
        let found = cut_dense(&x, 5).unwrap();
        let least = least_rest(&matrix(&x), 5);
        assert!(rest(&matrix(&x), &found) <= 1.002 * least);
    }

    #[test]
    fn tall_and_wide_factors_are_cut() {
        // More ranks than outputs.
        let lora = Lora {
            module: Default::default(),
            a: random(12, 40, 4),
            b: random(8, 12, 5),
            scale: 1.0,
        };
        let dense = matrix(&lora.b) * matrix(&lora.a);
        let found = product_cut(&lora, 3);
        assert!(rest(&dense, &found) <= least_rest(&dense, 3) * 1.00001 + 1e-9);
    }
}
