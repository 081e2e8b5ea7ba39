//! Every level's matmul against the scalar one, for every format and awkward shapes.

use tandem_kernels::{
    DType, Input, Level, Matrix, Q8_SUPER, Q8Rows, Q8Super, TileMut, matmul, quant, quantize_q8,
};

/// Numbers between -1 and 1, the same in every run.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        // Xorshift64* (Vigna, arXiv 1402.6246).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// Blocks of a format: encoded where that can be done, else random bytes with finite scales.
    fn weights(&mut self, dtype: DType, n: usize) -> Vec<u8> {
        let n_bytes = dtype.row_bytes(n).unwrap();
        if quant::can_encode(dtype) {
            let mut bytes = vec![0; n_bytes];
            quant::quantize(dtype, &self.floats(n), &mut bytes);
            return bytes;
        }
        let mut bytes = vec![0; n_bytes];
        let mut decoded = vec![0.0; dtype.block_len()];
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            loop {
                block.fill_with(|| self.bits() as u8);
                quant::dequantize(dtype, block, &mut decoded);
                if decoded.iter().all(|w| w.abs() < 1e3) {
                    break;
                }
            }
        }
        bytes
    }
}

/// `x` `[n_tokens, n_cols]` rounded to int8.
fn rounded(x: &[f32], n_cols: usize) -> Vec<Q8Super> {
    let n = n_cols.div_ceil(Q8_SUPER) * (x.len() / n_cols.max(1));
    let mut rounded = vec![Q8Super::default(); n];
    if n > 0 {
        quantize_q8(Level::detect(), x, n_cols, 0, &mut rounded);
    }
    rounded
}

fn run(level: Level, w: &Matrix<'_>, x: &Input<'_>, n_tokens: usize) -> Vec<f32> {
    // What is not written shows.
    let mut y = vec![f32::NAN; n_tokens * w.n_rows()];
    if !y.is_empty() {
        matmul(
            level,
            w,
            0..w.n_rows(),
            x,
            &mut TileMut::new(&mut y, w.n_rows()),
        );
    }
    y
}

fn check(dtype: DType, n_rows: usize, n_cols: usize, n_tokens: usize, x: &[f32], start: usize) {
    let mut random = Random(0x1234_5678_9abc_def1 + n_rows as u64);
    // The weights begin at any address.
    let bytes = [vec![0; start], random.weights(dtype, n_rows * n_cols)].concat();
    let w = Matrix::new(dtype, n_rows, n_cols, &bytes[start..]).unwrap();
    let rounded = dtype.is_quantized().then(|| rounded(x, n_cols));
    let q8 = |rounded| Input::Q8(Q8Rows::new(rounded, n_tokens));
    let inputs = [Some(Input::F32(x)), rounded.as_deref().map(q8)];
    let mut weights = vec![0.0; n_rows * n_cols];
    quant::dequantize(dtype, &bytes[start..], &mut weights);
    for (kind, x_input) in inputs
        .iter()
        .enumerate()
        .filter_map(|(i, x)| Some((i, x.as_ref()?)))
    {
        let truth = run(Level::Scalar, &w, x_input, n_tokens);
        for level in Level::available() {
            let y = run(level, &w, x_input, n_tokens);
            for (i, (y, truth)) in y.iter().zip(&truth).enumerate() {
                let (t, r) = (i / n_rows, i % n_rows);
                let (w, x) = (&weights[r * n_cols..][..n_cols], &x[t * n_cols..][..n_cols]);
                let size: f32 = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
                let name = level.name();
                assert!(
                    (y - truth).abs() <= 1e-5 * size + 1e-30,
                    "{dtype} {name} input {kind}, {n_rows} x {n_cols}, token {t} row {r}: {y} {truth}"
                );
            }
        }
    }
}

fn weight_types() -> impl Iterator<Item = DType> {
    let plain = [DType::F32, DType::F16, DType::BF16];
    DType::ALL
        .into_iter()
        .filter(move |t| t.is_quantized() || plain.contains(t))
}

#[test]
fn every_level_agrees_with_scalar_for_every_format_and_shape() {
    let names: Vec<_> = Level::available().map(Level::name).collect();
    println!("levels: {names:?}");
    let mut random = Random(99);
    for dtype in weight_types() {
        for (n_rows, n_cols, n_tokens) in [
            (1, 256, 1),
            (3, 512, 2),
            (16, 256, 4),
            (17, 768, 5),
            (33, 512, 8),
            (40, 256, 19),
            (100, 512, 53),
            (33, 256, 260),
            (5, 0, 2),
            (0, 256, 2),
        ] {
            check(
                dtype,
                n_rows,
                n_cols,
                n_tokens,
                &random.floats(n_cols * n_tokens),
                n_rows % 3,
            );
        }
        // Formats with small blocks have rows that are no multiple of 256.
        if dtype.block_len() <= 32 {
            for (n_rows, n_cols, n_tokens) in [(2, 32, 1), (18, 96, 4), (19, 352, 9), (16, 896, 8)]
            {
                check(
                    dtype,
                    n_rows,
                    n_cols,
                    n_tokens,
                    &random.floats(n_cols * n_tokens),
                    1,
                );
            }
        }
    }
}

#[test]
fn extreme_inputs_do_not_overflow() {
    for dtype in weight_types() {
        for x in [1.0_f32, -1.0] {
            // All integers are at the end of their range, with one sign.
            check(dtype, 17, 512, 11, &vec![x * 127.0; 11 * 512], 0);
            let alternating: Vec<_> = (0..11 * 512)
                .map(|i| if i % 2 == 0 { x } else { -x })
                .collect();
            check(dtype, 17, 512, 11, &alternating, 0);
        }
    }
}

#[test]
fn extreme_weights_do_not_overflow() {
    let one = [0x00, 0x3c].as_slice();
    // The integers and scales of the largest magnitude, which no encoder may write but a file may hold.
    let formats = [
        (DType::Q8_0, [one, &[0x80; 32]].concat(), -128.0),
        (DType::Q8_0, [one, &[0x7f; 32]].concat(), 127.0),
        // 63 - 32 times a scale of -128, and 7 - 4 times one of -32.
        (
            DType::Q6_K,
            [&[0xff; 192], [0x80; 16].as_slice(), one].concat(),
            31.0 * -128.0,
        ),
        (
            DType::Q3_K,
            [&[0xff; 96], [0; 12].as_slice(), one].concat(),
            3.0 * -32.0,
        ),
    ];
    let x = rounded(&vec![-127.0; 11 * 256], 256);
    for (dtype, block, weight) in formats {
        let bytes = block.repeat(17 * 256 / dtype.block_len());
        let w = Matrix::new(dtype, 17, 256, &bytes).unwrap();
        for level in Level::available() {
            for y in run(level, &w, &Input::Q8(Q8Rows::new(&x, 11)), 11) {
                assert_eq!(y, weight * -127.0 * 256.0, "{dtype}, {}", level.name());
            }
        }
    }
}

/// Tokens side by side are what each is alone, for few of them and for many.
#[test]
fn a_token_does_not_depend_on_the_others() {
    let mut random = Random(7);
    let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for dtype in weight_types() {
        for (n_rows, n_cols) in [(70, 512), (37, 768)] {
            let bytes = random.weights(dtype, n_rows * n_cols);
            let w = Matrix::new(dtype, n_rows, n_cols, &bytes).unwrap();
            let x = random.floats(29 * n_cols);
            for (level, is_q8) in Level::available().flat_map(|l| [(l, false), (l, true)]) {
                if is_q8 && !dtype.is_quantized() {
                    continue;
                }
                let multiply = |x: &[f32]| {
                    let n = x.len() / n_cols;
                    let rounded = rounded(x, n_cols);
                    let x = match is_q8 {
                        true => Input::Q8(Q8Rows::new(&rounded, n)),
                        false => Input::F32(x),
                    };
                    bits(run(level, &w, &x, n))
                };
                let alone: Vec<_> = x.chunks(n_cols).flat_map(multiply).collect();
                let name = format!("{dtype} {} int8 {is_q8}", level.name());
                for n in [2, 3, 4, 7, 8, 9, 13, 29] {
                    let beside = multiply(&x[..n * n_cols]);
                    assert!(beside == alone[..n * n_rows], "{name}: {n} tokens");
                }
            }
        }
    }
}

/// Products are added up in one order on every level, the scalar one included, for one token or many.
#[test]
fn products_have_the_same_bits_on_every_level() {
    let mut random = Random(11);
    for dtype in weight_types().filter(|t| t.is_quantized()) {
        for (n_rows, n_cols) in [(70_usize, 512_usize), (37, 768), (40, 352)] {
            if !n_cols.is_multiple_of(dtype.block_len()) {
                continue;
            }
            let bytes = random.weights(dtype, n_rows * n_cols);
            let w = Matrix::new(dtype, n_rows, n_cols, &bytes).unwrap();
            // One token, few and many.
            for n in [1, 5, 13] {
                let x = rounded(&random.floats(n * n_cols), n_cols);
                let x = Input::Q8(Q8Rows::new(&x, n));
                let truth = run(Level::Scalar, &w, &x, n);
                for level in Level::available() {
                    let y = run(level, &w, &x, n);
                    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
                    let wrong = y.iter().zip(&truth).filter(|pair| differs(*pair)).count();
                    assert_eq!(
                        wrong,
                        0,
                        "{dtype} {} {n_rows} x {n_cols} x {n}",
                        level.name()
                    );
                }
            }
        }
    }
}
