//! Every operation's gradients, but rope's, against differences of its results; rope's are held by those
//! of the whole network.

use std::sync::Arc;

use candle_core::{Result, Var};
use tandem_engine::NormKind;
use tandem_kernels::{Activation, DType, Matrix, Xielu, quant};

use super::super::random::{generator, uniform};
use super::*;

fn random(n_rows: usize, n_cols: usize, seed: u64) -> Var {
    let mut generator = generator(seed, 99);
    let values: Vec<f32> = (0..n_rows * n_cols)
        .map(|_| uniform(&mut generator))
        .collect();
    Var::from_vec(values, (n_rows, n_cols), &Device::Cpu).unwrap()
}

/// A sum of the results with weights, in float64; the weights are irregular.
fn weighted(y: &Tensor) -> f64 {
    let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let weight = |i: usize| (i as f64 * 0.7).sin() + 0.3;
    y.iter()
        .enumerate()
        .map(|(i, y)| weight(i) * f64::from(*y))
        .sum()
}

/// Compares the gradients of that sum with central differences: for each input the derivative along
/// the gradient, along its signs, and by each of some single elements.
fn check(inputs: &[&Var], f: impl Fn() -> Result<Tensor>) {
    let y = f().unwrap();
    let n = y.elem_count();
    let weights: Vec<f32> = (0..n)
        .map(|i| ((i as f64 * 0.7).sin() + 0.3) as f32)
        .collect();
    let weights = Tensor::from_vec(weights, y.shape(), &Device::Cpu).unwrap();
    let loss = (&y * weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for (no, input) in inputs.iter().enumerate() {
        let gradient = gradients.get(input).unwrap_or_else(|| panic!("input {no}"));
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let start = input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let along = |direction: &[f32], size: f32| {
            let at = |sign: f32| {
                let moved = start
                    .iter()
                    .zip(direction)
                    .map(|(x, d)| x + sign * size * d);
                let moved: Vec<f32> = moved.collect();
                input
                    .set(&Tensor::from_slice(&moved, input.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                weighted(&f().unwrap())
            };
            let difference = at(1.0) - at(-1.0);
            at(0.0);
            difference / (2.0 * f64::from(size))
        };
        let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
        assert!(norm > 1e-3, "input {no} has no gradient");
        let unit: Vec<f32> = gradient.iter().map(|g| g / norm).collect();
        let found = along(&unit, 1e-2);
        assert!(
            (found / f64::from(norm) - 1.0).abs() < 1e-3,
            "input {no}: {found} {norm}"
        );
        let signs: Vec<f32> = gradient
            .iter()
            .map(|g| g.signum() / (gradient.len() as f32).sqrt())
            .collect();
        let wanted: f32 = gradient.iter().zip(&signs).map(|(g, s)| g * s).sum();
        let found = along(&signs, 1e-2);
        assert!(
            (found / f64::from(wanted) - 1.0).abs() < 2e-3,
            "input {no}: {found} {wanted}"
        );
        for i in (0..gradient.len()).step_by(gradient.len().div_ceil(40)) {
            let mut direction = vec![0.0; gradient.len()];
            direction[i] = 1.0;
            let (found, wanted) = (along(&direction, 2e-2), f64::from(gradient[i]));
            let error = (found - wanted).abs();
            assert!(
                error < 2e-3 * f64::from(norm),
                "input {no}, {i}: {found} {wanted}"
            );
        }
    }
}

fn frozen(n_out: usize, n_in: usize, dtype: DType, bias: bool) -> Arc<Frozen> {
    let mut generator = generator(7, 99);
    let mut values = |n: usize| (0..n).map(|_| uniform(&mut generator)).collect::<Vec<_>>();
    let w = values(n_out * n_in);
    let mut bytes = vec![0; dtype.row_bytes(n_in).unwrap() * n_out];
    quant::quantize(dtype, &w, &mut bytes);
    let deltas = vec![Delta {
        rank: 3,
        a: values(3 * n_in),
        b: values(n_out * 3),
    }];
    let bias = if bias { values(n_out) } else { Vec::new() };
    let w = Matrix::new(dtype, n_out, n_in, &bytes).unwrap();
    Arc::new(Frozen::new(&w, &bias, deltas, true))
}

#[test]
fn linears() {
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0] {
        let w = frozen(5, 32, dtype, true);
        let x = random(7, 32, 1);
        check(&[&x], || x.apply_op1(Linear(Arc::clone(&w))));
        let p = random(5, 1, 2);
        check(&[&x, &p], || {
            x.apply_op2(&p.flatten_all()?, BiasedLinear(Arc::clone(&w)))
        });
        let (a, b) = (random(2, 32, 3), random(5, 2, 4));
        check(&[&x, &a, &b], || {
            let linear = Arc::clone(&w);
            x.apply_op3(&a, &b, LowRankLinear { linear, scale: 1.5 })
        });
    }
}

/// Packed weights are decoded and changed as float32 ones are.
#[test]
fn packed_linears_are_those_of_the_decoded_weights() {
    let x = random(3, 32, 1);
    let y = |dtype| {
        let y = x.apply_op1(Linear(frozen(5, 32, dtype, false))).unwrap();
        y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (whole, half) = (y(DType::F32), y(DType::F16));
    for (a, b) in whole.iter().zip(&half) {
        assert!((a - b).abs() < 1e-2, "{a} {b}");
    }
    assert_ne!(whole, half);
}

#[test]
fn norms() {
    for kind in [NormKind::Rms, NormKind::Layer] {
        let mut generator = generator(5, 99);
        let mut values = || {
            (0..20)
                .map(|_| uniform(&mut generator) + 1.0)
                .collect::<Vec<_>>()
        };
        let weight = values();
        let bias = if kind == NormKind::Layer {
            values()
        } else {
            Vec::new()
        };
        let norm = Arc::new(NormParameters {
            kind,
            eps: 1e-5,
            weight,
            bias,
        });
        let x = random(6, 40, 1);
        check(&[&x], || x.apply_op1(Norm(Arc::clone(&norm))));
    }
}

#[test]
fn gates() {
    for activation in [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::ReluSquared,
        Activation::Sigmoid,
        Activation::QuickGelu,
        Activation::Xielu(Xielu {
            positive: 0.7,
            negative: 1.3,
            linear: 0.4,
            eps: 1.0,
        }),
    ] {
        let (gate, up) = (random(5, 19, 1), random(5, 19, 2));
        // The functions' bends lie within a few units.
        gate.set(&(gate.as_tensor() * 3.0).unwrap()).unwrap();
        check(&[&gate, &up], || gate.apply_op2(&up, Gate(activation)));
    }
}

/// Two sequences; the second has queries for its last tokens only.
#[test]
fn attention() {
    let span = |first_key, n_keys, first_query, n_queries| Span {
        first_key,
        n_keys,
        first_query,
        n_queries,
    };
    for (window, softcap) in [(None, None), (Some(2), None), (None, Some(0.7))] {
        let (q, k, v) = (random(7, 16, 1), random(9, 8, 2), random(9, 8, 3));
        q.set(&(q.as_tensor() * 2.0).unwrap()).unwrap();
        let spans = Arc::new(vec![span(0, 4, 0, 4), span(4, 5, 4, 3)]);
        check(&[&q, &k, &v], || {
            let attention = Attention {
                spans: Arc::clone(&spans),
                n_head: 4,
                n_head_kv: 2,
                head_dim: 4,
                scale: 0.6,
                window,
                softcap,
            };
            q.apply_op3(&k, &v, attention)
        });
    }
}

#[test]
fn losses() {
    for softcap in [None, Some(2.0)] {
        let logits = random(4, 11, 1);
        logits.set(&(logits.as_tensor() * 3.0).unwrap()).unwrap();
        let targets = Arc::new(vec![0, 10, 3, 3]);
        check(&[&logits], || {
            let targets = Arc::clone(&targets);
            logits.apply_op1(Loss { targets, softcap })
        });
    }
}

#[test]
fn the_loss_of_known_probabilities() {
    let logits = [0.25_f32.ln() + 50.0, 0.75_f32.ln() + 50.0, -1000.0, 0.0];
    let logits = Tensor::from_slice(&logits, (2, 2), &Device::Cpu).unwrap();
    let loss = |targets: Vec<u32>| {
        let targets = Arc::new(targets);
        let loss = logits.apply_op1(Loss {
            targets,
            softcap: None,
        });
        loss.unwrap().to_scalar::<f32>().unwrap()
    };
    assert!((loss(vec![0, 1]) - 4.0_f32.ln()).abs() < 1e-5);
    // Improbable, but not impossible: no infinity where the probability is too small for float32.
    assert!((loss(vec![0, 0]) - 4.0_f32.ln() - 1000.0).abs() < 1e-2);
}
