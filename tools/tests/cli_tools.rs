//! The commands around a model file: tokenize, detokenize, logits, inspect, quantize.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{fixture, run, shared, tandem};
use serde_json::{Value as Json, json};
use tandem_formats::{DType, GgufFiles, Value, Writer};

/// A command that takes `--model` and reads standard input.
fn piped(command: &str, model: &Path, flags: &[&str], stdin: &[u8]) -> common::Run {
    let mut args = vec![
        OsStr::new(command),
        OsStr::new("--model"),
        model.as_os_str(),
    ];
    args.extend(flags.iter().map(OsStr::new));
    run(&args, stdin)
}

#[test]
fn tokenize_adds_bos_and_reads_special_tokens_unless_told_not_to() {
    let model = fixture("pocket-q8_0.gguf");
    let ids = |text: &str, flags: &[&str]| -> Vec<u64> {
        let ids = piped("tokenize", &model, flags, text.as_bytes());
        serde_json::from_slice(&ids.ok().stdout).unwrap()
    };
    let plain = ids("a library", &["--no-special"]);
    assert!(!plain.is_empty() && !plain.contains(&1));
    assert_eq!(ids("a library", &[]), [&[1], &plain[..]].concat());
    assert_eq!(ids("a library</s>", &[]), [&[1], &plain[..], &[2]].concat());
    let spelled = ids("a library</s>", &["--no-special"]);
    assert!(spelled.len() > plain.len() && !spelled.contains(&2));
    assert_ne!(
        ids("a library\n", &[]),
        ids("a library", &[]),
        "a final newline counts"
    );
    assert_eq!(ids("", &[]), [1]);
    assert_eq!(ids("", &["--no-special"]), [] as [u64; 0]);
}

#[test]
fn text_that_is_not_utf8_survives_tokenize_and_detokenize() {
    let model = fixture("pocket-q8_0.gguf");
    for text in [
        &b"\xff\xfe\x00\x80 ok"[..],
        b"\0\0\0",
        "\u{1f600}\u{301}".as_bytes(),
    ] {
        let ids = piped("tokenize", &model, &["--no-special"], text)
            .ok()
            .stdout;
        assert_eq!(piped("detokenize", &model, &[], &ids).ok().stdout, text);
    }
}

#[test]
fn detokenize_shows_or_hides_control_tokens_and_refuses_bad_ids() {
    let model = fixture("pocket-q8_0.gguf");
    let hello = piped("tokenize", &model, &[], b"hello").ok().stdout;
    let text = |flags: &[&str]| piped("detokenize", &model, flags, &hello).ok().text();
    assert_eq!(text(&["--no-special"]), "hello");
    assert!(text(&[]).starts_with("<s>") && text(&[]).ends_with("hello"));
    for (ids, message) in [
        ("[4096]", "4096"),
        ("[1, -1]", "no JSON array of token ids"),
        ("[1.5]", "no JSON array of token ids"),
        ("", "no JSON array of token ids"),
        ("[1] trailing", "no JSON array of token ids"),
    ] {
        piped("detokenize", &model, &[], ids.as_bytes()).fails(1, message);
    }
}

#[test]
fn a_file_without_a_tokenizer_says_so() {
    let Some(model) = shared("peer/logits/llama-f16.gguf") else {
        return;
    };
    let what = "the file has no tokenizer";
    piped("tokenize", &model, &[], b"a").fails(1, what);
    piped("detokenize", &model, &[], b"[1]").fails(1, what);
    piped("run", &model, &["-p", "a"], b"").fails(1, what);
    piped("chat", &model, &[], b"").fails(1, what);
    piped("perplexity", &model, &["--text", "-"], b"a").fails(1, what);
}

#[test]
fn a_vocabulary_without_weights_cannot_be_run() {
    let Some(model) = shared("peer/vocab/ggml-vocab-llama-spm.gguf") else {
        return;
    };
    piped("run", &model, &["-p", "a"], b"").fails(1, "token_embd.weight");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    tandem!("quantize", model, out, "Q8_0").fails(1, "has no weights");
    assert!(!out.exists());
    let report = tandem!("inspect", "--json", model).ok().json();
    assert_eq!(
        (&report["tensors"], &report["parameters"]),
        (&json!([]), &json!(0))
    );
    assert_eq!(report["run"], json!({"error": "the file has no weights"}));
    let tokens = report["metadata"]["tokenizer.ggml.tokens"].as_array();
    assert_eq!(tokens.unwrap().len(), 32_000);
    let text = tandem!("inspect", model).ok().text();
    assert!(text.contains("tokenizer.ggml.tokens = 32000 x str ["));
    assert!(text.contains("cannot be run: the file has no weights"));
}

#[test]
fn logits_writes_one_row_a_position_and_nothing_on_failure() {
    let model = fixture("pocket-q8_0.gguf");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.npy");
    let args = ["--tokens", "-", "--out", out.to_str().unwrap()];
    for ids in ["[]", "[1, 4096]", "[1, 4294967296]", "nonsense", ""] {
        let failed = piped("logits", &model, &args, ids.as_bytes());
        failed.fails(1, "");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{ids:?}");
    }
    piped("logits", &model, &args, b"[1, 5, 9]").ok();
    let npy = fs::read(&out).unwrap();
    let npy = npyz::NpyFile::new(&npy[..]).unwrap();
    assert_eq!(npy.shape(), [3, 4096]);
    let values: Vec<f32> = npy.into_vec().unwrap();
    assert!(values.len() == 3 * 4096 && values.iter().all(|x| x.is_finite()));
}

#[test]
fn inspect_counts_what_is_there() {
    let model = fixture("pocket-q8_0.gguf");
    let report = tandem!("inspect", "--json", "--ctx", "100", model)
        .ok()
        .json();
    let tensors = report["tensors"].as_array().unwrap();
    // The embeddings, the last norm, and in each of six layers two norms and seven matrices.
    assert_eq!(tensors.len(), 2 + 6 * 9);
    assert_eq!(report["bytes"], fs::metadata(&model).unwrap().len());
    assert_eq!(
        (&report["version"], &report["parameters"]),
        (&json!(3), &json!(5_770_496))
    );
    for key in ["parameters", "bytes", "tensors"] {
        let types = report["types"].as_object().unwrap().values();
        let by_type: u64 = types.map(|t| t[key].as_u64().unwrap()).sum();
        let by_tensor: u64 = tensors
            .iter()
            .map(|t| match key {
                "tensors" => 1,
                "bytes" => t["bytes"].as_u64().unwrap(),
                _ => t["shape"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|n| n.as_u64().unwrap())
                    .product(),
            })
            .sum();
        assert_eq!(by_type, by_tensor, "{key}");
    }
    // Keys and values of six layers, 4 heads of 32, in F16, for whole groups of 16 positions.
    assert_eq!(report["run"]["ctx"], 100);
    assert_eq!(report["run"]["kv_cache_bytes"], 2 * 6 * 4 * 32 * 2 * 112);
    let text = tandem!("inspect", model).ok().text();
    for tensor in tensors {
        assert!(
            text.contains(tensor["name"].as_str().unwrap()),
            "{tensor:?}"
        );
    }
    assert!(text.contains("5770496 parameters in all"));
}

/// A file of matrices only: name, shape, values.
fn matrices(path: &Path, tensors: &[(&str, [usize; 2], Vec<f32>)]) {
    let mut writer = Writer::new();
    let arch = Value::Str("llama");
    writer.add("general.architecture", arch).unwrap();
    // As some converters write it.
    let heads = "llama.attention.head_count_kv";
    writer.add_array(heads, &[2_u32, 2]).unwrap();
    for (name, shape, _) in tensors {
        writer.add_tensor(name, shape, DType::F32).unwrap();
    }
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let data: Vec<_> = data.iter().map(Vec::as_slice).collect();
    fs::write(path, writer.to_vec(&data).unwrap()).unwrap();
}

/// Values that no two of are equal, between -1 and 1.
fn waves(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7).sin()).collect()
}

#[test]
fn a_name_from_a_file_cannot_move_the_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    matrices(
        &model,
        &[("evil\u{1b}[2J\r\u{9b}1A.weight", [32, 1], waves(32))],
    );
    let safe = |text: &str| !text.contains(|c: char| c.is_control() && c != '\n');
    let shown = tandem!("inspect", model).ok().text();
    assert!(shown.contains("evil") && safe(&shown), "{shown:?}");
    let out = folder.path().join("out.gguf");
    let failed = tandem!("quantize", "--pure", model, out, "Q4_K");
    assert_eq!(failed.code, Some(1));
    assert!(
        failed.stderr.contains("evil") && safe(&failed.stderr),
        "{:?}",
        failed.stderr
    );
}

#[test]
fn inspect_without_weights_shows_no_control_characters_of_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("a\u{1b}[1A.gguf");
    let mut writer = Writer::new();
    writer
        .add_strings("tokens", ["x\u{1b}[2J", "\r\n", "\u{7}"])
        .unwrap();
    fs::write(&model, writer.to_vec(&[]).unwrap()).unwrap();
    let shown = tandem!("inspect", model).ok().text();
    assert!(shown.contains("tokens = 3 x str ["));
    assert!(
        !shown.contains(|c: char| c.is_control() && c != '\n'),
        "{shown:?}"
    );
    let json = tandem!("inspect", "--json", model).ok().json();
    assert_eq!(
        json["metadata"]["tokens"],
        json!(["x\u{1b}[2J", "\r\n", "\u{7}"])
    );
}

/// The relative error of a model's exact logits against those of transformers for the weights as
/// they were.
fn error_of(folder: &Path, model: &Path) -> f64 {
    let peer = shared("peer/logits").unwrap();
    let (tokens, out) = (peer.join("llama.tokens.json"), folder.join("logits.npy"));
    tandem!(
        "logits", "--exact", "--model", model, "--tokens", tokens, "--out", out
    )
    .ok();
    let read = |path: &Path| -> Vec<f32> {
        let bytes = fs::read(path).unwrap();
        npyz::NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
    };
    let (found, truth) = (read(&out), read(&peer.join("llama.hf-logits.npy")));
    assert_eq!(found.len(), truth.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(&truth).map(|(a, b)| square(a - b)).sum();
    (difference / truth.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// Tensors of each type.
fn types(model: &Path) -> Json {
    let report = tandem!("inspect", "--json", model).ok().json();
    let types = report["types"].as_object().unwrap();
    types
        .iter()
        .map(|(name, t)| (name.clone(), t["tensors"].clone()))
        .collect()
}

#[test]
fn quantize_is_as_near_to_the_weights_as_llama_cpp() {
    let Some(peer) = shared("peer/logits") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    for name in [
        "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
        "iq4_xs",
    ] {
        tandem!("quantize", "--pure", peer.join("llama-f16.gguf"), out, name).ok();
        let theirs = peer.join(format!("llama-{name}.gguf"));
        assert_eq!(types(&out), types(&theirs), "{name}");
        let (ours, theirs) = (
            error_of(folder.path(), &out),
            error_of(folder.path(), &theirs),
        );
        assert!(ours <= 1.01 * theirs, "{name}: {ours}, llama.cpp {theirs}");
    }
}

#[test]
fn a_mix_is_at_least_as_near_as_its_type() {
    let Some(peer) = shared("peer/logits") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let measure = |name: &str| {
        tandem!("quantize", peer.join("llama-f16.gguf"), out, name).ok();
        error_of(folder.path(), &out)
    };
    for (plain, mixes) in [
        ("Q2_K", &["Q2_K_M"][..]),
        ("Q3_K", &["Q3_K_M", "Q3_K_L"]),
        ("Q4_K", &["Q4_K_S", "Q4_K_M"]),
        ("Q5_K", &["Q5_K_S", "Q5_K_M"]),
    ] {
        let of_plain = measure(plain);
        for mix in mixes {
            let of_mix = measure(mix);
            assert!(
                of_mix <= of_plain,
                "{mix} {of_mix}, {plain} alone {of_plain}"
            );
        }
    }
    // The weights are F16: neither of these may lose anything.
    for float in ["F32", "F16"] {
        assert!(measure(float) <= 5e-4, "{float}");
    }
    let (q8_0, q8_1) = (measure("Q8_0"), measure("Q8_1"));
    assert!((q8_1 / q8_0 - 1.0).abs() < 0.01, "{q8_1}, Q8_0 {q8_0}");
    // Seven bits of mantissa, rounded, against a step of 1/254 of a block's largest value.
    assert!(measure("BF16") < q8_0);
}

#[test]
fn rows_that_do_not_fit_get_another_type_or_are_refused_if_pure() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("in.gguf"), folder.path().join("o.gguf"));
    let (q, up, down) = (
        "blk.0.attn_q.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",
    );
    matrices(
        &model,
        &[
            (q, [256, 2], waves(512)),
            (up, [96, 2], waves(192)),
            (down, [40, 2], waves(80)),
        ],
    );
    let told = tandem!("quantize", model, out, "Q4_K").ok().stderr;
    let other = "1 in F16 instead of Q4_K, 1 in Q5_0 instead of Q4_K";
    assert!(told.contains(other), "{told}");
    let report = tandem!("inspect", "--json", out).ok().json();
    let found: Vec<_> = report["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["type"].as_str().unwrap()))
        .collect();
    assert_eq!(found, [(q, "Q4_K"), (up, "Q5_0"), (down, "F16")]);
    fs::remove_file(&out).unwrap();
    tandem!("quantize", "--pure", model, out, "Q4_K").fails(1, up);
    tandem!("quantize", "--pure", model, out, "Q8_0").fails(1, down);
    assert!(!out.exists());
    tandem!("quantize", "--pure", model, out, "BF16").ok();
}

#[test]
fn a_failed_quantize_keeps_the_old_file_and_leaves_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("in.gguf"), folder.path().join("o.gguf"));
    // The first matrix is written before the second is found to be wrong.
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut values = waves(64);
        values[40] = wrong;
        matrices(
            &model,
            &[
                ("a.weight", [32, 2], waves(64)),
                ("b.weight", [32, 2], values),
            ],
        );
        fs::write(&out, "old").unwrap();
        tandem!("quantize", model, out, "Q4_0").fails(1, "b.weight");
        assert_eq!(fs::read(&out).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

#[cfg(unix)]
#[test]
fn a_write_that_ends_midway_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("o.gguf");
    fs::write(&out, "old").unwrap();
    // No file may grow over 100 blocks; the process is killed for it or, where it ignores the
    // signal, its write fails.
    for (script, is_killed) in [
        (r#"ulimit -f 100; exec "$@""#, true),
        (r#"trap '' XFSZ; ulimit -f 100; exec "$@""#, false),
    ] {
        let output = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_tandem"), "quantize"])
            .args([&fixture("pocket-q8_0.gguf"), &out])
            .arg("Q4_0")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(fs::read(&out).unwrap(), b"old");
        if is_killed {
            assert_eq!(output.status.code(), None, "{stderr}");
            // Nobody is left who could remove the temporary file.
            for entry in fs::read_dir(folder.path()).unwrap() {
                let path = entry.unwrap().path();
                if path != out {
                    fs::remove_file(path).unwrap();
                }
            }
        } else {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("cannot write"), "{stderr}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}

#[cfg(unix)]
#[test]
fn the_input_is_recognized_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let (model, link) = (folder.path().join("in.gguf"), folder.path().join("l.gguf"));
    matrices(&model, &[("a.weight", [32, 2], waves(64))]);
    let before = fs::read(&model).unwrap();
    std::os::unix::fs::symlink(&model, &link).unwrap();
    let roundabout = folder
        .path()
        .join("../")
        .join(Path::new(folder.path().file_name().unwrap()).join("in.gguf"));
    for out in [&model, &link, &roundabout] {
        tandem!("quantize", model, out, "Q4_0").fails(1, "is the input");
    }
    assert_eq!(fs::read(&model).unwrap(), before);
}

#[test]
fn quantize_again_gives_what_quantize_gave() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    tandem!("quantize", fixture("pocket-q8_0.gguf"), path("a"), "F32").ok();
    tandem!("quantize", path("a"), path("b"), "Q8_0").ok();
    let files = [fixture("pocket-q8_0.gguf"), path("b")].map(|p| GgufFiles::open(p).unwrap());
    let [a, b] = [&files[0], &files[1]].map(|f| f.parse().unwrap());
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (a, b) in a.tensors().iter().zip(b.tensors()) {
        assert_eq!((a.name, a.dtype, a.data), (b.name, b.dtype, b.data));
    }
}

#[test]
fn a_split_model_is_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let whole = GgufFiles::open(fixture("pocket-q8_0.gguf")).unwrap();
    let whole = whole.parse().unwrap();
    let tensors = whole.tensors();
    let part = |no: usize| {
        folder
            .path()
            .join(format!("m-0000{}-of-00002.gguf", no + 1))
    };
    for (no, range) in [0..20, 20..tensors.len()].into_iter().enumerate() {
        let mut writer = Writer::new();
        if no == 0 {
            for (key, value) in whole.metadata() {
                writer.add(key, *value).unwrap();
            }
        }
        writer.add("split.no", Value::U16(no as u16)).unwrap();
        writer.add("split.count", Value::U16(2)).unwrap();
        let n = Value::I32(tensors.len() as i32);
        writer.add("split.tensors.count", n).unwrap();
        let tensors = &tensors[range];
        for t in tensors {
            writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
        }
        let data: Vec<_> = tensors.iter().map(|t| t.data).collect();
        fs::write(part(no), writer.to_vec(&data).unwrap()).unwrap();
    }
    let ids = |model: &Path| {
        let flags = ["-p", "The", "--json", "--temp", "0", "-n", "8"];
        piped("run", model, &flags, b"").ok().json()["ids"].clone()
    };
    assert_eq!(ids(&part(0)), ids(&fixture("pocket-q8_0.gguf")));
    let (a, b) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    tandem!("quantize", part(0), a, "Q4_0").ok();
    tandem!("quantize", fixture("pocket-q8_0.gguf"), b, "Q4_0").ok();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    tandem!("quantize", part(0), part(1), "Q4_0").fails(1, "is the input");
    fs::remove_file(part(1)).unwrap();
    piped("run", &part(0), &["-p", "a"], b"").fails(1, "m-00002-of-00002.gguf");
}
