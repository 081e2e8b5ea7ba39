//! Adapters, merges and calibrations against what PEFT computes.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::fs::File;
use std::path::Path;

use common::{divergence, relative_error, shared, tokens};
use tandem_engine::adapters::calibration::{self, Kind};
use tandem_engine::adapters::{MergeMethod, MergeOptions, merge};
use tandem_engine::{
    Adapter, AdapterType, Composition, Compute, DType, Level, Linears, Model, PackedAdapter,
    Session, SessionOptions, SharedPool, ThreadPool, argmax,
};

const N_VOCAB: usize = 512;

fn read_adapter(base: &Linears, folder: &Path) -> Adapter {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    Adapter::from_peft(
        base,
        &read("adapter_config.json"),
        &read("adapter_model.safetensors"),
    )
    .unwrap()
}

/// What a key of the goldens asks for.
#[derive(Clone)]
struct Recipe {
    adapters: Vec<String>,
    weights: Vec<f32>,
    merge: Option<MergeOptions>,
    calibration: Option<Kind>,
}

impl Recipe {
    /// `summarize`, `ties_0.5_0.5_d0.5`, `svd_1_1_r8`, `cat_0.5_0.5+lc_low_rank`.
    fn parse(key: &str) -> Recipe {
        let (key, calibration) = match key.split_once("+lc_") {
            Some((key, kind)) => (key, Some(Kind::from_name(kind).unwrap())),
            None => (key, None),
        };
        let method = MergeMethod::ALL
            .into_iter()
            .find(|m| key.starts_with(&format!("{}_", m.name())));
        let Some(method) = method else {
            return Recipe {
                adapters: vec![key.to_string()],
                weights: vec![1.0],
                merge: None,
                calibration,
            };
        };
        let mut options = MergeOptions::new(method);
        let mut weights = Vec::new();
        for part in key[method.name().len() + 1..].split('_') {
            if let Some(density) = part.strip_prefix('d') {
                options.density = density.parse().unwrap();
            } else if let Some(rank) = part.strip_prefix('r') {
                options.rank = Some(rank.parse().unwrap());
            } else {
                weights.push(part.parse().unwrap());
            }
        }
        Recipe {
            adapters: vec!["summarize".to_string(), "translate".to_string()],
            weights,
            merge: (method != MergeMethod::Cat).then_some(options),
            calibration,
        }
    }
}

/// The logits of every position under a recipe.
fn run(
    model: &Model,
    folder: &Path,
    tokens: &[u32],
    recipe: &Recipe,
    adapter_type: AdapterType,
    change: impl FnOnce(&mut SessionOptions),
) -> Vec<f32> {
    let base = model.linears();
    let adapters: Vec<Adapter> = recipe
        .adapters
        .iter()
        .map(|name| read_adapter(base, &folder.join(name)))
        .collect();
    let mut parts: Vec<(PackedAdapter, f32)> = match &recipe.merge {
        Some(options) => {
            let adapters: Vec<&Adapter> = adapters.iter().collect();
            let pool = ThreadPool::new(2);
            let compute = Compute::new(Level::detect(), &pool);
            let merged = merge(base, &adapters, &recipe.weights, options, compute).unwrap();
            vec![(
                PackedAdapter::pack(base, &merged, adapter_type).unwrap(),
                1.0,
            )]
        }
        None => adapters
            .iter()
            .zip(&recipe.weights)
            .map(|(a, w)| (PackedAdapter::pack(base, a, adapter_type).unwrap(), *w))
            .collect(),
    };
    if let Some(kind) = recipe.calibration {
        let bytes = std::fs::read(folder.join("calibration.safetensors")).unwrap();
        let file = tandem_formats::adapter::calibration::read(&bytes).unwrap();
        let packed = calibration::pack(base, &file, kind, adapter_type).unwrap();
        parts.push((packed, 1.0));
    }
    let parts: Vec<(&PackedAdapter, f32)> = parts.iter().map(|(p, w)| (p, *w)).collect();
    let composition = Composition::new(base, &parts).unwrap();
    let mut options = SessionOptions::for_model(model.config());
    change(&mut options);
    let mut session = Session::new(model, ThreadPool::new(2), options).unwrap();
    session.set_composition(Some(&composition)).unwrap();
    let mut all = Vec::new();
    session
        .eval_rows(tokens, 0, |_, rows| all.extend_from_slice(rows))
        .unwrap();
    all
}

#[test]
fn every_recipe_agrees_with_peft() {
    if shared("peer/logits").is_none() {
        return;
    }
    for (name, n_recipes) in [
        ("llama", 13),
        ("qwen2", 13),
        ("stablelm", 13),
        ("mistral3", 3),
        ("gemma2", 3),
        ("gemma4", 3),
        ("lfm2", 3),
        ("qwen35", 3),
        ("qwen3moe", 3),
        ("granitehybrid", 3),
    ] {
        let model = Model::open(shared(&format!("peer/logits/{name}-f16.gguf")).unwrap()).unwrap();
        let folder = shared(&format!("peer/logits/{name}-lora")).unwrap();
        let goldens = File::open(folder.join("peft-logits.npz")).unwrap();
        let mut goldens = npyz::npz::NpzArchive::new(goldens).unwrap();
        let keys: Vec<String> = goldens.array_names().map(String::from).collect();
        assert_eq!(keys.len(), n_recipes);
        for key in keys {
            let expected: Vec<f32> = goldens.by_name(&key).unwrap().unwrap().into_vec().unwrap();
            let recipe = Recipe::parse(&key);
            let logits = run(
                &model,
                &folder,
                &tokens(name),
                &recipe,
                AdapterType::F32,
                |o| {
                    o.exact = true;
                    o.kv_type = DType::F32;
                },
            );
            let error = relative_error(&logits, &expected);
            println!("{name} {key}: {error:.1e}");
            assert!(error <= 1e-5, "{name} {key}: {error}");
        }
    }
}

#[test]
fn int8_adapters_on_quantized_weights_stay_near_float_ones() {
    if shared("peer/logits").is_none() {
        return;
    }
    let folder = shared("peer/logits/llama-lora").unwrap();
    let goldens = File::open(folder.join("peft-logits.npz")).unwrap();
    let goldens = npyz::npz::NpzArchive::new(goldens).unwrap();
    let keys: Vec<String> = goldens.array_names().map(String::from).collect();
    for base in ["q8_0", "q4_0", "q4_k", "q6_k"] {
        let path = shared(&format!("peer/logits/llama-{base}.gguf")).unwrap();
        let model = Model::open(path).unwrap();
        assert_eq!(AdapterType::for_model(&model, false), AdapterType::Q8);
        for key in &keys {
            let (recipe, tokens) = (Recipe::parse(key), tokens("llama"));
            let truth = run(&model, &folder, &tokens, &recipe, AdapterType::F32, |o| {
                o.exact = true;
                o.kv_type = DType::F32;
            });
            for (adapter_type, limit) in [(AdapterType::Q8, 5e-3), (AdapterType::Q4, 1e-1)] {
                let logits = run(&model, &folder, &tokens, &recipe, adapter_type, |_| {});
                let (kl, top1) = divergence(&logits, &truth, N_VOCAB);
                println!("{base} {adapter_type:?} {key}: KL {kl:.1e}, top-1 {top1:.3}");
                assert!(kl <= limit, "{base} {adapter_type:?} {key}: {kl}");
            }
        }
    }
}

/// The parts of a configuration of the pocket model, such as `sum-fr/lcpp`.
fn pocket_parts(base: &Linears, folder: &Path, name: &str) -> Vec<(PackedAdapter, f32)> {
    let adapter = |name: &str, weight: f32| {
        let adapter = read_adapter(base, &folder.join("adapters").join(name));
        let packed = PackedAdapter::pack(base, &adapter, AdapterType::F32).unwrap();
        (packed, weight)
    };
    let (task, way) = name.split_once('/').unwrap_or((name, ""));
    let mut parts = match task.split_once('-') {
        Some(("sum", language)) => vec![
            adapter("summarize", 0.5),
            adapter(&format!("translate-{language}"), 0.5),
        ],
        _ if way.is_empty() => vec![],
        _ => vec![adapter(way, 1.0)],
    };
    let kind = match way {
        "lc" => Kind::OutputBias,
        "lcpp" => Kind::LowRank,
        _ => return parts,
    };
    let file = folder.join(format!("calibration-{task}-{way}.safetensors"));
    let file = tandem_formats::adapter::calibration::read(&std::fs::read(file).unwrap()).unwrap();
    parts.push((
        calibration::pack(base, &file, kind, AdapterType::F32).unwrap(),
        1.0,
    ));
    parts
}

#[test]
fn greedy_ids_are_those_of_peft_for_every_configuration() {
    let Some(folder) = shared("models/pocket") else {
        return;
    };
    let golden = std::fs::read(folder.join("greedy-f32.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let model = Model::open(folder.join("base-f32.gguf")).unwrap();
    let base = model.linears();
    let pool = SharedPool::from(ThreadPool::new(2));
    let golden = golden.as_object().unwrap();
    assert_eq!(golden.len(), 10);
    for (name, entries) in golden {
        let parts = pocket_parts(base, &folder, name);
        let parts: Vec<(&PackedAdapter, f32)> = parts.iter().map(|(p, w)| (p, *w)).collect();
        let composition = Composition::new(base, &parts).unwrap();
        let mut options = SessionOptions::for_model(model.config());
        (options.exact, options.kv_type) = (true, DType::F32);
        let mut session = Session::new(&model, &pool, options).unwrap();
        session.set_composition(Some(&composition)).unwrap();
        let ids = |value: &serde_json::Value| -> Vec<u32> {
            serde_json::from_value(value.clone()).unwrap()
        };
        let mut n_equal = 0;
        let entries = entries.as_array().unwrap();
        assert_eq!(entries.len(), 20);
        for entry in entries {
            session.rewind(0);
            let mut found = Vec::new();
            let mut id = argmax(session.eval(&ids(&entry["prompt_ids"])).unwrap());
            loop {
                found.push(id);
                if id == 2 || found.len() == 32 {
                    break;
                }
                id = argmax(session.step(id).unwrap());
            }
            n_equal += usize::from(found == ids(&entry["ids"]));
        }
        println!("{name}: {n_equal} of 20");
        assert!(n_equal >= 18, "{name}: {n_equal} of 20");
    }
}
