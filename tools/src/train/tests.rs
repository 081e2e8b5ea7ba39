//! The network against the engine, its gradients against differences.

use std::path::{Path, PathBuf};

use tandem_engine::adapters::calibration;
use tandem_engine::blocks::AttentionConfig;
use tandem_engine::{AdapterType, Composition, DType, PackedAdapter};
use tandem_formats::adapter::{Floats, Lora};

use super::data::{Batch, Example};
use super::*;

const PEERS: [&str; 19] = [
    "llama-f16",
    "llama3rope-f16",
    "qwen2-f16",
    "qwen3-f16",
    "stablelm-f16",
    "gemma3-f16",
    "phi3-f16",
    "mistral3-f16",
    "smollm3-f16",
    "granite-f16",
    "gemma2-f16",
    "exaone4-f16",
    "hunyuan-dense-f16",
    "glm4-f16",
    "olmo2-f16",
    "nemotron-f16",
    "starcoder2-f16",
    "llama-q4_k",
    "llama-q8_0",
];

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Models to test with: the peers' where they are, and always the fixture.
fn models() -> Vec<PathBuf> {
    let peers = PEERS.map(|name| folder(&format!("../shared/peer/logits/{name}.gguf")));
    let (there, missing): (Vec<_>, Vec<_>) = peers.into_iter().partition(|path| path.exists());
    missing
        .iter()
        .for_each(|path| eprintln!("skipped: {} is not here", path.display()));
    [vec![folder("fixtures/pocket-q8_0.gguf")], there].concat()
}

/// Everything in float32.
fn exactly(n_ctx: usize, n_positions: usize) -> NetworkForm {
    NetworkForm {
        n_ctx,
        n_positions,
        exact: true,
    }
}

fn forms() -> Vec<(Form, &'static str)> {
    let mut forms = Vec::new();
    for shared in [true, false] {
        for kind in Kind::ALL {
            let form = Form::Calibration {
                kind,
                rank: 3,
                shared,
            };
            forms.push((form, kind.name()));
        }
    }
    let lora = Form::Lora {
        rank: 4,
        alpha: 6.0,
    };
    forms.push((lora, "lora"));
    forms
}

/// An adapter for all tensors that adapters of this architecture may have.
fn adapter(base: &Linears, rank: usize, seed: u64) -> Adapter {
    let mut random = random::generator(seed, 99);
    let mut floats = |n_rows, n_cols, size: f32| Floats {
        n_rows,
        n_cols,
        values: (0..n_rows * n_cols)
            .map(|_| size * random::uniform(&mut random))
            .collect(),
    };
    let mut loras = Vec::new();
    for layer in 0..base.n_layer() {
        for module in base.arch().modules() {
            let tensor = base.of_module(layer, *module).unwrap();
            let (n_out, n_in) = (tensor.n_out, tensor.n_in);
            loras.push(Lora {
                module: format!("blk.{layer}.{}", module.tensor),
                a: floats(rank, n_in, 1.0 / (n_in as f32).sqrt()),
                b: floats(n_out, rank, 0.2),
                scale: 1.5,
            });
        }
    }
    Adapter::new(base, loras).unwrap()
}

/// Values that are not those of the plain merge.
fn stir(learned: &Learned, seed: u64) {
    let mut random = random::generator(seed, 98);
    let mut values = learned.values().unwrap();
    for values in &mut values {
        values
            .iter_mut()
            .for_each(|x| *x += 0.05 * random::uniform(&mut random));
    }
    learned.set(&values).unwrap();
}

fn composed(base: &Linears) -> Composed {
    Composed {
        members: vec![(adapter(base, 4, 1), 0.5), (adapter(base, 3, 2), 0.25)],
        merged: None,
        prompt: None,
    }
}

fn learned(base: &Linears, form: &Form, composed: &Composed) -> Learned {
    let mut random = random::generator(3, FOR_VALUES);
    let learned = Learned::new(base, form.clone(), &[], &composed.members(), &mut random);
    learned.unwrap()
}

fn example(n: usize, n_prompt: usize, n_vocab: usize, seed: usize) -> Example {
    Example {
        line: seed,
        tokens: (0..n)
            .map(|i| ((i * 37 + seed * 11 + 5) % n_vocab) as u32)
            .collect(),
        n_prompt,
    }
}

/// The engine's logits after each token.
fn engine(
    model: &Model,
    composed: &Composed,
    learned: &Learned,
    form: &Form,
    tokens: &[u32],
) -> Vec<f32> {
    let base = model.linears();
    let f32 = AdapterType::F32;
    let pack = |adapter: &Adapter| PackedAdapter::pack(base, adapter, f32).unwrap();
    let mut parts = Vec::new();
    match form {
        Form::Calibration {
            kind: Kind::Projection,
            ..
        } => {
            let (adapters, weights): (Vec<_>, Vec<_>) = composed.members().into_iter().unzip();
            let calibration = learned.calibration(base).unwrap();
            let one = calibration.project(base, &adapters, &weights).unwrap();
            parts.push((pack(&one), 1.0));
        }
        _ => {
            for (adapter, weight) in &composed.members {
                parts.push((pack(adapter), *weight));
            }
            parts.push((
                match form {
                    Form::Calibration { kind, .. } => {
                        let calibration = learned.calibration(base).unwrap();
                        calibration.pack(base, *kind, f32).unwrap()
                    }
                    Form::Lora { .. } => pack(&learned.adapter(base).unwrap()),
                },
                1.0,
            ));
        }
    }
    let parts: Vec<_> = parts.iter().map(|(part, weight)| (part, *weight)).collect();
    let composition = Composition::new(base, &parts).unwrap();
    let session = model.session().threads(1).exact(true).kv_type(DType::F32);
    let mut session = session.composition(&composition).build().unwrap();
    let mut all = Vec::new();
    session
        .eval_rows(tokens, 0, |_, rows| all.extend_from_slice(rows))
        .unwrap();
    all
}

#[test]
fn logits_are_the_engine_s() {
    for path in models() {
        let model = Model::open(&path).unwrap();
        let config = model.config();
        let composed = composed(model.linears());
        // Longer than the sliding windows; two sequences, of one of which the end alone matters.
        let whole = example(40, 1, config.n_vocab, 1);
        let part = example(23, 15, config.n_vocab, 2);
        for (form, name) in forms() {
            let learned = learned(model.linears(), &form, &composed);
            stir(&learned, 4);
            let n_ctx = SessionOptions::for_model(config).n_ctx;
            let network = composed
                .network(&model, &learned, exactly(n_ctx, 40))
                .unwrap();
            let batch = Batch::new([&whole, &part]).unwrap();
            let logits = network.logits(&learned, &batch).unwrap();
            let mut logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            if let Some(cap) = config.logit_softcap {
                logits.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
            }
            let mut truth = engine(&model, &composed, &learned, &form, &whole.tokens[..39]);
            let rest = engine(&model, &composed, &learned, &form, &part.tokens[..22]);
            truth.extend_from_slice(&rest[14 * config.n_vocab..]);
            assert_eq!(logits.len(), truth.len());
            let square = |x: f32| f64::from(x) * f64::from(x);
            let error: f64 = logits.iter().zip(&truth).map(|(a, b)| square(a - b)).sum();
            let error = (error / truth.iter().map(|x| square(*x)).sum::<f64>()).sqrt();
            println!("{} {name}: {error:.1e}", path.display());
            assert!(error < 1e-5, "{} {name}: {error}", path.display());
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for path in models() {
        let model = Model::open(&path).unwrap();
        let config = model.config();
        let composed = composed(model.linears());
        let examples = [
            example(14, 9, config.n_vocab, 1),
            example(9, 4, config.n_vocab, 2),
        ];
        for (form, name) in forms() {
            let learned = learned(model.linears(), &form, &composed);
            stir(&learned, 4);
            let network = composed.network(&model, &learned, exactly(64, 64)).unwrap();
            let batch = Batch::new(&examples).unwrap();
            let loss = || network.loss(&learned, &batch).unwrap();
            let gradients = loss().backward().unwrap();
            let start = learned.values().unwrap();
            for (i, var) in learned.vars().iter().enumerate() {
                let gradient = gradients.get(var).unwrap().flatten_all().unwrap();
                let gradient = gradient.to_vec1::<f32>().unwrap();
                let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
                let tensor = &learned.names()[i];
                // A key's bias adds the same to all scores of a query, but for the rotation:
                // some gradients are small, and none but those without a rotation is nothing.
                let is_unturned = |(i, attention): (usize, &AttentionConfig)| {
                    attention.rope.is_none() && *tensor == format!("blk.{i}.attn_k.p")
                };
                if norm < 1e-6 && config.attentions().enumerate().any(is_unturned) {
                    continue;
                }
                assert!(norm > 1e-6, "{} {name} {tensor}", path.display());
                // So far along the gradient that the loss changes by some hundredths: enough to
                // stand out of float32's rounding, and little enough to be nearly a line.
                let size = (0.02 / norm).min(0.02);
                let at = |sign: f32| {
                    let mut values = start.clone();
                    for (x, g) in values[i].iter_mut().zip(&gradient) {
                        *x += sign * size * g / norm;
                    }
                    learned.set(&values).unwrap();
                    f64::from(loss().to_scalar::<f32>().unwrap())
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(size));
                learned.set(&start).unwrap();
                let error = (slope / f64::from(norm) - 1.0).abs();
                // What float32 can tell apart in two losses of this size.
                let noise = 2e-5 / (f64::from(size) * f64::from(norm));
                assert!(
                    error < 1e-2 + noise,
                    "{} {name} {tensor}: {slope} {norm}",
                    path.display()
                );
                assert!(
                    noise < 0.2,
                    "{} {name} {tensor}: {norm} is too small to tell",
                    path.display()
                );
            }
        }
    }
}

/// What inputs rounded to int8 cost: the loss hardly moves, and gradients point where they pointed.
#[test]
fn rounded_inputs_turn_gradients_little() {
    for path in models() {
        let model = Model::open(&path).unwrap();
        if !model.output().w.dtype().is_quantized() {
            continue;
        }
        let n_vocab = model.config().n_vocab;
        let composed = composed(model.linears());
        let examples = [example(40, 20, n_vocab, 1), example(29, 14, n_vocab, 2)];
        let batch = Batch::new(&examples).unwrap();
        for (form, name) in forms() {
            let learned = learned(model.linears(), &form, &composed);
            stir(&learned, 4);
            let run = |exact: bool| {
                let form = NetworkForm {
                    exact,
                    ..exactly(64, 64)
                };
                let network = composed.network(&model, &learned, form).unwrap();
                let loss = network.loss(&learned, &batch).unwrap();
                let gradients = loss.backward().unwrap();
                let of_var = |var| gradients.get(var).unwrap().flatten_all().unwrap();
                let all = learned.vars().iter();
                let all = all.flat_map(|var| of_var(var).to_vec1::<f32>().unwrap());
                let all: Vec<f64> = all.map(f64::from).collect();
                (f64::from(loss.to_scalar::<f32>().unwrap()), all)
            };
            let ((loss, gradient), (rounded_loss, rounded)) = (run(true), run(false));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let cosine = dot(&gradient, &rounded)
                / (dot(&gradient, &gradient) * dot(&rounded, &rounded)).sqrt();
            let change = (rounded_loss / loss - 1.0).abs();
            println!(
                "{} {name}: loss {change:.1e}, cosine {cosine:.5}",
                path.display()
            );
            assert!(
                change > 0.0 && change < 1e-2,
                "{name}: {loss} {rounded_loss}"
            );
            // Lowest found: 0.9994 on the trained model, 0.9981 on a peer's random weights.
            assert!(cosine > 0.997, "{name}: {cosine}");
        }
    }
}

/// A module alone learns, the others are left alone.
#[test]
fn modules_can_be_chosen() {
    let model = Model::open(folder("fixtures/pocket-q8_0.gguf")).unwrap();
    let base = model.linears();
    let form = Form::Calibration {
        kind: Kind::OutputBias,
        rank: 4,
        shared: true,
    };
    let composed = composed(base);
    let new = |modules: &[&str]| {
        let modules: Vec<String> = modules.iter().map(|m| m.to_string()).collect();
        let mut random = random::generator(3, FOR_VALUES);
        Learned::new(
            base,
            form.clone(),
            &modules,
            &composed.members(),
            &mut random,
        )
    };
    let some = new(&["down_proj", "v_proj"]).unwrap();
    assert_eq!(some.names(), ["attn_v.p", "ffn_down.p"]);
    let has = |name| some.term(base.by_name(name).unwrap().id).unwrap().is_some();
    assert!(has("blk.2.ffn_down") && !has("blk.2.ffn_up"));
    let error = new(&["dwon_proj"]).err().unwrap().to_string();
    assert!(
        error.contains("dwon_proj") && error.contains("down_proj"),
        "{error}"
    );
    // LC's size in the paper's terms: a vector for each module, whatever the number of layers.
    assert_eq!(new(&[]).unwrap().n_parameters(), 2560);
}

/// What is written is read back by the engine as what was trained.
#[test]
fn files_hold_what_was_learned() {
    let model = Model::open(folder("fixtures/pocket-q8_0.gguf")).unwrap();
    let base = model.linears();
    let composed = composed(base);
    let folder = tempfile::tempdir().unwrap();
    for (form, name) in forms() {
        let learned = learned(base, &form, &composed);
        stir(&learned, 5);
        match form {
            Form::Calibration { .. } => {
                let path = folder.path().join(name);
                let calibration = learned.calibration(base).unwrap();
                output::calibration(&path, base, &calibration).unwrap();
                let file = std::fs::read(&path).unwrap();
                let file = tandem_formats::adapter::calibration::read(&file).unwrap();
                assert!(file.keys().all(|(_, module)| module.ends_with("_proj")));
                let back = calibration::Calibration::from_file(base, &file).unwrap();
                assert_eq!(back, calibration);
            }
            Form::Lora { rank, alpha } => {
                let adapter = learned.adapter(base).unwrap();
                let path = folder.path().join("adapter");
                let (gguf, lora) = (Path::new("base.gguf"), output::LoraConfig { rank, alpha });
                output::peft(&path, base, &adapter, lora, gguf).unwrap();
                assert_eq!(crate::adapters::read(&path, base).unwrap(), adapter);
            }
        }
    }
}
