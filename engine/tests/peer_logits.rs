//! Logits against those of Hugging Face transformers, for every architecture and quantization.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::fs::File;

use common::peers::PEERS;
use common::{divergence, eval_all, read_npy, relative_error, shared, tokens};
use tandem_engine::model::FfnConfig;
use tandem_engine::{DType, Model, Session, SessionOptions, SharedPool, ThreadPool, argmax};

const N_VOCAB: usize = 512;

#[test]
fn every_architecture_agrees_with_transformers() {
    if shared("peer/logits").is_none() {
        return;
    }
    for name in PEERS {
        let path = shared(&format!("peer/logits/{name}-f16.gguf")).unwrap();
        let expected = read_npy(&shared(&format!("peer/logits/{name}.hf-logits.npy")).unwrap());
        let logits = eval_all(&path, &tokens(name), |o| {
            o.exact = true;
            o.kv_type = DType::F32;
        });
        let error = relative_error(&logits, &expected);
        println!("{name}: {error:.1e}");
        assert!(error <= 5e-4, "{name}: {error}");
    }
}

#[test]
fn every_quantization_agrees_with_dequantized_weights() {
    let Some(path) = shared("peer/logits/llama.quant-logits.npz") else {
        return;
    };
    let mut goldens = npyz::npz::NpzArchive::new(File::open(path).unwrap()).unwrap();
    let names: Vec<String> = goldens.array_names().map(String::from).collect();
    assert_eq!(names.len(), 12);
    for name in names {
        let expected: Vec<f32> = goldens.by_name(&name).unwrap().unwrap().into_vec().unwrap();
        let path = shared(&format!("peer/logits/llama-{}.gguf", name.to_lowercase())).unwrap();
        let exact = eval_all(&path, &tokens("llama"), |o| {
            o.exact = true;
            o.kv_type = DType::F32;
        });
        let error = relative_error(&exact, &expected);
        let normal = eval_all(&path, &tokens("llama"), |_| {});
        let (kl, top1) = divergence(&normal, &expected, N_VOCAB);
        println!("{name}: exact {error:.1e}, normal KL {kl:.1e}, top-1 {top1:.3}");
        assert!(error <= 1e-3, "{name}: {error}");
        assert!(kl <= 2e-3, "{name}: KL {kl}");
        // Rounding activations to int8 may turn the order of two tokens that are nearly as likely,
        // and of no others: the truth must have them nearer than the row's errors reach.
        let rows = normal
            .chunks_exact(N_VOCAB)
            .zip(expected.chunks_exact(N_VOCAB));
        for (row, truth) in rows {
            let (found, wanted) = (argmax(row) as usize, argmax(truth) as usize);
            let rms = relative_error(row, truth) * norm(truth) / (N_VOCAB as f64).sqrt();
            let gap = f64::from(truth[wanted] - truth[found]);
            assert!(
                gap <= 6.0 * rms,
                "{name}: a gap of {gap} turned by errors of {rms}"
            );
        }
    }
}

fn median_row_error(x: &[f32], truth: &[f32]) -> f64 {
    let rows = x.chunks_exact(N_VOCAB).zip(truth.chunks_exact(N_VOCAB));
    let mut errors: Vec<f64> = rows
        .map(|(row, truth)| relative_error(row, truth))
        .collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// The cache's own rounding is all that may differ between a batch and single steps: both read the
/// same rounded keys and values.
#[test]
fn steps_agree_with_a_batch_for_every_architecture_and_cache() {
    if shared("peer/logits").is_none() {
        return;
    }
    let pool = SharedPool::from(ThreadPool::new(2));
    for name in PEERS {
        let model = Model::open(shared(&format!("peer/logits/{name}-f16.gguf")).unwrap()).unwrap();
        let tokens = tokens(name);
        let mut float_cache = Vec::new();
        let mut heads = model.config().attentions();
        let fits_q8 = heads.all(|c| c.head_dim.is_multiple_of(32));
        for kv_type in [DType::F32, DType::F16, DType::Q8_0] {
            if kv_type == DType::Q8_0 && !fits_q8 {
                continue;
            }
            let run = |n_batch: usize, at_once: usize| {
                let mut options = SessionOptions::for_model(model.config());
                (options.kv_type, options.n_batch) = (kv_type, n_batch);
                let mut session = Session::new(&model, &pool, options).unwrap();
                let mut all = Vec::new();
                for tokens in tokens.chunks(at_once) {
                    session
                        .eval_rows(tokens, 0, |_, rows| all.extend_from_slice(rows))
                        .unwrap();
                }
                all
            };
            let batch = run(256, 80);
            for (n_batch, at_once) in [(256, 1), (7, 80), (256, 33)] {
                let error = relative_error(&run(n_batch, at_once), &batch);
                assert!(
                    error <= 1e-4,
                    "{name} {kv_type} {n_batch} {at_once}: {error}"
                );
            }
            if kv_type == DType::F32 {
                float_cache = batch;
            } else {
                let mut layers = model.config().layers.iter();
                let has_experts = layers.any(|layer| {
                    matches!(
                        layer.ffn,
                        FfnConfig::Experts(_) | FfnConfig::DenseAndExperts(_)
                    )
                });
                let error = match has_experts {
                    false => relative_error(&batch, &float_cache),
                    // Rounding may turn the order of two experts, and then tokens differ by more.
                    true => median_row_error(&batch, &float_cache),
                };
                let limit = if kv_type == DType::F16 { 1e-3 } else { 3e-2 };
                let has_cache = model.config().attentions().next().is_some();
                assert_eq!(error > 0.0, has_cache);
                assert!(error <= limit, "{name} {kv_type}: {error}");
            }
        }
    }
}
