//! The best approximation of a matrix by one of low rank.

use alloc::vec::Vec;

use nalgebra::DMatrix;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use tandem_formats::adapter::{Floats, Lora};

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

/// The factors of `u s v^T` cut to `rank`: `b = u s`, `a = v^T`. `None` where the decomposition
/// does not converge.
fn cut(x: DMatrix<f64>, rank: usize) -> Option<(DMatrix<f64>, DMatrix<f64>)> {
    let svd = x.try_svd(true, true, f64::EPSILON, 10_000)?;
    let (u, v_t) = (svd.u?, svd.v_t?);
    let n = rank.min(svd.singular_values.len());
    let mut b = u.columns(0, n).into_owned();
    for (mut column, s) in b.column_iter_mut().zip(svd.singular_values.iter()) {
        column *= *s;
    }
    Some((b, v_t.rows(0, n).into_owned()))
}

/// Cuts `scale b a` to `rank`, exactly: with `b = q_b r_b` and `a^T = q_a r_a` the decomposition is
/// that of the small `r_b r_a^T`, turned by `q_b` and `q_a`.
pub(super) fn cut_product(lora: &Lora, rank: usize) -> Option<(Floats, Floats)> {
    let b = matrix(&lora.b) * f64::from(lora.scale);
    let (b, a_t) = (b.qr(), matrix(&lora.a).transpose().qr());
    let (core_b, core_a) = cut(b.r() * a_t.r().transpose(), rank)?;
    Some((
        floats(&(core_a * a_t.q().transpose())),
        floats(&(b.q() * core_b)),
    ))
}

/// Cuts a dense `x` to `rank`. Exact for small matrices; for others by subspace iteration from a
/// random start (Halko, Martinsson, Tropp, arXiv 0909.4061), nearly the best where singular values
/// are nearly equal, else the best.
pub(super) fn cut_dense(x: &Floats, rank: usize) -> Option<(Floats, Floats)> {
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
                cut_product(&lora, rank).unwrap(),
                cut_dense(&floats(&dense), rank).unwrap(),
            ] {
                assert!(found.0.n_rows <= rank && found.0.n_rows == found.1.n_cols);
                assert!(rest(&dense, &found) <= least * 1.00001 + 1e-9);
            }
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
        // More ranks than outputs: the triangles are not square.
        let lora = Lora {
            module: Default::default(),
            a: random(12, 40, 4),
            b: random(8, 12, 5),
            scale: 1.0,
        };
        let dense = matrix(&lora.b) * matrix(&lora.a);
        let found = cut_product(&lora, 3).unwrap();
        assert!(rest(&dense, &found) <= least_rest(&dense, 3) * 1.00001 + 1e-9);
    }
}
