//! Shared by the tests: where the peers' files lie, how to read them, how to compare.

pub(crate) mod peers;

use std::path::{Path, PathBuf};

use npyz::NpyFile;
use tandem_engine::{Model, Session, SessionOptions, ThreadPool};

/// A path inside `../shared`, or `None`, said so, where that is not laid out beside the repository.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared")
        .join(path);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

/// The token ids of a peer's model.
pub(crate) fn tokens(name: &str) -> Vec<u32> {
    let path = shared(&format!("peer/logits/{name}.tokens.json")).unwrap();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
}

/// The model in `fixtures/`.
pub(crate) fn pocket() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket-q8_0.gguf");
    Model::open(path).unwrap()
}

/// The logits after each of `tokens`.
pub(crate) fn eval_all(
    path: &Path,
    tokens: &[u32],
    change: impl FnOnce(&mut SessionOptions),
) -> Vec<f32> {
    let model = Model::open(path).unwrap();
    let mut options = SessionOptions::for_model(model.config());
    change(&mut options);
    let mut session = Session::new(&model, ThreadPool::new(2), options).unwrap();
    let mut all = Vec::new();
    session
        .eval_rows(tokens, 0, |_, rows| all.extend_from_slice(rows))
        .unwrap();
    all
}

/// `|a - b| / |b|`.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// Mean Kullback-Leibler divergence of the distributions that rows of `n_vocab` logits stand for,
/// of `a` from the truth `b`, and the share of rows with the same largest logit.
pub(crate) fn divergence(a: &[f32], b: &[f32], n_vocab: usize) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let log_p = |x: &[f32]| {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - max).exp()).sum();
        x.iter()
            .map(|x| f64::from(x - max) - sum.ln())
            .collect::<Vec<_>>()
    };
    let (mut kl, mut same) = (0.0, 0);
    let rows = a.chunks_exact(n_vocab).zip(b.chunks_exact(n_vocab));
    for (a, b) in rows.clone() {
        let (q, p) = (log_p(a), log_p(b));
        kl += p
            .iter()
            .zip(&q)
            .map(|(p, q)| p.exp() * (p - q))
            .sum::<f64>();
        same += usize::from(tandem_engine::argmax(a) == tandem_engine::argmax(b));
    }
    (kl / rows.len() as f64, same as f64 / rows.len() as f64)
}
