//! Whole factors and their merges: every level against plain definitions, to the bit.

use tandem_kernels::{
    DType, Level, LowRank, LowRankType, Magnitudes, WIDE_COLS, WideMatrix, add_gram,
    add_transposed_product, decode_low_rank, decode_rows, elected_mean, encode_low_rank,
    encode_rows, keep_largest, keep_random, largest_magnitude, multiply, quant, transpose,
    weighted_sum, widen,
};

/// Numbers between -1 and 1, the same in every run; with few `steps` many are equal.
fn floats(seed: u64, n: usize, steps: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // Splitmix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let unit = |n: u64| n as f32 / steps as f32 * 2.0 - 1.0;
    (0..n).map(|_| unit(next() % (steps + 1))).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn rows_are_those_of_the_block_formats() {
    let mut x = floats(1, 256 * 5 + 64, 1 << 24);
    // Halves, blocks of zeros, of tiny values, and of what no float is.
    x[..32].copy_from_slice(&[63.5 / 127.0, -0.5, 1.0, -1.0 / 254.0].repeat(8));
    x[32..64].fill(0.0);
    x[64..96].fill(1e-44);
    x[96] = f32::NAN;
    x[130] = f32::NEG_INFINITY;
    for dtype in [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
    ] {
        for factor in [1.0, 0.25] {
            let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
            let n_bytes = dtype.row_bytes(x.len()).unwrap();
            let mut expected = vec![0; n_bytes];
            quant::quantize(dtype, &scaled, &mut expected);
            let mut decoded = vec![0.0; x.len()];
            quant::dequantize(dtype, &expected, &mut decoded);
            decoded.iter_mut().for_each(|x| *x *= 3.0);
            for level in Level::available() {
                let mut found = vec![0xaa; n_bytes];
                encode_rows(level, dtype, &x, factor, &mut found);
                assert!(found == expected, "{dtype} {}", level.name());
                let mut back = vec![f32::NAN; x.len()];
                decode_rows(level, dtype, &found, 3.0, &mut back);
                let is_same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan();
                assert!(
                    back.iter().zip(&decoded).all(is_same),
                    "{dtype} {}",
                    level.name()
                );
                assert!(
                    back.iter()
                        .zip(&decoded)
                        .all(|(a, b)| a.is_nan() == b.is_nan())
                );
            }
        }
    }
}

#[test]
fn low_rank_factors_are_packed_and_unpacked_alike() {
    for (n_out, rank) in [
        (1, 1),
        (16, 32),
        (35, 32),
        (48, 7),
        (17, 70),
        (5, 33),
        (64, 4),
    ] {
        let b = floats(2, n_out * rank, 1 << 24);
        for kind in LowRankType::ALL {
            let n_bytes = kind.n_bytes(n_out, rank).unwrap();
            let mut expected = vec![0xaa; n_bytes];
            encode_low_rank(Level::Scalar, kind, &b, rank, 0.5, &mut expected);
            let view = LowRank::new(kind, n_out, rank, &expected).unwrap();
            // Output by output, which nothing else goes by.
            let mut values = vec![0.0; n_out * rank];
            for (o, row) in values.chunks_exact_mut(rank).enumerate() {
                view.row(o, row);
            }
            let worst = match kind {
                LowRankType::Q8 => 0.6 / 127.0,
                LowRankType::Q4 => 0.6 / 7.0,
                _ => 1e-3,
            };
            for (row, b) in values.chunks(rank).zip(b.chunks(rank)) {
                let largest = b.iter().fold(0.0_f32, |m, x| m.max(x.abs())) * 0.5;
                let is_near = |(x, b): (&f32, &f32)| (x - b * 0.5).abs() <= worst * largest;
                assert!(row.iter().zip(b).all(is_near));
            }
            values.iter_mut().for_each(|x| *x *= -0.125);
            for level in Level::available() {
                let mut found = vec![0xaa; n_bytes];
                encode_low_rank(level, kind, &b, rank, 0.5, &mut found);
                assert_eq!(found, expected, "{} {}", kind.name(), level.name());
                let mut decoded = vec![f32::NAN; n_out * rank];
                decode_low_rank(level, &view, -0.125, &mut decoded);
                assert_eq!(
                    bits(&decoded),
                    bits(&values),
                    "{} {}",
                    kind.name(),
                    level.name()
                );
            }
            // Some of the outputs by themselves.
            for rows in [
                0..n_out,
                n_out / 3..n_out,
                1.min(n_out)..n_out.div_ceil(2).max(1),
            ] {
                let mut some = vec![0xaa; kind.n_bytes(rows.len(), rank).unwrap()];
                view.copy_rows(rows.clone(), &mut some);
                let some = LowRank::new(kind, rows.len(), rank, &some).unwrap();
                for (i, o) in rows.enumerate() {
                    let (mut a, mut b) = (vec![0.0; rank], vec![0.0; rank]);
                    some.row(i, &mut a);
                    view.row(o, &mut b);
                    assert_eq!(a, b);
                }
            }
        }
    }
}

#[test]
fn the_largest_are_kept_and_the_first_of_equal_ones() {
    for (n, steps) in [
        (1, 9),
        (2, 9),
        (63, 2),
        (64, 40),
        (1000, 7),
        (5000, 1 << 24),
        (129, 1),
    ] {
        let x = floats(3, n, steps);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| x[*b].abs().total_cmp(&x[*a].abs()).then(a.cmp(b)));
        for n_kept in [1, n.div_ceil(3), n.div_ceil(2), n] {
            let mut expected = x.clone();
            order[n_kept..].iter().for_each(|i| expected[*i] = 0.0);
            let mut few = vec![0; n];
            let mut magnitudes = Magnitudes::EMPTY;
            let largest = magnitudes.largest(&x, n_kept, &mut few);
            let least = x[order[n_kept - 1]].abs();
            let next = order.get(n_kept).map(|i| x[*i].abs());
            assert_eq!(largest.is_ambiguous, next == Some(least));
            for level in Level::available() {
                let mut found = x.clone();
                keep_largest(level, &largest, &mut found);
                assert_eq!(found, expected, "{n_kept} of {n}");
            }
        }
    }
}

#[test]
fn random_values_are_kept_by_seed_and_stream_alone() {
    let x = vec![1.0; 20_000 + 77];
    let kept = |level, density, seed, stream| {
        let mut x = x.clone();
        keep_random(level, density, seed, stream, &mut x);
        x
    };
    let one = kept(Level::Scalar, 0.3, 7, 1 << 40 | 5);
    for level in Level::available() {
        assert_eq!(kept(level, 0.3, 7, 1 << 40 | 5), one);
        assert_eq!(kept(level, 1.0, 7, 5), x);
    }
    // Of each value the chance is the same, and another seed or stream is another choice.
    let n_kept = one.iter().filter(|x| **x != 0.0).count();
    assert!(n_kept.abs_diff(6023) < 300, "{n_kept}");
    for other in [
        kept(Level::Scalar, 0.3, 8, 1 << 40 | 5),
        kept(Level::Scalar, 0.3, 7 + (1 << 32), 1 << 40 | 5),
        kept(Level::Scalar, 0.3, 7, 5),
        kept(Level::Scalar, 0.3, 7, 1 << 40 | 6),
    ] {
        let both = one
            .iter()
            .zip(&other)
            .filter(|(a, b)| **a != 0.0 && **b != 0.0);
        let n_both = both.count();
        assert!(n_both.abs_diff(1807) < 200, "{n_both}");
    }
    // More of them are kept where the density is higher, and none is lost.
    let more = kept(Level::Scalar, 0.6, 7, 1 << 40 | 5);
    assert!(one.iter().zip(&more).all(|(a, b)| *a == 0.0 || *b != 0.0));
}

#[test]
fn tensors_are_combined_as_their_definitions_say() {
    for n_tensors in [1, 2, 3, 5] {
        for n in [0, 1, 15, 16, 17, 200] {
            // Few steps: zeros, equal values and sums of zero.
            let x: Vec<_> = (0..n_tensors).map(|i| floats(i, n, 8)).collect();
            let x: Vec<&[f32]> = x.iter().map(|x| &x[..]).collect();
            let weights = &[0.5, -1.5, 0.7, 2.0, 0.1][..x.len()];
            for level in Level::available() {
                let (mut sums, mut means) = (vec![f32::NAN; n], vec![f32::NAN; n]);
                weighted_sum(level, &x, weights, &mut sums);
                elected_mean(level, &x, weights, &mut means);
                for i in 0..n {
                    let values = x.iter().zip(weights).map(|(x, w)| (x[i], x[i] * w));
                    assert_eq!(sums[i], values.clone().map(|(_, y)| y).sum::<f32>());
                    let total: f32 = values.clone().map(|(x, _)| x).sum();
                    let elected: Vec<f32> = values
                        .filter(|(x, _)| if total >= 0.0 { *x > 0.0 } else { *x < 0.0 })
                        .map(|(_, y)| y)
                        .collect();
                    let mean = elected.iter().sum::<f32>() / elected.len().max(1) as f32;
                    assert_eq!(means[i], mean);
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_definition() {
    for (n_rows, n_inner, n_cols) in [(1, 1, 1), (3, 5, 31), (4, 64, 32), (9, 150, 70), (0, 3, 2)] {
        // Eighths, of which the sums are exact, and others.
        for (steps, is_exact) in [(16, true), (1 << 24, false)] {
            let x = floats(1, n_rows * n_inner, steps);
            let w = floats(2, n_inner * n_cols, steps);
            let run = |level| {
                let mut y = floats(3, n_rows * n_cols, steps);
                multiply(level, &x, &w, n_inner, &mut y);
                y
            };
            let scalar = run(Level::Scalar);
            for (i, found) in scalar.iter().enumerate() {
                let (row, col) = (i / n_cols, i % n_cols);
                let products = (0..n_inner)
                    .map(|k| f64::from(x[row * n_inner + k]) * f64::from(w[k * n_cols + col]));
                let expected = products.sum::<f64>();
                let allowed = if is_exact { 0.0 } else { 1e-5 };
                assert!((f64::from(*found) - expected).abs() <= allowed);
            }
            for level in Level::available() {
                assert_eq!(bits(&run(level)), bits(&scalar), "{}", level.name());
            }
        }
    }
}

#[test]
fn rows_are_widened_and_columns_become_rows() {
    for (n_rows, n_cols, first, n, width) in [
        (1, 1, 0, 1, 1),
        (8, 5, 1, 3, 8),
        (19, 40, 7, 33, 32),
        (64, 64, 0, 64, 64),
    ] {
        let x = floats(1, n_rows * n_cols, 1 << 24);
        for level in Level::available() {
            let mut rows = vec![9.0; n_rows * n_cols.max(width)];
            widen(level, &x, n_cols, &mut rows, n_cols.max(width));
            for (x, rows) in x
                .chunks_exact(n_cols)
                .zip(rows.chunks_exact(n_cols.max(width)))
            {
                let (values, others) = rows.split_at(n_cols);
                assert!(x.iter().map(|x| f64::from(*x)).eq(values.iter().copied()));
                assert!(others.iter().all(|x| *x == 9.0));
            }
            let mut y = vec![9.0; n * width];
            transpose(level, &x, n_cols, first, &mut y, width);
            for (c, y) in y.chunks_exact(width).enumerate() {
                for (k, y) in y.iter().enumerate() {
                    let expected = match k < n_rows {
                        true => f64::from(x[k * n_cols + first + c]),
                        false => 9.0,
                    };
                    assert_eq!(*y, expected, "{}", level.name());
                }
            }
        }
    }
}

#[test]
fn gram_matrices_are_those_of_the_definition() {
    for (n_rows, n) in [(0, WIDE_COLS), (1, WIDE_COLS), (200, 3 * WIDE_COLS)] {
        let x = floats(1, n_rows * n, 1 << 24);
        let x: Vec<f64> = x.into_iter().map(f64::from).collect();
        let run = |level| {
            let mut g = vec![0.5; n * n];
            add_gram(level, &x, n, &mut g);
            g
        };
        let scalar = run(Level::Scalar);
        for i in 0..n {
            for j in i..n {
                let products = x.chunks_exact(n).map(|row| row[i] * row[j]);
                let expected = 0.5 + products.sum::<f64>();
                assert!((scalar[i * n + j] - expected).abs() <= 1e-12);
                for level in Level::available() {
                    assert_eq!(run(level)[i * n + j], scalar[i * n + j], "{}", level.name());
                }
            }
        }
    }
}

#[test]
fn transposed_products_are_those_of_the_definition() {
    for (n_inner, n_rows, n_cols) in [(0, 1, 2), (1, 2, 1), (70, 1, 3), (64, 4, 2)] {
        let (n_rows, n_cols) = (n_rows * WIDE_COLS, n_cols * WIDE_COLS);
        let wide = |seed, n| {
            let sevenths = floats(seed, n, 1 << 24).into_iter();
            sevenths.map(|x| f64::from(x) / 7.0).collect::<Vec<f64>>()
        };
        let (x, y) = (wide(1, n_inner * n_rows), wide(2, n_inner * n_cols));
        let run = |level| {
            let mut z = vec![0.5; n_rows * n_cols];
            let matrix = |values, n_cols| WideMatrix { values, n_cols };
            add_transposed_product(level, matrix(&x, n_rows), matrix(&y, n_cols), &mut z);
            z
        };
        let scalar = run(Level::Scalar);
        for (i, found) in scalar.iter().enumerate() {
            let products =
                (0..n_inner).map(|k| x[k * n_rows + i / n_cols] * y[k * n_cols + i % n_cols]);
            assert!((found - 0.5 - products.sum::<f64>()).abs() <= 1e-12);
        }
        for level in Level::available() {
            assert!(run(level) == scalar, "{}", level.name());
        }
    }
}

#[test]
fn a_nan_is_the_largest_magnitude() {
    for level in Level::available() {
        for (x, expected) in [
            (vec![], 0.0),
            (vec![-3.0, 2.0], 3.0),
            (floats(1, 99, 2), 1.0),
        ] {
            let mut largest = f32::NAN;
            largest_magnitude(level, &x, &mut largest);
            assert_eq!(largest, expected);
        }
        let mut largest = 0.0;
        largest_magnitude(level, &[f32::INFINITY, f32::NAN, 1.0], &mut largest);
        assert!(largest.is_nan());
    }
}
