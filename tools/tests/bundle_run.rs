//! Running compositions of bundles: what they compute, and what is refused.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, run, shared, tandem};
use serde_json::Value as Json;
use tandem_formats::Gguf;

/// A bundle of two adapters of the peer's small llama, in `quant`, with these compositions.
fn peer_bundle(folder: &Path, quant: &str, compositions: &str) -> Option<PathBuf> {
    let base = shared("peer/logits/llama-f16.gguf")?;
    let loras = shared("peer/logits/llama-lora")?;
    let mut recipe = format!("[bundle]\nname = \"peer\"\nbase = {base:?}\n");
    for name in ["summarize", "translate"] {
        let path = loras.join(name);
        recipe +=
            &format!("[[adapter]]\nname = \"{name}\"\npath = {path:?}\nquant = \"{quant}\"\n");
    }
    let recipe_path = folder.join("peer.toml");
    fs::write(&recipe_path, recipe + compositions).unwrap();
    let out = folder.join("peer.tandem");
    tandem!("bundle", "create", recipe_path, "--out", out).ok();
    Some(out)
}

/// The bytes of the logits on the peer's tokens.
fn logits(folder: &Path, flags: &[&OsStr]) -> Vec<u8> {
    let base = shared("peer/logits/llama-f16.gguf").unwrap();
    let tokens = shared("peer/logits/llama.tokens.json").unwrap();
    let out = folder.join("out.npy");
    let mut args: Vec<&OsStr> = vec!["logits".as_ref(), "--model".as_ref(), base.as_ref()];
    args.extend(["--tokens".as_ref(), tokens.as_os_str()]);
    args.extend(["--exact".as_ref(), "--out".as_ref(), out.as_os_str()]);
    args.extend(flags);
    run(&args, b"").ok();
    fs::read(out).unwrap()
}

/// The values of an npy file.
fn floats(bytes: &[u8]) -> Vec<f32> {
    // The header's length is a multiple of 64 bytes.
    let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let values = bytes[header..].as_chunks().0.iter();
    values.map(|b| f32::from_le_bytes(*b)).collect()
}

fn relative_error(found: &[f32], truth: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>();
    let error = norm(&mut truth.iter().zip(found).map(|(a, b)| a - b));
    (error / norm(&mut truth.iter().copied())).sqrt()
}

fn of_bundle(folder: &Path, bundle: &Path, composition: &str) -> Vec<u8> {
    let flags = [
        "--bundle".as_ref(),
        bundle.as_os_str(),
        "--compose".as_ref(),
    ];
    logits(folder, &[&flags[..], &[composition.as_ref()]].concat())
}

/// A safetensors file of one matrix M for q in all layers.
fn projection(path: &Path, n: usize) {
    let values: Vec<f32> = (0..n * n)
        .map(|i| {
            if i % (n + 1) == 0 {
                0.75
            } else {
                0.01 * (i % 7) as f32
            }
        })
        .collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let header = format!(
        r#"{{"q_proj.M":{{"dtype":"F32","shape":[{n},{n}],"data_offsets":[0,{}]}}}}"#,
        bytes.len()
    );
    let n_header = (header.len() as u64).to_le_bytes();
    fs::write(path, [&n_header[..], header.as_bytes(), &bytes].concat()).unwrap();
}

/// Stored in float32, adapters and calibrations of a bundle give the very logits that their own
/// files give.
#[test]
fn a_bundle_computes_what_its_files_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(loras) = shared("peer/logits/llama-lora") else {
        return;
    };
    let calibration = loras.join("calibration.safetensors");
    let m = folder.join("m.safetensors");
    projection(&m, 16);
    let members = "adapters = [{ name = \"summarize\", weight = 0.5 }, { name = \"translate\", weight = -0.25 }]";
    let mut compositions = format!("[[composition]]\nname = \"cat\"\n{members}\n");
    let kinds = [
        ("output_bias", &calibration),
        ("weight_bias", &calibration),
        ("low_rank", &calibration),
        ("projection", &m),
    ];
    for (kind, path) in kinds {
        compositions += &format!(
            "[[composition]]\nname = \"{kind}\"\n{members}\n\
             calibration = {{ name = \"{kind}\", kind = \"{kind}\", path = {path:?}, quant = \"f32\" }}\n"
        );
    }
    let bundle = peer_bundle(folder, "f32", &compositions).unwrap();
    let with_scale = |name: &str, scale: &str| {
        let mut path = loras.join(name).into_os_string();
        path.push(scale);
        path
    };
    let (one, two) = (
        with_scale("summarize", "=0.5"),
        with_scale("translate", "=-0.25"),
    );
    let files = [
        "--lora".as_ref(),
        one.as_os_str(),
        "--lora".as_ref(),
        two.as_os_str(),
    ];
    let plain = logits(folder, &files);
    assert!(of_bundle(folder, &bundle, "cat") == plain);
    assert!(
        logits(folder, &[]) != plain,
        "the adapters change something"
    );
    for (kind, path) in kinds {
        let flags = [
            "--calibration".as_ref(),
            path.as_os_str(),
            "--kind".as_ref(),
            kind.as_ref(),
        ];
        let wanted = logits(folder, &[&files[..], &flags[..]].concat());
        assert!(wanted != plain, "{kind} changes something");
        assert!(of_bundle(folder, &bundle, kind) == wanted, "{kind}");
    }
}

/// A merge computed at the start is the one that is stored, for every method.
#[test]
fn stored_merges_are_those_that_are_computed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let methods = [
        ("linear", ""),
        ("svd", "rank = 6"),
        ("ties", "density = 0.5"),
        ("ties_svd", "density = 0.5\nrank = 8"),
        ("dare_linear", "density = 0.6\nseed = 7"),
        ("dare_linear_svd", "density = 0.6\nseed = 7\nrank = 8"),
        ("dare_ties", "density = 0.6\nseed = 7"),
        ("dare_ties_svd", "density = 0.6\nseed = 7\nrank = 8"),
        ("magnitude_prune", "density = 0.5"),
        ("magnitude_prune_svd", "density = 0.5\nrank = 8"),
        ("slerp", ""),
    ];
    let mut compositions = String::new();
    for (method, options) in methods {
        for (suffix, stored) in [("computed", false), ("stored", true)] {
            compositions += &format!(
                "[[composition]]\nname = \"{method}-{suffix}\"\nmerge = \"{method}\"\n{options}\n\
                 adapters = [{{ name = \"summarize\", weight = 0.7 }}, {{ name = \"translate\", weight = 0.4 }}]\n\
                 ready_made = {stored}\nquant = \"f32\"\n"
            );
        }
    }
    let Some(bundle) = peer_bundle(folder, "f32", &compositions) else {
        return;
    };
    let mut seen = vec![logits(folder, &[])];
    for (method, _) in methods {
        let computed = of_bundle(folder, &bundle, &format!("{method}-computed"));
        let stored = of_bundle(folder, &bundle, &format!("{method}-stored"));
        assert!(computed == stored, "{method}");
        assert!(!seen.contains(&computed), "{method} is no other method");
        seen.push(computed);
    }
}

/// Members that are stored side by side compute what they do apart, but for the rounding.
#[test]
fn members_stored_as_one_compute_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let compositions = |quant: &str| {
        [("apart", false), ("one", true)].map(|(name, stored)| {
            format!(
                "[[composition]]\nname = \"{name}\"\nready_made = {stored}\nquant = \"{quant}\"\n\
                 adapters = [{{ name = \"summarize\", weight = 0.7 }}, {{ name = \"translate\", weight = -0.4 }}]\n"
            )
        })
    };
    let mut truth = Vec::new();
    // Integers are rounded anyhow, here with another weight's scale; the adapters' own floats are not.
    for (quant, rounding) in [
        ("f32", 1e-6),
        ("f16", 1.0 / 2048.0),
        ("q8_0", 0.0),
        ("q4_0", 0.0),
    ] {
        let Some(bundle) = peer_bundle(folder, quant, &compositions(quant).concat()) else {
            return;
        };
        let [apart, one] = ["apart", "one"].map(|name| floats(&of_bundle(folder, &bundle, name)));
        assert!(
            apart != one,
            "{quant}: what is stored is used, and rounded otherwise"
        );
        if truth.is_empty() {
            truth = apart.clone();
        }
        let (apart, one) = (relative_error(&apart, &truth), relative_error(&one, &truth));
        assert!(one <= 1.3 * apart + rounding, "{quant}: {apart} {one}");
        let report = tandem!("bundle", "inspect", bundle, "--json").ok().json();
        let factors = &report["compositions"][1]["merged"]["factors"];
        let rank = |adapter: usize| report["adapters"][adapter]["factors"][0]["rank"].as_u64();
        let sum = rank(0).unwrap() + rank(1).unwrap();
        assert_eq!(factors[0]["rank"], sum);
    }
}

/// The greedy ids that transformers and PEFT give in float32, prompts included.
#[test]
fn the_trained_compositions_answer_as_in_peft() {
    let folder = tempfile::tempdir().unwrap();
    let (Some(trained), Some(base)) = (
        shared("models/pocket"),
        shared("models/pocket/base-f32.gguf"),
    ) else {
        return;
    };
    let mut recipe = format!("[bundle]\nname = \"pocket\"\nbase = {base:?}\n");
    for name in ["summarize", "translate-fr"] {
        let path = trained.join("adapters").join(name);
        recipe += &format!("[[adapter]]\nname = \"{name}\"\npath = {path:?}\nquant = \"f32\"\n");
    }
    for (suffix, kind) in [("lc", "output_bias"), ("lcpp", "low_rank")] {
        // In F16, as calibrations are unless asked for otherwise.
        let path = trained.join(format!("calibration-sum-fr-{suffix}.safetensors"));
        recipe += &format!(
            "[[composition]]\nname = \"{suffix}\"\nprompt = \"{{{{ input }}}}\\n=> \"\n\
             adapters = [{{ name = \"summarize\", weight = 0.5 }}, {{ name = \"translate-fr\", weight = 0.5 }}]\n\
             calibration = {{ kind = \"{kind}\", path = {path:?} }}\n"
        );
    }
    let recipe_path = folder.path().join("recipe.toml");
    fs::write(&recipe_path, recipe).unwrap();
    let bundle = folder.path().join("pocket.tandem");
    tandem!("bundle", "create", recipe_path, "--out", bundle).ok();
    let golden = fs::read(trained.join("greedy-f32.json")).unwrap();
    let golden: Json = serde_json::from_slice(&golden).unwrap();
    for composition in ["lc", "lcpp"] {
        let cases = golden[format!("sum-fr/{composition}")].as_array().unwrap();
        for case in cases.iter().take(5) {
            let input = case["input"].as_str().unwrap();
            let report = tandem!(
                "run",
                "--model",
                base,
                "--bundle",
                bundle,
                "--compose",
                composition,
                "--prompt",
                input,
                "--temp",
                "0",
                "--n-predict",
                "32",
                "--exact",
                "--json"
            );
            let report = report.ok().json();
            assert_eq!(report["prompt_ids"], case["prompt_ids"]);
            assert_eq!(report["ids"], case["ids"], "{composition}: {input}");
        }
    }
}

/// P1 in eight bits: smaller, nearly the same, and used by no other kind.
#[test]
fn calibrations_in_q8_0_are_near_those_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(loras) = shared("peer/logits/llama-lora") else {
        return;
    };
    let path = loras.join("calibration.safetensors");
    let mut compositions = String::new();
    for (kind, quant) in [
        ("low_rank", "f32"),
        ("low_rank", "f16"),
        ("low_rank", "q8_0"),
        ("output_bias", "f16"),
        ("output_bias", "q8_0"),
    ] {
        compositions += &format!(
            "[[composition]]\nname = \"{kind}-{quant}\"\nadapters = [{{ name = \"summarize\" }}]\n\
             calibration = {{ name = \"{kind}-{quant}\", kind = \"{kind}\", path = {path:?}, quant = \"{quant}\" }}\n"
        );
    }
    let bundle = peer_bundle(folder, "f32", &compositions).unwrap();
    tandem!("bundle", "verify", bundle).ok();
    let report = tandem!("bundle", "inspect", bundle, "--json").ok().json();
    let n_bytes = |name: &str| {
        let list = report["calibrations"].as_array().unwrap();
        let found = list.iter().find(|c| c["name"] == name).unwrap();
        found["bytes"].as_u64().unwrap()
    };
    assert!(n_bytes("low_rank-q8_0") < n_bytes("low_rank-f16"));
    assert!(n_bytes("low_rank-f16") < n_bytes("low_rank-f32"));
    assert_eq!(n_bytes("output_bias-q8_0"), n_bytes("output_bias-f16"));
    let floats = |name: &str| floats(&of_bundle(folder, &bundle, name));
    let (truth, found) = (floats("low_rank-f32"), floats("low_rank-q8_0"));
    let error = relative_error(&found, &truth);
    assert!(error > 0.0 && error < 5e-3, "{error}");
    assert!(floats("output_bias-q8_0") == floats("output_bias-f16"));
}

#[test]
fn switches_to_the_compositions_of_a_bundle_are_timed() {
    let folder = tempfile::tempdir().unwrap();
    let members = "adapters = [{ name = \"summarize\" }, { name = \"translate\" }]";
    let compositions = format!(
        "[[composition]]\nname = \"a\"\n{members}\nmerge = \"linear\"\n\
         [[composition]]\nname = \"b\"\n{members}\nmerge = \"ties\"\ndensity = 0.5\nready_made = true\n"
    );
    let Some(bundle) = peer_bundle(folder.path(), "q8_0", &compositions) else {
        return;
    };
    let model = shared("peer/logits/llama-f16.gguf").unwrap();
    let run = tandem!(
        "bench",
        "--switch",
        "-r",
        "2",
        "-o",
        "json",
        "-m",
        model,
        "--bundle",
        bundle,
        "--compose",
        "a"
    );
    let rows = run.ok().json();
    let rows = rows.as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|r| &r["switch"]).collect();
    assert_eq!(
        names,
        ["ready-made", "cat", "a (linear)", "b (ties, stored)"]
    );
    assert!(rows.iter().all(|r| r["median"].as_f64() > Some(0.0)));
}

#[test]
fn nothing_runs_that_is_damaged_unknown_or_for_another_base() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let compositions = "[[composition]]\nname = \"one\"\nadapters = [{ name = \"summarize\" }]\n\
                        [[composition]]\nname = \"two\"\nadapters = [{ name = \"translate\" }]\n";
    let Some(bundle) = peer_bundle(folder, "q8_0", compositions) else {
        return;
    };
    let base = shared("peer/logits/llama-f16.gguf").unwrap();
    let tokens = shared("peer/logits/llama.tokens.json").unwrap();
    let out = folder.join("out.npy");
    let with = |model: &Path, bundle: &Path, compose: &str| {
        tandem!(
            "logits",
            "--model",
            model,
            "--tokens",
            tokens,
            "--out",
            out,
            "--bundle",
            bundle,
            "--compose",
            compose
        )
    };
    with(&base, &bundle, "one").ok();
    fs::remove_file(&out).unwrap();
    with(&base, &bundle, "three")
        .fails(1, "no composition \"three\" in the bundle; it has one, two");
    with(&fixture("pocket-q8_0.gguf"), &bundle, "one").fails(1, "another base model");
    with(&base, &base, "one").fails(1, "not an adapter bundle");
    tandem!(
        "logits", "--model", base, "--tokens", tokens, "--out", out, "--bundle", bundle
    )
    .fails(2, "--compose");

    let mut bytes = fs::read(&bundle).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let tensor = gguf
        .tensor("adapter.translate.blk.1.ffn_down.lora_b")
        .unwrap();
    let at = tensor.data.as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[at] ^= 4;
    let damaged = folder.join("damaged.tandem");
    fs::write(&damaged, &bytes).unwrap();
    with(&base, &damaged, "two").fails(1, "adapter \"translate\" is damaged");
    assert!(!out.exists());
    // What does not use the damaged section runs.
    with(&base, &damaged, "one").ok();
}
