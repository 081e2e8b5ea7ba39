//! `--lora`, calibrations and `merge`, by the real binary.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, run, shared, tandem};
use tempfile::TempDir;

/// An adapter on the pocket model's v of the first layer and its output: rank 2, alpha 4.
fn adapter(folder: &Path, name: &str, seed: u32) -> PathBuf {
    let mut state = seed;
    let mut next = || {
        // A linear congruential generator (Numerical Recipes).
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (module, n_out, n_in) in [
        ("model.layers.0.self_attn.v_proj", 128, 256),
        ("model.layers.5.mlp.down_proj", 256, 768),
    ] {
        for (part, shape, size) in [("A", [2, n_in], 0.1), ("B", [n_out, 2], 1.0)] {
            let start = data.len();
            let n = shape[0] * shape[1];
            data.extend((0..n).flat_map(|_| (size * next()).to_le_bytes()));
            header.insert(
                format!("base_model.model.{module}.lora_{part}.weight"),
                serde_json::json!({
                    "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()],
                }),
            );
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let path = folder.join(name);
    fs::create_dir(&path).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;
    fs::write(path.join("adapter_config.json"), config).unwrap();
    let weights = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    fs::write(path.join("adapter_model.safetensors"), weights).unwrap();
    path
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

/// The float32 values of a .npy file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let n_header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let values = bytes[n_header..].as_chunks::<4>().0;
    values.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The norm of the difference over the norm of the truth.
fn relative_error(found: &[f32], truth: &[f32]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(truth).map(|(a, b)| square(a - b)).sum();
    (difference / truth.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// What `logits --exact` writes, with more flags.
fn logits(folder: &TempDir, model: &Path, flags: &[&str]) -> Vec<f32> {
    let tokens = folder.path().join("ids.json");
    fs::write(&tokens, "[1, 300, 17, 2000, 45, 999, 4000, 12]").unwrap();
    let out = folder.path().join("logits.npy");
    let mut args = vec![
        OsStr::new("logits"),
        OsStr::new("--exact"),
        OsStr::new("--model"),
        model.as_os_str(),
        OsStr::new("--tokens"),
        tokens.as_os_str(),
        OsStr::new("--out"),
        out.as_os_str(),
    ];
    args.extend(flags.iter().map(OsStr::new));
    run(&args, b"").ok();
    read_npy(&out)
}

#[test]
fn adapters_are_added_times_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("pocket-q8_0.gguf");
    let a = text(&adapter(folder.path(), "a", 1));
    let b = text(&adapter(folder.path(), "b=2", 2));
    let run = |flags: &[&str]| logits(&folder, &model, flags);
    let plain = run(&[]);
    let with_a = run(&["--lora", &a]);
    assert!(relative_error(&with_a, &plain) > 1e-2);
    assert_eq!(run(&["--lora", &format!("{a}=0")]), plain);
    assert_eq!(run(&["--lora", &format!("{a}=1")]), with_a);
    let twice = run(&["--lora", &format!("{a}=0.5"), "--lora", &format!("{a}=0.5")]);
    assert!(relative_error(&twice, &with_a) < 1e-5);
    // A name with an equals sign before the scale.
    let both = run(&["--lora", &a, "--lora", &format!("{b}=0.5")]);
    assert!(relative_error(&both, &with_a) > 1e-3);
    let undone = run(&[
        "--lora",
        &a,
        "--lora",
        &format!("{b}=0.5"),
        "--lora",
        &format!("{b}=-0.5"),
    ]);
    assert!(relative_error(&undone, &with_a) < 1e-5);
    for (lora_type, limit) in [("f16", 1e-3), ("q8", 1e-2), ("q4", 2e-1)] {
        let error = relative_error(&run(&["--lora", &a, "--lora-type", lora_type]), &with_a);
        assert!(error > 0.0 && error < limit, "{lora_type}: {error}");
    }
}

#[test]
fn every_command_takes_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("pocket-q8_0.gguf");
    let a = adapter(folder.path(), "a", 1);
    let generate = |lora: &[&OsStr]| {
        let mut args: Vec<&OsStr> = ["run", "--raw", "--temp", "0", "--n-predict", "12"]
            .iter()
            .map(OsStr::new)
            .collect();
        args.extend([OsStr::new("--prompt"), OsStr::new("A library")]);
        args.extend([OsStr::new("--model"), model.as_os_str()]);
        args.extend(lora);
        run(&args, b"").ok().text()
    };
    let lora = [OsStr::new("--lora"), a.as_os_str()];
    assert_ne!(generate(&lora), generate(&[]));
    let book = folder.path().join("book.txt");
    fs::write(&book, "A library of functions for files. ".repeat(60)).unwrap();
    let perplexity = |args: &[&OsStr]| {
        let mut all = vec![
            OsStr::new("perplexity"),
            OsStr::new("--ctx"),
            OsStr::new("64"),
            OsStr::new("--chunks"),
            OsStr::new("1"),
            OsStr::new("--text"),
            book.as_os_str(),
            OsStr::new("--model"),
            model.as_os_str(),
        ];
        all.extend(args);
        run(&all, b"").ok().text()
    };
    assert_ne!(perplexity(&lora), perplexity(&[]));
    let table = tandem!(
        "bench", "-p", "4", "-n", "2", "--repeat", "1", "--model", model, "--lora", a
    );
    assert!(table.ok().text().contains("pocket-q8_0 + 1 LoRA"));
}

#[test]
fn bench_compares_adapters_with_the_model_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("pocket-q8_0.gguf");
    let a = adapter(folder.path(), "a", 1);
    let bench = |args: &[&OsStr]| {
        let options = ["bench", "-p4", "-n2", "-d3", "--repeat", "3", "-o", "json"].map(OsStr::new);
        let model = [OsStr::new("--model"), model.as_os_str()];
        run(&[&options[..], &model, args].concat(), b"")
    };
    let (beside, lora) = (OsStr::new("--beside-base"), OsStr::new("--lora"));
    let rows = bench(&[beside, lora, a.as_os_str()]).ok().json();
    for (i, test) in ["pp4@d3", "tg2@d3"].into_iter().enumerate() {
        assert_eq!(rows[i]["test"], test);
        let part = rows[i]["of_base"].as_f64().unwrap();
        assert!(part > 0.01 && part < 100.0, "{part}");
    }
    let rows = bench(&[lora, a.as_os_str()]).ok().json();
    assert!(rows[0]["of_base"].is_null());
    bench(&[beside]).fails(1, "--beside-base compares");
    bench(&[beside, OsStr::new("--switch")]).fails(2, "--switch");
}

#[test]
fn wrong_flags_and_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("pocket-q8_0.gguf");
    let a = adapter(folder.path(), "a", 1);
    let fails = |lora: &OsStr, code: i32, what: &str| {
        let args = ["bench", "--lora"].map(OsStr::new);
        let model = [OsStr::new("--model"), model.as_os_str()];
        run(&[&args[..], &[lora], &model[..]].concat(), b"").fails(code, what);
    };
    fails(OsStr::new("a=inf"), 2, "finite");
    fails(OsStr::new("no/such/folder"), 1, "no/such/folder");
    fails(model.as_os_str(), 1, "general.type");
    fails(a.join("adapter_config.json").as_os_str(), 1, "neither");
    fails(folder.path().as_os_str(), 1, "adapter_config.json");
    let config = a.join("adapter_config.json");
    let json = fs::read_to_string(&config).unwrap();
    fs::write(&config, json.replace('}', r#", "use_dora": true}"#)).unwrap();
    fails(a.as_os_str(), 1, "use_dora");
    fs::write(&config, &json).unwrap();
    let weights = a.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    fails(a.as_os_str(), 1, "lora_B");
    fs::rename(&weights, a.join("adapter_model.bin")).unwrap();
    fails(a.as_os_str(), 1, "pickle");
    tandem!("bench", "--model", model, "--calibration", "x").fails(2, "--kind");
    tandem!("merge", "--model", model, "--out", "x.gguf").fails(1, "--lora");
}

/// What `merge` prints: the relative error of each module.
fn losses(table: &str) -> Vec<(String, f64)> {
    let rows = table.lines().skip(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].to_string(), cells[2].parse().unwrap())
    })
    .collect()
}

#[test]
fn merged_models_compute_what_the_composition_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("pocket-q8_0.gguf");
    let (a, b) = (
        adapter(folder.path(), "a", 1),
        adapter(folder.path(), "b", 2),
    );
    let (a, b) = (format!("{}=0.5", text(&a)), format!("{}=-1", text(&b)));
    let truth = logits(&folder, &model, &["--lora", &a, "--lora", &b]);
    let merge = |name: &str, flags: &[&str]| {
        let out = folder.path().join(name);
        let mut args = vec![
            OsStr::new("merge"),
            OsStr::new("--model"),
            model.as_os_str(),
            OsStr::new("--out"),
            out.as_os_str(),
        ];
        args.extend(["--lora", &a, "--lora", &b].map(OsStr::new));
        args.extend(flags.iter().map(OsStr::new));
        let table = run(&args, b"").ok().text();
        (logits(&folder, &out, &[]), losses(&table))
    };
    // In float32 nothing is lost; in the base's own type some of what is added, and little of it
    // where the adapter is large.
    let (found, lost) = merge("f32.gguf", &["--type", "F32"]);
    assert!(relative_error(&found, &truth) < 1e-5);
    let names: Vec<&str> = lost.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["attn_v", "ffn_down"]);
    assert!(lost.iter().all(|(_, loss)| *loss == 0.0));
    let (found, lost) = merge("same.gguf", &[]);
    assert!(relative_error(&found, &truth) < 2e-2);
    assert!(lost.iter().all(|(_, loss)| *loss > 1e-4 && *loss < 0.2));
    let (found, more) = merge("q4.gguf", &["--type", "Q4_0"]);
    assert!(relative_error(&found, &truth) < 0.5);
    assert!(more.iter().zip(&lost).all(|(a, b)| a.1 > b.1));
    // Of two adapters with one output direction each, others methods give other models.
    let (found, _) = merge("ties.gguf", &["--type", "F32", "--method", "ties"]);
    assert!(relative_error(&found, &truth) > 1e-3);
    let svd = ["--type", "F32", "--method", "svd", "--rank", "4"];
    assert!(relative_error(&merge("svd.gguf", &svd).0, &truth) < 1e-4);
    tandem!("merge", "--model", model, "--lora", a, "--out", model).fails(1, "is the input");
}

/// Adapters and calibrations of every kind, on the peers' model and baked into it.
#[test]
fn calibrations_are_applied_and_merged() {
    let Some(peers) = shared("peer/logits") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let model = peers.join("stablelm-f16.gguf");
    let adapter = |name: &str| format!("{}=0.5", text(&peers.join("stablelm-lora").join(name)));
    let (a, b) = (adapter("summarize"), adapter("translate"));
    let file = text(&peers.join("stablelm-lora/calibration.safetensors"));
    let tokens = peers.join("stablelm.tokens.json");
    let run_logits = |model: &Path, flags: &[&str]| {
        let out = folder.path().join("logits.npy");
        let mut args = vec![
            OsStr::new("logits"),
            OsStr::new("--exact"),
            OsStr::new("--model"),
            model.as_os_str(),
            OsStr::new("--tokens"),
            tokens.as_os_str(),
            OsStr::new("--out"),
            out.as_os_str(),
        ];
        args.extend(flags.iter().map(OsStr::new));
        run(&args, b"").ok();
        read_npy(&out)
    };
    let goldens = fs::File::open(peers.join("stablelm-lora/peft-logits.npz")).unwrap();
    let mut goldens = npyz::npz::NpzArchive::new(goldens).unwrap();
    for kind in ["output_bias", "weight_bias", "low_rank"] {
        let flags = [
            "--lora",
            &a,
            "--lora",
            &b,
            "--calibration",
            &file,
            "--kind",
            kind,
        ];
        let key = format!("cat_0.5_0.5+lc_{kind}");
        let truth: Vec<f32> = goldens.by_name(&key).unwrap().unwrap().into_vec().unwrap();
        assert!(relative_error(&run_logits(&model, &flags), &truth) < 1e-5);
        let out = folder.path().join("merged.gguf");
        let mut args = vec![
            OsStr::new("merge"),
            OsStr::new("--model"),
            model.as_os_str(),
            OsStr::new("--out"),
            out.as_os_str(),
            OsStr::new("--type"),
            OsStr::new("F32"),
        ];
        args.extend(flags.map(OsStr::new));
        run(&args, b"").ok();
        let error = relative_error(&run_logits(&out, &[]), &truth);
        assert!(error < 1e-5, "{kind}: {error}");
    }
}

#[test]
fn random_adapters_fit_random_models() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    let lora = folder.path().join("lora.gguf");
    let shape = "smollm2-135m";
    tandem!("synth", "--shape", shape, "--type", "Q4_0", model).ok();
    tandem!(
        "synth",
        "--shape",
        shape,
        "--type",
        "Q8_0",
        "--lora-rank",
        "32",
        lora
    )
    .ok();
    let table = tandem!(
        "bench", "-p", "1", "-n", "0", "--repeat", "1", "--model", model, "--lora", lora
    );
    assert!(table.ok().text().contains("model + 1 LoRA"));
    let partial = tandem!(
        "synth",
        "--shape",
        shape,
        "--type",
        "Q8_0",
        "--lora-rank",
        "8",
        lora
    );
    partial.fails(1, "lora_b");
}
