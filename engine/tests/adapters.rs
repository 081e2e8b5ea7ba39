//! Adapters on the model in `fixtures/`: what they compute, and what the KV cache keeps.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;
#[path = "common/adapters.rs"]
mod made_up;

use std::path::Path;

use common::pocket;
use common::{relative_error, shared};
use made_up::{adapter, floats, lora, random, safetensors, shape};
use tandem_engine::adapters::calibration::{self, Kind};
use tandem_engine::adapters::{MergeMethod, MergeOptions, merge};
use tandem_engine::{
    Adapter, AdapterType, Architecture, Composition, CompositionError, Compute, Config, DType,
    Level, Linears, Model, PackedAdapter, Serial, Session, SessionError, SessionOptions,
    SharedPool, ThreadPool,
};
use tandem_formats::adapter::{Floats, Lora};
use tandem_formats::{Gguf, Writer};
use tandem_kernels::quant;

fn session(model: &Model, pool: impl Into<SharedPool>, exact: bool) -> Session {
    let mut options = SessionOptions::for_model(model.config());
    options.exact = exact;
    options.n_ctx = 128;
    options.kv_type = DType::F32;
    Session::new(model, pool, options).unwrap()
}

fn pack(model: &Model, adapter: &Adapter, kind: AdapterType) -> PackedAdapter {
    PackedAdapter::pack(model.linears(), adapter, kind).unwrap()
}

/// The linears of a model with other hyperparameters.
fn linears(model: &Model, change: impl FnOnce(&mut Config)) -> Linears {
    let mut config = model.config().clone();
    change(&mut config);
    Linears::of(&config)
}

/// Plain Rust on one thread.
fn serial() -> Compute<'static> {
    Compute::new(Level::Scalar, &Serial)
}

const PROMPT: [u32; 12] = [1, 300, 17, 2000, 45, 999, 4000, 12, 3, 77, 505, 1234];

#[test]
fn a_prefix_is_kept_under_its_own_content_only() {
    let model = pocket();
    let pack = |seed| pack(&model, &adapter(model.linears(), 4, seed), AdapterType::Q8);
    let (a, a_again, b) = (pack(1), pack(1), pack(2));
    let base = model.linears();
    let only_a = Composition::new(base, &[(&a, 1.0)]).unwrap();
    let same = Composition::new(base, &[(&a_again, 1.0)]).unwrap();
    let others = [
        Composition::new(base, &[(&b, 1.0)]).unwrap(),
        Composition::new(base, &[(&a, 0.999)]).unwrap(),
        Composition::new(base, &[(&a, 1.0), (&b, 0.1)]).unwrap(),
    ];
    let (first, rest) = PROMPT.split_at(8);
    let fresh = |composition| {
        let mut session = session(&model, Serial, false);
        session.set_composition(composition).unwrap();
        session.eval(&PROMPT).unwrap().to_vec()
    };
    let prepared = || {
        let mut session = session(&model, Serial, false);
        session.set_composition(Some(&only_a)).unwrap();
        session.eval(first).unwrap();
        session
    };
    // The use that goes wrong where a prefix is kept that another composition computed.
    let reuse = |session: &mut Session| {
        let known = session.tokens().len();
        (known, session.eval(&PROMPT[known..]).unwrap().to_vec())
    };
    for other in others.iter().map(Some).chain([None]) {
        let mut session = prepared();
        session.set_composition(other).unwrap();
        let (known, logits) = reuse(&mut session);
        assert_eq!(known, 0);
        assert_eq!(logits, fresh(other));
        // What such a prefix would have led to: the test can fail.
        let mut wrong = prepared();
        wrong.eval(rest).unwrap();
        assert!(relative_error(&logits, wrong.step(5).unwrap()) > 1e-3);
    }
    for kept in [&only_a, &same] {
        let mut session = prepared();
        session.set_composition(Some(kept)).unwrap();
        let (known, logits) = reuse(&mut session);
        assert_eq!(known, first.len());
        // A batch of 8 and one of 4 sum in another order than one of 12.
        assert!(relative_error(&logits, &fresh(Some(kept))) < 1e-4);
    }
    // There and back: nothing of the first composition's is left that the second did not compute.
    let mut session = prepared();
    session.set_composition(Some(&others[0])).unwrap();
    session.eval(&first[..3]).unwrap();
    session.set_composition(Some(&same)).unwrap();
    assert!(session.tokens().is_empty());
}

#[test]
fn another_model_s_composition_is_refused() {
    let model = pocket();
    let smaller = linears(&model, |config| config.layers.truncate(1));
    let packed = PackedAdapter::pack(&smaller, &adapter(&smaller, 2, 1), AdapterType::F32).unwrap();
    let composition = Composition::new(&smaller, &[(&packed, 1.0)]).unwrap();
    let mut session = session(&model, Serial, false);
    session.eval(&PROMPT).unwrap();
    let result = session.set_composition(Some(&composition));
    assert!(matches!(result, Err(SessionError::Options { .. })));
    assert_eq!(session.tokens(), PROMPT);
    // Nor does an adapter of more layers or other widths become part of a composition.
    let larger = pack(&model, &adapter(model.linears(), 2, 1), AdapterType::F32);
    assert!(Composition::new(&smaller, &[(&larger, 1.0)]).is_err());
}

/// Steps, batches, threads and the types of factors give what they should.
#[test]
fn threads_and_batches_change_nothing() {
    let model = pocket();
    let base = model.linears();
    let pool = SharedPool::from(ThreadPool::new(2));
    let adapters = [adapter(base, 5, 1), adapter(base, 32, 2)];
    let mut truth = Vec::new();
    for (kind, exact, limit) in [
        (AdapterType::F32, true, 0.0),
        (AdapterType::F16, true, 1e-3),
        (AdapterType::Q8, true, 2e-2),
        (AdapterType::Q8, false, 4e-2),
        (AdapterType::F32, false, 4e-2),
        (AdapterType::Q4, false, 3e-1),
    ] {
        let packed = adapters.each_ref().map(|a| pack(&model, a, kind));
        let parts = [(&packed[0], 0.5), (&packed[1], -0.7)];
        let composition = Composition::new(base, &parts).unwrap();
        let serial = SharedPool::from(Serial);
        let run = |pool: &SharedPool, at_once: usize| {
            let mut session = session(&model, pool, exact);
            session.set_composition(Some(&composition)).unwrap();
            let mut all = Vec::new();
            for tokens in PROMPT.repeat(6).chunks(at_once) {
                session
                    .eval_rows(tokens, 0, |_, rows| all.extend_from_slice(rows))
                    .unwrap();
            }
            all
        };
        let batch = run(&pool, 100);
        if truth.is_empty() {
            truth = batch.clone();
        }
        let error = relative_error(&batch, &truth);
        println!("{kind:?} exact {exact}: {error:.1e}");
        assert!(error <= limit, "{kind:?} exact {exact}: {error}");
        assert_eq!(run(&serial, 100), batch);
        // The ranks of a single token are shared among threads, which cuts through segments.
        let one_by_one = run(&serial, 1);
        assert_eq!(run(&pool, 1), one_by_one);
        for at_once in [1, 33] {
            let error = relative_error(&run(&pool, at_once), &batch);
            // Rounding to int8 turns the last bits, in which one token's kernels differ from those
            // of many, into steps now and then; so it does without adapters.
            let limit = if exact { 1e-6 } else { 3e-2 };
            assert!(error <= limit, "{kind:?} {at_once}: {error}");
        }
    }
}

/// A model's file with all weights in float32 and `change` applied to each matrix, by its name.
fn rebuilt(gguf: &Gguf<'_>, mut change: impl FnMut(&str, &mut [f32], usize)) -> Vec<u8> {
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata() {
        writer.add(key, *value).unwrap();
    }
    let mut data = Vec::new();
    for t in gguf.tensors() {
        let mut values = vec![0.0; t.n_elements()];
        quant::dequantize(t.dtype, t.data, &mut values);
        if let Some(name) = t.name.strip_suffix(".weight") {
            change(name, &mut values, t.n_cols());
        }
        writer.add_tensor(t.name, t.shape(), DType::F32).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        data.push(bytes);
    }
    let data: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
    writer.to_vec(&data).unwrap()
}

/// Adds `scale b a` to a matrix.
fn bake(lora: &Lora, weight: f32, w: &mut [f32], n_in: usize) {
    let rank = lora.b.n_cols;
    for (row, b) in w
        .chunks_exact_mut(n_in)
        .zip(lora.b.values.chunks_exact(rank))
    {
        for (b, a) in b.iter().zip(lora.a.values.chunks_exact(n_in)) {
            let b = weight * lora.scale * b;
            row.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
        }
    }
}

/// Every linear of every architecture, fused ones and the output among them: the composition gives
/// what a model gives whose weights the adapter was added to.
#[test]
fn a_composition_computes_what_the_changed_weights_do() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket-q8_0.gguf");
    let mut models = vec![std::fs::read(path).unwrap()];
    for name in common::peers::PEERS {
        if let Some(path) = shared(&format!("peer/logits/{name}-f16.gguf")) {
            models.push(std::fs::read(path).unwrap());
        }
    }
    let pool = SharedPool::from(ThreadPool::new(2));
    for bytes in models {
        let gguf = Gguf::parse(&bytes).unwrap();
        let model = Model::from_bytes(bytes.clone()).unwrap();
        let is_linear = |name: &str| {
            let is_matrix = gguf
                .tensor(&format!("{name}.weight"))
                .is_some_and(|t| t.shape().len() == 2);
            let others = [
                "token_embd",
                "position_embd",
                "conv.conv",
                "ssm_conv1d",
                "ssm_norm",
                "ffn_gate_inp",
                "ffn_gate_inp_shexp",
            ];
            let is_other = |other: &&str| name.ends_with(*other) || name.contains("altup_");
            // Layers that see earlier ones' keys may carry what nobody reads.
            let is_unread = model.linears().by_name(name).is_none()
                && (name.ends_with(".attn_k") || name.ends_with(".attn_v"));
            is_matrix && !is_unread && !others.iter().any(is_other)
        };
        let mut loras = Vec::new();
        for t in gguf.tensors() {
            let Some(name) = t.name.strip_suffix(".weight") else {
                continue;
            };
            if is_linear(name) {
                let seed = loras.len() as u64;
                loras.push(lora(name, (t.n_rows(), t.n_cols()), 3, seed));
            }
        }
        let n_loras = loras.len();
        let adapter = Adapter::new(model.linears(), loras).unwrap();
        let mut n_baked = 0;
        let baked = rebuilt(&gguf, |name, w, n_in| {
            if let Some(lora) = adapter.modules().get(name) {
                bake(lora, 0.5, w, n_in);
                n_baked += 1;
            }
        });
        assert_eq!(n_baked, n_loras);
        let baked = Model::from_bytes(baked).unwrap();
        let tokens: Vec<u32> = PROMPT
            .iter()
            .map(|t| t % model.config().n_vocab as u32)
            .collect();
        let truth = session(&baked, &pool, true).eval(&tokens).unwrap().to_vec();

        let packed = pack(&model, &adapter, AdapterType::F32);
        let composition = Composition::new(model.linears(), &[(&packed, 0.5)]).unwrap();
        let mut session = session(&model, &pool, true);
        let plain = session.eval(&tokens).unwrap().to_vec();
        session.set_composition(Some(&composition)).unwrap();
        let logits = session.eval(&tokens).unwrap();
        let error = relative_error(logits, &truth);
        let arch = model.config().arch.name();
        println!("{arch}: {n_loras} linears, {error:.1e}");
        assert!(error <= 2e-5, "{arch}: {error}");
        assert!(relative_error(&plain, &truth) > 1e-2);
    }
}

/// The logits of a composition, exactly.
fn logits(model: &Model, parts: &[(&PackedAdapter, f32)]) -> Vec<f32> {
    let composition = Composition::new(model.linears(), parts).unwrap();
    let mut session = session(model, Serial, true);
    session.set_composition(Some(&composition)).unwrap();
    session.eval(&PROMPT).unwrap().to_vec()
}

#[test]
fn a_projection_stands_between_the_factors() {
    let model = pocket();
    let base = model.linears();
    let adapters = [adapter(base, 2, 1), adapter(base, 3, 2)];
    let packed = adapters
        .each_ref()
        .map(|a| pack(&model, a, AdapterType::F32));
    let weights = [0.5, -0.25];
    let cat = logits(&model, &[(&packed[0], 0.5), (&packed[1], -0.25)]);
    let project = |m: &Floats, key: &str| {
        let tensors = [(key, &[5, 5][..], &m.values[..])];
        let file = tandem_formats::adapter::calibration::read(&safetensors(&tensors)).unwrap();
        let adapters = [&adapters[0], &adapters[1]];
        calibration::project(base, &file, &adapters, &weights).unwrap()
    };
    let run =
        |adapter: &Adapter| logits(&model, &[(&pack(&model, adapter, AdapterType::F32), 1.0)]);
    // The matrix that stands for weights and scales is the merge `cat`.
    let mut m = floats(5, 5, || 0.0);
    for i in 0..5 {
        m.values[6 * i] = 1.5 * if i < 2 { 0.5 } else { -0.25 };
    }
    assert!(relative_error(&run(&project(&m, "v_proj.M")), &cat) < 1e-5);
    assert!(relative_error(&run(&project(&m, "layers.2.v_proj.M")), &cat) < 1e-5);
    // Another one, in one layer: B M by hand.
    let m = floats(5, 5, random(9));
    let found = project(&m, "layers.1.up_proj.M");
    let plain = merge(
        base,
        &[&adapters[0], &adapters[1]],
        &weights,
        &options(MergeMethod::Cat),
        serial(),
    )
    .unwrap();
    for (name, lora) in found.modules() {
        if name != "blk.1.ffn_up" {
            assert_eq!(lora, &plain.modules()[name]);
            continue;
        }
        for (o, row) in lora.b.values.chunks_exact(5).enumerate() {
            let b = [
                &adapters[0].modules()[name].b.values[2 * o..][..2],
                &adapters[1].modules()[name].b.values[3 * o..][..3],
            ]
            .concat();
            for (k, x) in row.iter().enumerate() {
                let truth: f32 = (0..5).map(|j| b[j] * m.values[5 * j + k]).sum();
                assert!((x - truth).abs() < 1e-5);
            }
        }
    }
}

fn options(method: MergeMethod) -> MergeOptions {
    let mut options = MergeOptions::new(method);
    options.seed = 7;
    options
}

#[test]
fn a_layer_s_own_calibration_takes_the_place_of_the_shared_one() {
    let model = pocket();
    let base = model.linears();
    let n_out = shape(base, "blk.0.ffn_down").0;
    let p = floats(n_out, 1, random(1)).values;
    let zero = vec![0.0; n_out];
    let pack = |tensors: &[(&str, &[usize], &[f32])]| {
        let file = tandem_formats::adapter::calibration::read(&safetensors(tensors)).unwrap();
        calibration::pack(base, &file, Kind::OutputBias, AdapterType::F32).unwrap()
    };
    let shape = &[n_out][..];
    let one_layer = pack(&[("layers.3.down_proj.p", shape, &p)]);
    let names: Vec<String> = (0..base.n_layer())
        .filter(|i| *i != 3)
        .map(|i| format!("layers.{i}.down_proj.p"))
        .collect();
    let mut tensors: Vec<(&str, &[usize], &[f32])> =
        names.iter().map(|n| (&n[..], shape, &zero[..])).collect();
    tensors.push(("down_proj.p", shape, &p));
    assert_eq!(
        logits(&model, &[(&one_layer, 1.0)]),
        logits(&model, &[(&pack(&tensors), 1.0)])
    );
    let everywhere = pack(&[("down_proj.p", shape, &p)]);
    assert_ne!(
        logits(&model, &[(&one_layer, 1.0)]),
        logits(&model, &[(&everywhere, 1.0)])
    );
    // One vector serves all layers.
    assert_eq!(everywhere.n_bytes(), 4 * n_out);
}

#[test]
fn merges_are_deterministic_and_take_negative_weights() {
    let model = pocket();
    // One layer is enough.
    let base = &linears(&model, |config| config.layers.truncate(1));
    let adapters = [adapter(base, 4, 1), adapter(base, 4, 2)];
    let adapters = [&adapters[0], &adapters[1]];
    let dense = |a: &Adapter| -> Vec<f32> {
        let lora = &a.modules()["blk.0.attn_q"];
        let mut w = vec![0.0; lora.b.n_rows * lora.a.n_cols];
        bake(lora, 1.0, &mut w, lora.a.n_cols);
        w
    };
    let sum = |x: f32, y: f32| -> Vec<f32> {
        let (a, b) = (dense(adapters[0]), dense(adapters[1]));
        a.iter().zip(&b).map(|(a, b)| x * a + y * b).collect()
    };
    for method in MergeMethod::ALL {
        for dense_form in [false, true] {
            let mut options = options(method);
            (options.density, options.rank) = (0.6, Some(8));
            options.dense = dense_form;
            let merged = merge(base, &adapters, &[0.5, -1.0], &options, serial()).unwrap();
            assert_eq!(
                merged,
                merge(base, &adapters, &[0.5, -1.0], &options, serial()).unwrap()
            );
            let lora = &merged.modules()["blk.0.attn_q"];
            let rank = match method {
                MergeMethod::Cat | MergeMethod::Svd | MergeMethod::Slerp => 8,
                _ if dense_form => 8,
                _ => 4,
            };
            assert_eq!((lora.a.n_rows, lora.scale), (rank, 1.0));
            let mut seeded = options.clone();
            seeded.seed = 8;
            let other = merge(base, &adapters, &[0.5, -1.0], &seeded, serial()).unwrap();
            let is_random = matches!(method, MergeMethod::DareLinear | MergeMethod::DareTies);
            assert_eq!(other != merged, is_random, "{method:?}");
        }
    }
    let merged = |options: &MergeOptions, weights: &[f32]| {
        dense(&merge(base, &adapters, weights, options, serial()).unwrap())
    };
    // Both are the sum, whatever the weights' signs, and a rank of 8 holds all of it.
    let truth = sum(0.5, -1.0);
    let cat = merged(&options(MergeMethod::Cat), &[0.5, -1.0]);
    assert!(relative_error(&cat, &truth) < 1e-5);
    for method in [MergeMethod::Svd, MergeMethod::Linear] {
        let mut options = options(method);
        (options.rank, options.dense) = (Some(8), true);
        assert!(relative_error(&merged(&options, &[0.5, -1.0]), &truth) < 1e-5);
    }
    // On the arc between both products, at two thirds of it; one is turned round.
    let (one, other) = (sum(1.0, 0.0), sum(0.0, -1.0));
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        let products = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    let angle = (dot(&one, &other) / (dot(&one, &one) * dot(&other, &other)).sqrt()).acos();
    let on_arc = |share: f64| (1.5 * (share * angle).sin() / angle.sin()) as f32;
    let truth = sum(on_arc(1.0 / 3.0), -on_arc(2.0 / 3.0));
    let slerp = merged(&options(MergeMethod::Slerp), &[0.5, -1.0]);
    assert!(relative_error(&slerp, &truth) < 1e-5);
    let three = [adapters[0], adapters[1], adapters[0]];
    let options_of_slerp = options(MergeMethod::Slerp);
    let error = merge(base, &three, &[1.0; 3], &options_of_slerp, serial());
    assert!(matches!(error, Err(CompositionError::Option { .. })));
    // Of one adapter alone every method at full density is that adapter times its weight; the sign
    // is on A alone, so that it does not cancel.
    for method in MergeMethod::ALL {
        let one = merge(base, &adapters[..1], &[-2.0], &options(method), serial()).unwrap();
        let error = relative_error(&dense(&one), &sum(-2.0, 0.0));
        assert!(error < 1e-5, "{method:?}: {error}");
    }
    // Different ranks are named.
    let small = adapter(base, 3, 5);
    let error = merge(
        base,
        &[adapters[0], &small],
        &[1.0, 1.0],
        &options(MergeMethod::Ties),
        serial(),
    );
    assert!(
        matches!(error, Err(CompositionError::Ranks { ref name, found: (4, 3) }) if name.starts_with("blk.0"))
    );
    // TIES of the products, by its definition.
    let mut ties = options(MergeMethod::Ties);
    (ties.dense, ties.rank) = (true, Some(model.config().n_embd));
    let found = merged(&ties, &[0.5, 2.0]);
    let (a, b) = (dense(adapters[0]), dense(adapters[1]));
    let truth: Vec<f32> = a
        .iter()
        .zip(&b)
        .map(|(a, b)| match (a * b > 0.0, a + b >= 0.0) {
            (true, _) => (0.5 * a + 2.0 * b) / 2.0,
            (false, positive) if (*a > 0.0) == positive => 0.5 * a,
            _ => 2.0 * b,
        })
        .collect();
    assert!(relative_error(&found, &truth) < 1e-4);
}

/// Factors at the ends of float32's range: an error where logits are no numbers, no panic.
#[test]
fn extreme_factors_do_not_panic() {
    let model = pocket();
    let base = model.linears();
    for value in [f32::MAX, f32::MIN_POSITIVE, 1e-45, 0.0] {
        for kind in AdapterType::ALL {
            let mut lora = lora("blk.2.ffn_down", shape(base, "blk.2.ffn_down"), 7, 1);
            lora.a.values.fill(value);
            lora.b.values.iter_mut().step_by(2).for_each(|x| *x = value);
            let adapter = Adapter::new(base, vec![lora]).unwrap();
            let Ok(packed) = PackedAdapter::pack(base, &adapter, kind) else {
                assert_eq!(value, f32::MAX);
                continue;
            };
            let composition = Composition::new(base, &[(&packed, 1.0)]).unwrap();
            let mut session = session(&model, Serial, true);
            session.set_composition(Some(&composition)).unwrap();
            match session.eval(&PROMPT) {
                Ok(logits) => assert!(logits.iter().all(|x| x.is_finite())),
                Err(error) => {
                    assert_eq!(error, SessionError::NotFinite { tensor: None });
                    assert_eq!(value, f32::MAX, "{kind:?}");
                }
            }
        }
    }
}

#[test]
fn adapters_for_a_tensor_and_for_a_part_of_it_are_not_joined() {
    let model = pocket();
    let phi3 = Architecture::from_name("phi3").unwrap();
    let base = &linears(&model, |config| config.arch = phi3);
    let (n_ff, n_embd) = shape(base, "blk.0.ffn_up");
    // Phi 3's tensor holds gate and up.
    let of = |n_out: usize| {
        let lora = lora("blk.0.ffn_up", (n_out, n_embd), 4, 1);
        Adapter::new(base, vec![lora]).unwrap()
    };
    let (part, whole) = (of(n_ff), of(2 * n_ff));
    let is_refused = |e: &CompositionError| {
        let text = e.to_string();
        text.contains("blk.0.ffn_up") && text.contains(&(2 * n_ff).to_string())
    };
    for adapters in [[&part, &whole], [&whole, &part]] {
        for method in MergeMethod::ALL {
            let mut options = MergeOptions::new(method);
            options.density = 0.5;
            let error = merge(base, &adapters, &[0.5, 0.5], &options, serial()).unwrap_err();
            assert!(is_refused(&error), "{error}");
        }
        let m = floats(8, 8, random(1));
        let parts = tandem_formats::adapter::calibration::Parts {
            m: Some(m),
            ..Default::default()
        };
        let modules = [((None, "ffn_up".to_string()), parts)].into();
        let projection = calibration::Calibration::new(base, modules).unwrap();
        let error = projection
            .project(base, &adapters, &[0.5, 0.5])
            .unwrap_err();
        assert!(is_refused(&error), "{error}");
    }
}
