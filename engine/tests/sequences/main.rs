//! Several sequences in one pass, and windows as rings.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
#[path = "../common/mod.rs"]
mod common;
#[expect(dead_code, reason = "of the helpers this needs some")]
#[path = "../common/adapters.rs"]
mod made_up;

mod kept;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{pocket, shared};
use made_up::adapter;
use tandem_engine::model::MixerConfig;
use tandem_engine::{
    AdapterType, Composition, Config, DType, Model, PackedAdapter, Sequence, Session, SessionError,
    SessionOptions, Span, ThreadPool, Worker,
};

use tandem_kernels::Pool;

/// The peers' models of these names that are here, and always the fixture.
fn models(peers: &[&str]) -> Vec<(String, Model)> {
    let mut models = vec![("pocket-q8_0".to_string(), pocket())];
    for name in peers {
        let path: Option<PathBuf> = shared(&format!("peer/logits/{name}.gguf"));
        models.extend(path.map(|path| (name.to_string(), Model::open(path).unwrap())));
    }
    models
}

fn options(model: &Model) -> SessionOptions {
    let mut options = SessionOptions::for_model(model.config());
    options.n_ctx = 96;
    options
}

/// The model alone, two adapters and their sum, the base's type of factors.
fn compositions(model: &Model, kind: AdapterType) -> Vec<Option<Composition>> {
    let base = model.linears();
    let [a, b] = [(5, 1), (9, 100)]
        .map(|(rank, seed)| PackedAdapter::pack(base, &adapter(base, rank, seed), kind).unwrap());
    let new = |parts: &[_]| Some(Composition::new(base, parts).unwrap());
    vec![
        None,
        new(&[(&a, 1.0)]),
        new(&[(&b, 0.5)]),
        new(&[(&a, 0.5), (&b, -0.25)]),
        // As the second: neighbours of one composition are computed together.
        new(&[(&a, 1.0)]),
    ]
}

fn tokens(n: usize, seed: usize, n_vocab: usize) -> Vec<u32> {
    let ids = (0..n).map(|i| ((i * 37 + seed * 101 + 3) % n_vocab) as u32);
    ids.collect()
}

/// A sequence of a test, and what it is given in each pass.
struct Case {
    composition: Option<Composition>,
    /// Of each pass; none where it takes no part.
    passes: Vec<Vec<u32>>,
    /// Rows of logits wanted in each pass, at most as many as there are tokens.
    n_logits: Vec<usize>,
}

/// The last layer leaves out rows without a reader, which changes nothing for the others.
#[test]
fn rows_that_nobody_wants_change_nothing() {
    for (name, model) in models(&["llama-q4_k", "qwen2-f16", "gemma3-f16", "phi3-f16"]) {
        let n_vocab = model.config().n_vocab;
        let all_compositions = compositions(&model, AdapterType::Q8);
        // Dot products, tiles, and a prompt of two batches.
        for (n, composition) in [3, 30, 70].into_iter().zip(&all_compositions) {
            let mut options = options(&model);
            options.n_batch = 48;
            let ids = tokens(n, 5, n_vocab);
            let rows = |first: usize| {
                let mut session = Session::new(&model, ThreadPool::new(2), options).unwrap();
                session.set_composition(composition.as_ref()).unwrap();
                let mut rows = Vec::new();
                let mut next = first;
                let each = |i: usize, some: &[f32]| {
                    assert_eq!(i, next);
                    next += some.len() / n_vocab;
                    rows.extend_from_slice(some);
                };
                session.eval_rows(&ids, first, each).unwrap();
                // What comes after them, too.
                rows.extend_from_slice(session.step(7).unwrap());
                rows
            };
            let whole = rows(0);
            assert_eq!(whole.len(), (n + 1) * n_vocab);
            for first in [1, n / 2, n - 1, n] {
                let found = rows(first);
                assert!(found == whole[first * n_vocab..], "{name}: {first} of {n}");
            }
        }
    }
}

/// The output matrix makes the logits of the hidden states, which are the same in any batch.
#[test]
fn hidden_states_are_what_logits_are_made_of() {
    for (name, model) in models(&["llama-f16", "qwen35-f16", "gemma3n-f16"]) {
        let config = model.config();
        let (n_embd, n_vocab) = (config.n_embd, config.n_vocab);
        let ids = tokens(30, 5, n_vocab);
        let hidden = |n_batch: usize, first: usize| {
            let mut options = options(&model);
            (options.n_batch, options.exact, options.kv_type) = (n_batch, true, DType::F32);
            let mut session = Session::new(&model, ThreadPool::new(2), options).unwrap();
            let mut rows = Vec::new();
            let each = |i: usize, row: &[f32]| {
                assert_eq!(i, first + rows.len() / n_embd);
                rows.extend_from_slice(row);
            };
            session.eval_hidden(&ids, first, each).unwrap();
            assert_eq!(session.tokens(), ids);
            rows.extend_from_slice(session.step(7).unwrap());
            rows
        };
        let mut rows = hidden(64, 0);
        assert_eq!(rows.len(), 30 * n_embd + n_vocab);
        assert!(hidden(64, 11) == rows[11 * n_embd..], "{name}");
        assert!(
            common::relative_error(&hidden(7, 0), &rows) < 1e-5,
            "{name}"
        );
        rows.truncate(30 * n_embd);

        let mut options = options(&model);
        (options.exact, options.kv_type) = (true, DType::F32);
        let mut session = Session::new(&model, ThreadPool::new(2), options).unwrap();
        let (mut logits, mut made) = (Vec::new(), Vec::new());
        session
            .eval_rows(&ids, 0, |_, rows| logits.extend_from_slice(rows))
            .unwrap();
        let w = model.output().w.view();
        let mut weights = vec![0.0; n_vocab * n_embd];
        for (i, row) in weights.chunks_exact_mut(n_embd).enumerate() {
            tandem_kernels::quant::dequantize(w.dtype(), w.row(i), row);
        }
        for h in rows.chunks_exact(n_embd) {
            let row = |w: &[f32]| w.iter().zip(h).map(|(w, h)| w * h).sum::<f32>();
            made.extend(weights.chunks_exact(n_embd).map(row));
        }
        if let Some(cap) = config.logit_softcap {
            made.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        }
        let error = common::relative_error(&made, &logits);
        assert!(error < 1e-5, "{name}: {error}");
    }
}

/// A prompt comes to the same bits in one piece, in pieces of any size, and token by token, with as many threads
/// as one likes.
#[test]
fn a_prompt_in_pieces_has_the_bits_of_the_whole() {
    let peers = [
        "llama-q4_k",
        "qwen2-f16",
        "gemma3-f16",
        "phi3-f16",
        "gemma2-f16",
        "gemma4-f16",
        "gemma3n-f16",
        "lfm2-f16",
        "qwen35-f16",
        "granitehybridmoe-f16",
        "falcon-h1-f16",
        "nemotron_h-f16",
        "qwen3moe-f16",
    ];
    for (name, model) in models(&peers) {
        for kind in [AdapterType::Q8, AdapterType::F16] {
            for composition in &compositions(&model, kind)[..4] {
                let ids = tokens(70, 3, model.config().n_vocab);
                let logits = |piece: usize, n_threads: usize| {
                    let mut options = options(&model);
                    options.n_batch = 64;
                    let pool = ThreadPool::new(n_threads);
                    let mut session = Session::new(&model, pool, options).unwrap();
                    session.set_composition(composition.as_ref()).unwrap();
                    let mut last = Vec::new();
                    for ids in ids.chunks(piece) {
                        last = session.eval(ids).unwrap().to_vec();
                    }
                    last.extend_from_slice(session.step(9).unwrap());
                    last
                };
                let whole = logits(70, 2);
                for (piece, n_threads) in [(1, 2), (2, 1), (3, 2), (7, 1), (9, 2), (64, 1)] {
                    let found = logits(piece, n_threads);
                    assert!(found == whole, "{name} {kind:?}: pieces of {piece}");
                }
            }
        }
    }
}

/// The logits of each case, run with all others in the same passes or each alone.
fn run(model: &Model, cases: &[Case], together: bool) -> Vec<Vec<f32>> {
    let options = options(model);
    let n_vocab = model.config().n_vocab;
    let mut worker = Worker::new(model, ThreadPool::new(2), &options).unwrap();
    let mut sequences: Vec<Sequence> = cases
        .iter()
        .map(|case| {
            let mut sequence = Sequence::new(model, &options).unwrap();
            sequence.set_composition(case.composition.as_ref()).unwrap();
            sequence
        })
        .collect();
    let mut all = vec![Vec::new(); cases.len()];
    for pass in 0..cases[0].passes.len() {
        let mut logits: Vec<Vec<f32>> = cases
            .iter()
            .map(|case| vec![0.0; case.n_logits[pass] * n_vocab])
            .collect();
        let mut spans = Vec::new();
        for ((case, sequence), logits) in cases.iter().zip(&mut sequences).zip(&mut logits) {
            let tokens = &case.passes[pass][..];
            if tokens.is_empty() {
                continue;
            }
            let span = Span {
                sequence,
                tokens,
                logits,
            };
            match together {
                true => spans.push(span),
                false => worker.forward(&mut [span]).unwrap(),
            }
        }
        if !spans.is_empty() {
            worker.forward(&mut spans).unwrap();
        }
        for (all, logits) in all.iter_mut().zip(logits) {
            all.extend(logits);
        }
    }
    all
}

/// Prompts of several lengths beside single tokens, in passes of few rows and of many: the prompts of
/// some are tiles, of others not.
fn cases(model: &Model, kind: AdapterType) -> Vec<Case> {
    let lengths = [
        [20, 1, 1, 1, 0, 1],
        [3, 1, 5, 1, 1, 1],
        [1, 1, 1, 1, 13, 1],
        [9, 0, 1, 1, 1, 1],
        [2, 1, 1, 30, 1, 1],
    ];
    let n_vocab = model.config().n_vocab;
    let compositions = compositions(model, kind);
    lengths
        .iter()
        .zip(compositions)
        .enumerate()
        .map(|(seed, (lengths, composition))| Case {
            composition,
            passes: lengths.map(|n| tokens(n, seed + n, n_vocab)).into(),
            // Of some none, of some several, of most the last.
            n_logits: lengths
                .iter()
                .enumerate()
                .map(|(i, n)| match (i + seed) % 4 {
                    3 => 0,
                    2 => (*n).min(9),
                    _ => (*n).min(1),
                })
                .collect(),
        })
        .collect()
}

#[test]
fn a_pass_of_several_sequences_gives_each_the_bits_that_it_gets_alone() {
    let peers = [
        "llama-q4_k",
        "llama-f16",
        "gemma3-f16",
        "qwen3-f16",
        "phi3-f16",
        "mistral3-f16",
        "gemma2-f16",
        "gemma4-f16",
        "gemma3n-f16",
        "lfm2-f16",
        "qwen35-f16",
        "granitehybridmoe-f16",
        "falcon-h1-f16",
        "nemotron_h-f16",
        "qwen3moe-f16",
    ];
    for (name, model) in models(&peers) {
        for kind in [AdapterType::F32, AdapterType::Q8, AdapterType::Q4] {
            let cases = cases(&model, kind);
            let together = run(&model, &cases, true);
            let alone = run(&model, &cases, false);
            for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert!(
                    together.iter().all(|x| x.is_finite()),
                    "{name} {kind:?} {i}"
                );
                let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
                let n = together
                    .iter()
                    .zip(alone)
                    .filter(|pair| differs(*pair))
                    .count();
                assert_eq!(n, 0, "{name} {kind:?}: {n} logits of sequence {i} differ");
            }
            // The compositions count.
            assert_ne!(together[1], together[2], "{name} {kind:?}");
        }
    }
}

#[test]
fn a_worker_refuses_what_does_not_fit_and_evaluates_nothing_then() {
    let model = pocket();
    let other = pocket();
    let mut options = options(&model);
    options.n_batch = 8;
    let n_vocab = model.config().n_vocab;
    let mut worker = Worker::new(&model, ThreadPool::new(1), &options).unwrap();
    let mut good = Sequence::new(&model, &options).unwrap();
    let mut refuse = |sequence: &mut Sequence, tokens: &[u32], n_logits: usize| {
        let mut logits = vec![0.0; n_logits];
        let error = worker.forward(&mut [
            Span {
                sequence: &mut good,
                tokens: &[1],
                logits: &mut [],
            },
            Span {
                sequence,
                tokens,
                logits: &mut logits,
            },
        ]);
        assert!(good.tokens().is_empty());
        error.unwrap_err()
    };
    let new = |model: &Model, options: &SessionOptions| Sequence::new(model, options).unwrap();
    let mut own = new(&model, &options);
    assert_eq!(refuse(&mut own, &[], 0), SessionError::Empty);
    let id = n_vocab as u32;
    assert_eq!(
        refuse(&mut own, &[2, id], 0),
        SessionError::Token { id, n_vocab }
    );
    for n_logits in [1, n_vocab + 1, 3 * n_vocab] {
        let error = refuse(&mut own, &[2, 3], n_logits).to_string();
        assert!(error.contains("logits"), "{error}");
    }
    let error = refuse(&mut own, &[2; 8], 0);
    assert!(
        matches!(error, SessionError::Batch { n_tokens: 9, .. }),
        "{error}"
    );
    assert!(own.tokens().is_empty());
    let error = refuse(&mut new(&other, &options), &[2], 0).to_string();
    assert!(error.contains("another model"), "{error}");
    let mut small = options;
    (small.n_ctx, small.n_batch) = (4, 2);
    let error = refuse(&mut new(&model, &small), &[2, 3, 4], 0).to_string();
    assert!(error.contains("at once"), "{error}");
    let error = refuse(&mut new(&model, &small), &[2; 5], 0);
    let full = SessionError::ContextFull {
        n_ctx: 4,
        n_past: 0,
        n_new: 5,
    };
    assert_eq!(error, full);
    let mut none: [Span<'_>; 0] = [];
    assert_eq!(worker.forward(&mut none).unwrap_err(), SessionError::Empty);
}

/// Gemma 3's cache, as ring and whole: the same bits, whatever is done to it.
#[test]
fn a_window_s_ring_gives_the_bits_of_a_whole_cache() {
    let Some(path) = shared("peer/logits/gemma3-f16.gguf") else {
        return;
    };
    let model = Model::open(path).unwrap();
    let windows = model.config().attentions().filter_map(|a| a.window);
    let window = windows.max().unwrap();
    let n_batch = 8;
    let n = window + 12 * n_batch;
    let ids = tokens(n, 1, model.config().n_vocab);
    for kv_type in [DType::F32, DType::F16, DType::Q8_0] {
        let new = |n_places: usize| {
            let mut options = SessionOptions::for_model(model.config());
            (options.n_ctx, options.n_batch) = (n + 16, n_places);
            options.kv_type = kv_type;
            // Heads of other sizes have no such cache.
            Session::new(&model, ThreadPool::new(2), options).ok()
        };
        let (Some(mut ring), Some(mut whole)) = (new(n_batch), new(n + 16)) else {
            assert_eq!(kv_type, DType::Q8_0);
            continue;
        };
        for piece in ids.chunks(n_batch) {
            assert_eq!(ring.eval(piece).unwrap(), whole.eval(piece).unwrap());
        }
        // Back by what was evaluated at once, and on with something else.
        let back = n - n_batch;
        assert_eq!((ring.rewind(back), whole.rewind(back)), (back, back));
        let other = tokens(n_batch, 2, model.config().n_vocab);
        assert_eq!(ring.eval(&other).unwrap(), whole.eval(&other).unwrap());
        for token in [5, 6, 7] {
            assert_eq!(ring.step(token).unwrap(), whole.step(token).unwrap());
        }
        // Farther than it remembers: it begins again, the whole cache need not.
        let far = 3;
        assert_eq!((ring.rewind(far), whole.rewind(far)), (0, far));
        ring.eval(&ids[..far]).unwrap();
        assert_eq!(ring.tokens(), whole.tokens());
        for piece in ids[far..].chunks(n_batch) {
            let (a, b) = (ring.eval(piece).unwrap(), whole.eval(piece).unwrap());
            // The first tokens came in other pieces.
            assert!(common::relative_error(a, b) < 1e-2);
        }
    }
}

/// A pool that sets a flag behind so many runs.
struct Interrupting {
    interrupt: Arc<AtomicBool>,
    n_steps: Arc<AtomicUsize>,
}

impl Pool for Interrupting {
    fn n_threads(&self) -> usize {
        1
    }

    fn run_on(&self, _: usize, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n_tasks).for_each(task);
        let left = self.n_steps.load(Ordering::Relaxed);
        if left != usize::MAX {
            self.n_steps
                .store(left.saturating_sub(1), Ordering::Relaxed);
            self.interrupt.fetch_or(left <= 1, Ordering::Relaxed);
        }
    }
}

/// The shape of Gemma 3 270M.
fn gemma3_270m(mut config: Config) -> Config {
    let mut layers = vec![config.layers[0].clone(); 18];
    for (i, layer) in layers.iter_mut().enumerate() {
        if let MixerConfig::Attention(attention) = &mut layer.mixer {
            (attention.n_head, attention.n_head_kv, attention.head_dim) = (4, 1, 256);
            attention.window = (i % 6 != 5).then_some(512);
        }
    }
    (config.n_embd, config.layers) = (640, layers);
    config
}

#[test]
fn layers_with_a_window_remember_no_more_than_they_need() {
    let Some(path) = shared("peer/logits/gemma3-f16.gguf") else {
        return;
    };
    let config = gemma3_270m(Model::open(path).unwrap().config().clone());
    let mut options = SessionOptions::for_model(&config);
    (options.n_ctx, options.n_batch) = (32768, 256);
    // Keys and values of one head of 256 numbers of two bytes.
    let position = 2 * 256 * 2;
    let bytes = Sequence::n_bytes(&config, &options).unwrap();
    assert_eq!(bytes, position * (3 * 32768 + 15 * (512 + 256)));
    println!("{bytes} bytes, {} without windows", position * 18 * 32768);
}
