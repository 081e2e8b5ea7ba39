//! The commands on real models and vocabularies, against what others computed.

mod common;
#[path = "../../engine/tests/common/peers.rs"]
mod peers;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use common::{fixture, run, shared, tandem};
use serde_json::{Value, json};
use tandem_engine::Model;

fn tokenize(model: &Path, text: &[u8], flags: &[&str]) -> Value {
    let mut args = vec![
        OsStr::new("tokenize"),
        OsStr::new("--model"),
        model.as_os_str(),
    ];
    args.extend(flags.iter().map(OsStr::new));
    run(&args, text).ok().json()
}

fn prompt(entry: &Value) -> String {
    format!("{}\n=> ", entry["input"].as_str().unwrap())
}

/// The float32 values of a .npy file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let n_header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(String::from_utf8_lossy(&bytes[..n_header]).contains("<f4"));
    bytes[n_header..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// The norm of the difference over the norm of the truth.
fn relative_error(found: &[f32], truth: &[f32]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(truth).map(|(a, b)| square(a - b)).sum();
    let size: f64 = truth.iter().map(|b| square(*b)).sum();
    (difference / size).sqrt()
}

/// What `logits --exact` writes.
fn exact_logits(model: &Path, tokens: &Path) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.npy");
    tandem!(
        "logits", "--exact", "--model", model, "--tokens", tokens, "--out", out
    )
    .ok();
    read_npy(&out)
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let (Some(model), Some(golden)) = (
        shared("models/pocket/base-f32.gguf"),
        shared("models/pocket/greedy-f32.json"),
    ) else {
        return;
    };
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let base = golden["base"].as_array().unwrap();
    assert_eq!(base.len(), 20);
    let generate = |source: &[&OsStr], stdin: &[u8]| {
        let args = [
            "run",
            "--raw",
            "--json",
            "--temp",
            "0",
            "--n-predict",
            "32",
            "--model",
        ];
        let mut args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        args.push(model.as_os_str());
        args.extend(source);
        run(&args, stdin).ok().json()
    };
    let mut n_equal = 0;
    for entry in base {
        let report = generate(&["--prompt", &prompt(entry)].map(OsStr::new), b"");
        assert_eq!(report["prompt_ids"], entry["prompt_ids"]);
        n_equal += usize::from(report["ids"] == entry["ids"]);
    }
    assert!(n_equal >= 19, "{n_equal} of 20");

    let text = prompt(&base[0]);
    let by_flag = generate(&["--prompt", &text].map(OsStr::new), b"");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &text).unwrap();
    let by_file = generate(&[OsStr::new("--prompt-file"), file.path().as_os_str()], b"");
    let by_pipe = generate(&["--prompt-file", "-"].map(OsStr::new), text.as_bytes());
    for key in ["text", "ids", "prompt_ids", "stop"] {
        assert_eq!(by_file[key], by_flag[key], "{key}");
        assert_eq!(by_pipe[key], by_flag[key], "{key}");
    }
}

#[test]
fn prompt_ids_of_every_configuration_are_those_of_transformers() {
    let (Some(model), Some(golden)) = (
        shared("models/pocket/base-f32.gguf"),
        shared("models/pocket/greedy-f32.json"),
    ) else {
        return;
    };
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let entries = golden
        .as_object()
        .unwrap()
        .values()
        .flat_map(|v| v.as_array().unwrap());
    let mut n = 0;
    for entry in entries {
        assert_eq!(
            tokenize(&model, prompt(entry).as_bytes(), &[]),
            entry["prompt_ids"]
        );
        n += 1;
    }
    assert_eq!(n, 200);
}

#[test]
fn ids_are_those_of_llama_cpp_for_every_vocabulary() {
    let Some(folder) = shared("peer/vocab") else {
        return;
    };
    for name in [
        "deepseek-llm",
        "falcon",
        "gpt-2",
        "llama-bpe",
        "llama-spm",
        "phi-3",
        "qwen2",
    ] {
        let model = folder.join(format!("ggml-vocab-{name}.gguf"));
        let read = |ending: &str| {
            fs::read(folder.join(format!("ggml-vocab-{name}.gguf.{ending}"))).unwrap()
        };
        let (input, output) = (read("inp"), String::from_utf8(read("out")).unwrap());
        let separator = b"\n__ggml_vocab_test__\n";
        let mut rest = &input[..];
        let mut n = 0;
        for line in output.lines() {
            let end = rest.windows(separator.len()).position(|w| w == separator);
            let case = &rest[..end.unwrap_or(rest.len())];
            rest = end.map_or(&[], |end| &rest[end + separator.len()..]);
            let expected: Vec<u32> = line
                .split_whitespace()
                .map(|id| id.parse().unwrap())
                .collect();
            let ids = tokenize(&model, case, &["--no-special"]);
            assert_eq!(ids, json!(expected), "{name}: {case:?}");
            // SentencePiece adds a space before a text and takes it away again.
            let args = [
                OsStr::new("detokenize"),
                OsStr::new("--model"),
                model.as_os_str(),
            ];
            let text = run(&args, ids.to_string().as_bytes()).ok().stdout;
            assert_eq!(text, case, "{name}");
            n += 1;
        }
        assert!(n > 40, "{name}: {n} cases");
    }
}

#[test]
fn exact_logits_are_those_of_transformers() {
    let Some(folder) = shared("peer/logits") else {
        return;
    };
    for name in peers::PEERS {
        let logits = exact_logits(
            &folder.join(format!("{name}-f16.gguf")),
            &folder.join(format!("{name}.tokens.json")),
        );
        let truth = read_npy(&folder.join(format!("{name}.hf-logits.npy")));
        let error = relative_error(&logits, &truth);
        assert!(error <= 5e-4, "{name}: {error}");
    }
}

#[test]
fn logits_refuses_bad_tokens_and_keeps_the_old_file() {
    let model = fixture("pocket-q8_0.gguf");
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (
        folder.path().join("ids.json"),
        folder.path().join("out.npy"),
    );
    fs::write(&out, "old").unwrap();
    for (ids, message) in [
        ("[]", "no tokens"),
        ("[1, 999999]", "999999 is outside the vocabulary"),
        ("[1, -2]", "no JSON array of token ids"),
        ("{", "no JSON array of token ids"),
    ] {
        fs::write(&tokens, ids).unwrap();
        tandem!("logits", "--model", model, "--tokens", tokens, "--out", out).fails(1, message);
    }
    fs::write(&tokens, "[1, 2, 3]").unwrap();
    tandem!(
        "logits", "--ctx", "2", "--model", model, "--tokens", tokens, "--out", out
    )
    .fails(1, "the context of 2 tokens is full");
    assert_eq!(fs::read(&out).unwrap(), b"old");
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        2,
        "no temporary files"
    );
}

/// The types that `quantize` knows, as it tells whoever names another.
fn known_types(model: &Path) -> Vec<String> {
    let stderr = tandem!("quantize", model, "out", "Q9").stderr;
    let (_, list) = stderr.split_once("known types are ").unwrap();
    let list = list.lines().next().unwrap();
    list.split(", ").map(String::from).collect()
}

/// The most that the logits of the random llama may be off by; most of it is in the format, the
/// limits are a tenth or two above the largest measured.
fn most_error(dtype: &str) -> f64 {
    match dtype {
        "F32" | "F16" => 5e-4,
        "BF16" => 0.013,
        "Q8_0" | "Q8_1" | "Q8_K" => 0.05,
        "Q6_K" => 0.13,
        "Q5_0" | "Q5_1" | "Q5_K" => 0.3,
        "Q4_0" | "Q4_1" | "Q4_K" | "IQ4_NL" | "IQ4_XS" => 0.54,
        "Q3_K" => 0.85,
        "Q2_K" => 1.2,
        // Three values are too few for weights that were not trained for them; the two types of
        // three values are compared with each other.
        "TQ1_0" | "TQ2_0" => f64::INFINITY,
        _ => panic!("{dtype}: no limit is known"),
    }
}

#[test]
fn quantize_writes_every_type_the_same_each_time() {
    let Some(folder) = shared("peer/logits") else {
        return;
    };
    let model = folder.join("llama-f16.gguf");
    let tokens = folder.join("llama.tokens.json");
    let truth = read_npy(&folder.join("llama.hf-logits.npy"));
    let out = tempfile::tempdir().unwrap();
    let (a, b) = (out.path().join("a.gguf"), out.path().join("b.gguf"));
    let names = known_types(&model);
    assert!(names.len() >= 26, "{names:?}");
    let mut ternary = Vec::new();
    for name in names {
        tandem!("quantize", model, a, name).ok();
        tandem!("quantize", model, b, name.to_lowercase()).ok();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap(), "{name} twice");
        let stored = name
            .strip_suffix("_S")
            .or(name.strip_suffix("_M"))
            .or(name.strip_suffix("_L"))
            .unwrap_or(&name);
        let types = tandem!("inspect", "--json", a).ok().json()["types"].take();
        let n = types[stored]["tensors"].as_u64();
        assert!(n >= Some(7), "{name}: {types:#}");
        let logits = exact_logits(&a, &tokens);
        let error = relative_error(&logits, &truth);
        assert!(error <= most_error(stored), "{name}: {error}");
        if stored.starts_with("TQ") {
            ternary.push(logits);
        }
    }
    assert!(ternary.len() == 2 && ternary[0] == ternary[1]);
}

#[test]
fn quantize_refuses_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let model = fixture("pocket-q8_0.gguf");
    tandem!("quantize", model, out, "Q9").fails(2, "known types are");
    let before = fs::read(&model).unwrap();
    tandem!("quantize", model, model, "Q4_0").fails(1, "is the input");
    assert_eq!(fs::read(&model).unwrap(), before);
    let nowhere = folder.path().join("none/out.gguf");
    tandem!("quantize", model, nowhere, "Q4_0").fails(1, "cannot write");
    tandem!("quantize", folder.path(), out, "Q4_0").fails(1, "cannot open");
    assert!(!out.exists());
}

#[test]
fn perplexity_knows_the_text_a_model_was_trained_on() {
    let Some(data) = shared("data/debian/sum.test.jsonl") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (text, noise) = (folder.path().join("text"), folder.path().join("noise"));
    let data = fs::read_to_string(data).unwrap();
    let inputs = data
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let known: String = inputs
        .map(|v| v["input"].as_str().unwrap().to_string() + "\n")
        .collect();
    let mut words: Vec<_> = known.split_whitespace().collect();
    words.sort_unstable();
    fs::write(&text, &known).unwrap();
    fs::write(&noise, words.join(" ")).unwrap();
    let measure = |model: &Path, text: &Path| -> f64 {
        let run = tandem!(
            "perplexity",
            "--chunks",
            "4",
            "--model",
            model,
            "--text",
            text
        )
        .ok();
        run.text()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    let q8 = fixture("pocket-q8_0.gguf");
    let on_text = measure(&q8, &text);
    assert!(on_text > 1.0 && on_text * 2.0 < measure(&q8, &noise));
    let float = shared("models/pocket/base-f32.gguf").unwrap();
    assert!((measure(&float, &text) / on_text - 1.0).abs() < 0.01);
    fs::write(&text, "too short").unwrap();
    tandem!("perplexity", "--model", q8, "--text", text).fails(1, "fewer than one chunk");
}

#[test]
fn synthetic_models_may_have_fewer_layers() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    let synth = |layers: &str| {
        let shape = ["--shape", "smollm2-135m", "--type", "Q4_0", "--layers"];
        tandem!(
            "synth", shape[0], shape[1], shape[2], shape[3], shape[4], layers, model
        )
    };
    synth("2").ok();
    assert_eq!(Model::open(&model).unwrap().layers().len(), 2);
    synth("31").fails(1, "at most the model's 30");
    synth("0").fails(2, "--layers");
}

#[test]
fn synthetic_models_are_the_same_each_time_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    tandem!("synth", "--shape", "smollm2-135m", "--type", "Q4_0", a).ok();
    tandem!("synth", "--shape", "smollm2-135m", "--type", "Q4_0", b).ok();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    let run = tandem!("run", "--json", "-p", "hello", "-n", "3", "--model", a)
        .ok()
        .json();
    assert_eq!(run["n_generated"], 3);
    let rows = tandem!(
        "bench", "-p", "4", "-n", "2", "-r", "1", "-o", "json", "--model", a
    )
    .ok()
    .json();
    assert_eq!(
        (&rows[0]["test"], &rows[1]["test"]),
        (&json!("pp4"), &json!("tg2"))
    );
    assert!(rows[1]["tokens_per_second"].as_f64() > Some(0.0));
    let csv = tandem!(
        "bench", "-p", "4", "-n", "0", "-r", "1", "-d", "3", "-o", "csv", "--model", a
    );
    assert!(csv.ok().text().lines().nth(1).unwrap().contains("pp4@d3"));
}

#[test]
fn bench_prints_a_table_json_and_csv() {
    let model = fixture("pocket-q8_0.gguf");
    let bench = |output: &str| {
        let args = tandem!(
            "bench", "-p", "8", "-n", "2", "-r", "1", "-o", output, "--model", model
        );
        args.ok()
    };
    let markdown = bench("md").text();
    let rows: Vec<Vec<&str>> = markdown
        .lines()
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row.len() == rows[0].len()));
    let csv = bench("csv").text();
    let csv: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(csv.len(), 3);
    assert!(csv.iter().all(|row| row.len() == csv[0].len()));
    let json = bench("json").json();
    for (i, test) in ["pp8", "tg2"].into_iter().enumerate() {
        assert!(rows[i + 2].contains(&test) && csv[i + 1].contains(&test));
        assert_eq!(json[i]["test"], test);
        for key in ["tokens_per_second", "median", "bandwidth"] {
            assert!(json[i][key].as_f64() > Some(0.0), "{key}");
            let column = csv[0].iter().position(|name| *name == key).unwrap();
            assert!(csv[i + 1][column].parse::<f64>().unwrap() > 0.0, "{key}");
        }
    }
    tandem!("bench", "-p", "0", "-n", "0", "--model", model).fails(1, "nothing to measure");
}
