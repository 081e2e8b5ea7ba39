//! How the command behaves: streams, exit codes, help, bad input.

mod common;
#[path = "common/pocket.rs"]
mod pocket;

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};

use common::{fixture, run, shared, tandem};
use pocket::{TEMPLATE, pocket_with};
use tandem_formats::Value;

#[test]
fn run_prints_the_text_alone_and_timings_beside_it() {
    let model = fixture("pocket-q8_0.gguf");
    let out = tandem!(
        "run",
        "--model",
        model,
        "-p",
        "This package",
        "--temp",
        "0",
        "-n",
        "8"
    )
    .ok();
    let report = tandem!(
        "run",
        "--json",
        "--model",
        model,
        "-p",
        "This package",
        "--temp",
        "0",
        "-n",
        "8"
    );
    let report = report.ok().json();
    assert_eq!(
        out.text().trim_end_matches('\n'),
        report["text"].as_str().unwrap()
    );
    assert!(out.stderr.contains("tokens/s") && out.stderr.contains("first token after"));
    assert_eq!(
        report["n_generated"],
        report["ids"].as_array().unwrap().len()
    );
    assert_eq!(report["stop"], "max_tokens");
    assert!(report["first_token_ms"].as_f64() > Some(0.0));
}

#[test]
fn shells_complete_commands_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let script = tandem!("completions", shell).ok().text();
        for word in ["serve", "perplexity", "prompt-cache"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    tandem!("completions", "dosshell").fails(2, "bash");
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let model = fixture("pocket-q8_0.gguf");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt");
    fs::write(&file, "A library\n").unwrap();
    let flags = ["--json", "--temp", "0", "-n", "4"].map(OsStr::new);
    let ids = |source: &[&OsStr], stdin: &[u8]| {
        let mut args = vec![OsStr::new("run"), OsStr::new("--model"), model.as_os_str()];
        args.extend(flags);
        args.extend(source);
        run(&args, stdin).ok().json()["prompt_ids"].clone()
    };
    let by_flag = ids(&["-p", "A library\n"].map(OsStr::new), b"");
    assert_eq!(
        ids(&[OsStr::new("--prompt-file"), file.as_os_str()], b""),
        by_flag
    );
    assert_eq!(
        ids(&["--prompt-file", "-"].map(OsStr::new), b"A library\n"),
        by_flag
    );
}

#[test]
fn a_seed_gives_the_same_text_again() {
    let model = fixture("pocket-q8_0.gguf");
    let text = |seed: &str| {
        let args = tandem!(
            "run", "--model", model, "-p", "The", "--temp", "1", "-n", "20", "--seed", seed
        );
        args.ok().text()
    };
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
}

#[test]
fn the_end_of_the_context_is_a_clear_stop() {
    let model = fixture("pocket-q8_0.gguf");
    let report = tandem!(
        "run", "--json", "--model", model, "-p", "The", "--ctx", "6", "--temp", "0"
    );
    let report = report.ok().json();
    assert_eq!(report["stop"], "context_full");
    let n = report["n_prompt"].as_u64().unwrap() + report["n_generated"].as_u64().unwrap();
    assert_eq!(n, 7, "the last token needs no place");
    let long = "word ".repeat(50);
    tandem!("run", "--model", model, "-p", long, "--ctx", "6")
        .fails(1, "the context of 6 tokens is full");
}

#[test]
fn every_level_and_thread_count_gives_the_same_greedy_text() {
    let model = fixture("pocket-q8_0.gguf");
    let text = |cpu: &str, threads: &str, threads_decode: &str| {
        let args = tandem!(
            "run",
            "--model",
            model,
            "-p",
            "This package",
            "--temp",
            "0",
            "-n",
            "12",
            "--cpu",
            cpu,
            "-t",
            threads,
            "--threads-decode",
            threads_decode
        );
        args.ok().text()
    };
    let best = tandem_engine::Level::detect().name();
    let expected = text("scalar", "1", "1");
    assert_eq!(text(best, "2", "1"), expected);
    assert_eq!(text(best, "1", "2"), expected);
    assert_eq!(text("scalar", "2", "99"), expected);
    tandem!("run", "--model", model, "-p", "a", "--cpu", "z80").fails(2, "this CPU has scalar");
}

#[test]
fn usage_errors_exit_with_2() {
    let model = fixture("pocket-q8_0.gguf");
    for flags in [
        ["--temp", "-2"],
        ["--temp", "nan"],
        ["--temp", "inf"],
        ["--top-p", "2"],
        ["--min-p", "-0.1"],
        ["--typical-p", "nan"],
        ["--repeat-penalty", "0"],
        ["--frequency-penalty", "inf"],
        ["--seed", "x"],
        ["--batch", "0"],
        ["--threads", "0"],
        ["--threads-decode", "0"],
        ["--threads-decode", "two"],
        ["--ctx", "0"],
        ["--kv-type", "q4_0"],
        ["--penalty-window", "99999999999"],
        ["--prompt-file", "x"],
        ["--no-such-flag", "x"],
    ] {
        tandem!("run", "--model", model, "-p", "a", flags[0], flags[1]).fails(2, flags[0]);
    }
    tandem!("run", "--model", model, "-p", "a", "--top-k", "-2").fails(2, "-1");
    for negative in ["--n-predict", "--seed"] {
        tandem!("run", "--model", model, "-p", "a", negative, "-2").fails(2, "-2");
    }
    tandem!("run", "--model", model).fails(2, "--prompt");
    tandem!("inspect", "--ctx", "0", model).fails(2, "--ctx");
    tandem!("perplexity", "--model", model).fails(2, "--text");
    tandem!("logits", "--model", model, "--tokens", "-").fails(2, "--out");
    tandem!("no-such-command").fails(2, "no-such-command");
    assert_eq!(tandem!().code, Some(2));
}

#[test]
fn failures_exit_with_1_and_name_the_file_and_the_cause() {
    tandem!("run", "--model", "/no/such/file", "-p", "a").fails(1, "/no/such/file");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    fs::write(&file, "").unwrap();
    tandem!("inspect", file).fails(1, "model.gguf");
    fs::write(&file, "no model at all").unwrap();
    tandem!("inspect", file).fails(1, "model.gguf");
    let bytes = fs::read(fixture("pocket-q8_0.gguf")).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    tandem!("run", "--model", file, "-p", "a").fails(1, "model.gguf");
    let model = fixture("pocket-q8_0.gguf");
    tandem!("run", "--model", model, "-p", "a", "--ctx", "100000000000")
        .fails(1, "use a smaller --ctx");
    tandem!("demo", "--fixtures", folder.path()).fails(1, "pocket-q8_0.gguf");
    if let Some(model) = shared("peer/logits/llama-f16.gguf") {
        tandem!("run", "--model", model, "-p", "a").fails(1, "llama-f16.gguf");
        tandem!("tokenize", "--model", model).fails(1, "llama-f16.gguf");
    }
}

#[test]
fn every_flag_has_help() {
    let help = tandem!("--help").ok().text();
    let commands: Vec<_> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.contains(&"run") && commands.contains(&"demo") && commands.len() > 10);
    for command in commands.into_iter().filter(|c| *c != "help") {
        let help = tandem!(command, "--help").ok().text();
        let lines: Vec<_> = help.lines().collect();
        let flags = lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.trim_start().starts_with('-'));
        for (i, line) in flags {
            // The text stands on the line below, or after two spaces on the same.
            let below = lines
                .get(i + 1)
                .is_some_and(|l| l.starts_with("          "));
            let beside = line.trim_start().split_once("  ").is_some();
            assert!(below || beside, "{command}: {line}");
        }
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args([OsStr::new("inspect"), OsStr::new("--json")])
        .arg(fixture("pocket-q8_0.gguf"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_demo_runs_from_any_folder() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .arg("demo")
        .arg("--fixtures")
        .arg(fixture("").canonicalize().unwrap())
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    // The adapters alone stay with English, the calibration brings the summary and German.
    let text = String::from_utf8(output.stdout).unwrap();
    let answers = |line: &str| -> Vec<&str> {
        let lines = text
            .lines()
            .filter_map(|l| l.trim_start().strip_prefix(line));
        lines.map(str::trim).collect()
    };
    assert_eq!(answers("German, calibrated").len(), 3);
    assert!(
        answers("German, calibrated")[0].starts_with("Dokumentation"),
        "{text}"
    );
    assert!(
        answers("German, adapters only")[0].starts_with("documentation"),
        "{text}"
    );
    assert!(text.contains("tokens, "));
    assert!(
        text.contains("tandem demo --model"),
        "how to see it on a real model"
    );
}

/// A model that is named gets the bundle that was made for it, and is shown what the bundle composes.
#[test]
fn the_demo_takes_any_model_with_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let (model, alone) = (
        fixture("pocket-q8_0.gguf"),
        folder.path().join("alone.gguf"),
    );
    let input = "This package contains the manual.";
    let run = tandem!("demo", "--model", model, "--input", input).ok();
    let text = String::from_utf8(run.stdout).unwrap();
    let lines = |start: &str| {
        let lines = text.lines().map(str::trim_start);
        lines.filter(|l| l.starts_with(start)).count()
    };
    assert!(text.starts_with("pocket-q8_0.gguf ("), "{text}");
    assert_eq!(
        lines("summarize-fr: ") + lines("summarize-de: "),
        2,
        "{text}"
    );
    assert_eq!(lines("model alone"), 2);
    assert_eq!(lines("adapter summarize"), 2);
    assert_eq!(lines("adapters merged"), 2);
    assert_eq!(lines("calibrated, +38.9 kB"), 2);

    fs::copy(&model, &alone).unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    tandem!("demo", "--model", alone, "--fixtures", empty).fails(1, "there is no bundle for");
    // Beside the model is a place, too.
    fs::copy(fixture("pocket.tandem"), folder.path().join("a.tandem")).unwrap();
    tandem!(
        "demo",
        "--model",
        alone,
        "--fixtures",
        empty,
        "--input",
        input
    )
    .ok();
    let bundle = folder.path().join("a.tandem");
    tandem!(
        "bundle",
        "remove",
        bundle,
        "--composition",
        "summarize-fr-plain"
    )
    .ok();
    tandem!(
        "bundle",
        "remove",
        bundle,
        "--composition",
        "summarize-de-plain"
    )
    .ok();
    tandem!("demo", "--model", alone, "--fixtures", empty).fails(1, "-plain of the same adapters");
}

#[cfg(unix)]
#[test]
fn a_model_that_is_cut_short_meanwhile_ends_the_program_with_a_sentence() {
    let model = fixture("pocket-q8_0.gguf");
    let args = ["run", "-p", "The library", "--temp", "0", "-n", "4", "-m"].map(OsStr::new);
    let run_with = |flags: &[&str]| {
        let mut args = args.to_vec();
        args.push(model.as_os_str());
        args.extend(flags.iter().map(OsStr::new));
        run(&args, b"").ok().text()
    };
    assert_eq!(run_with(&["--no-mmap"]), run_with(&[]));

    // A chat waits between its messages, and its model is cut then.
    let chatty = pocket_with("tokenizer.chat_template", Value::Str(TEMPLATE));
    let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["chat", "-n", "2", "--temp", "0"])
        .arg(chatty.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::Write::write_all(&mut stdin, b"hello\n").unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    chatty.as_file().set_len(1 << 20).unwrap();
    std::io::Write::write_all(&mut stdin, b"and now?\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(
        stderr.matches("a file was cut short").count(),
        1,
        "{stderr}"
    );
}

/// What a broken file computes is not taken for an answer.
#[test]
fn weights_that_are_no_numbers_stop_what_uses_them() {
    let bytes = fs::read(fixture("pocket-q8_0.gguf")).unwrap();
    let gguf = tandem_formats::Gguf::parse(&bytes).unwrap();
    let tensor = gguf
        .tensors()
        .iter()
        .find(|t| t.name == "blk.1.ffn_up.weight")
        .unwrap();
    let at = tensor.data.as_ptr() as usize - bytes.as_ptr() as usize;
    let mut broken = bytes.clone();
    // The first block's scale: NaN in F16.
    broken[at..at + 2].copy_from_slice(&[0x00, 0x7e]);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("broken.gguf");
    fs::write(&model, broken).unwrap();
    let (ids, text) = (folder.path().join("ids"), folder.path().join("text"));
    fs::write(&ids, "[1, 300, 400]").unwrap();
    fs::write(&text, "This package contains a library. ".repeat(4)).unwrap();
    let wanted = "the weights of blk.1.ffn_up.weight are not";
    tandem!("run", &model, "-p", "a").fails(1, wanted);
    tandem!(
        "logits",
        &model,
        "--tokens",
        &ids,
        "-o",
        folder.path().join("out")
    )
    .fails(1, wanted);
    tandem!("perplexity", &model, "--ctx", "8", "--text", &text).fails(1, wanted);
    tandem!("bench", "-m", &model, "-p", "4", "-n", "1", "-r", "1").fails(1, wanted);
    let data = folder.path().join("data.jsonl");
    fs::write(&data, "{\"input\": \"a\", \"target\": \"b\"}\n").unwrap();
    tandem!("eval", "-m", &model, "--data", &data).fails(1, wanted);
}

#[test]
fn metadata_cannot_move_the_cursor() {
    let model = pocket_with("general.description", Value::Str("a\u{1b}[2Jb\u{9b}c"));
    let text = tandem!("inspect", model.path()).ok().text();
    assert!(text.contains("general.description") && !text.contains(['\u{1b}', '\u{9b}']));
    let json = tandem!("inspect", "--json", model.path()).ok().json();
    assert_eq!(
        json["metadata"]["general.description"],
        "a\u{1b}[2Jb\u{9b}c"
    );
    assert_eq!(json["parameters"], 5_770_496);
}

/// A pipe's end to write to that no one reads from.
fn unread() -> std::io::PipeWriter {
    let (_, writer) = std::io::pipe().unwrap();
    writer
}

#[test]
fn every_command_ends_quietly_where_no_one_reads_its_output() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "This package contains a library. ".repeat(4)).unwrap();
    let (model, chatty) = (
        fixture("pocket-q8_0.gguf"),
        pocket_with("tokenizer.chat_template", Value::Str(TEMPLATE)),
    );
    let (model, chatty) = (model.to_str().unwrap(), chatty.path().to_str().unwrap());
    let (fixtures, text) = (fixture(""), text.to_str().unwrap());
    let fixtures = fixtures.to_str().unwrap();
    for (args, stdin) in [
        (&["run", "-n", "3", "-p", "a", "--model", model][..], ""),
        (&["run", "--json", "-n", "3", "-p", "a", "-m", model], ""),
        (&["chat", "-n", "3", "--model", chatty], "hello\n"),
        (&["tokenize", "--model", model], "hello"),
        (&["detokenize", "--model", model], "[300, 400]"),
        (&["inspect", model], ""),
        (&["demo", "--fixtures", fixtures], ""),
        (&["bench", "-p4", "-n1", "-r1", "--model", model], ""),
        (&["perplexity", "--ctx=8", "-m", model, "--text", text], ""),
        (&["--help"], ""),
        (&["run", "--help"], ""),
    ] {
        let input = folder.path().join("stdin");
        fs::write(&input, stdin).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(args)
            .stdin(fs::File::open(&input).unwrap())
            .stdout(unread())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        assert_eq!(stderr, "", "{args:?}");
    }
}

#[test]
fn exit_codes_are_the_same_where_no_one_reads_the_errors() {
    let model = fixture("pocket-q8_0.gguf");
    let model = model.to_str().unwrap();
    for (code, args) in [
        (0, &["run", "-n", "3", "-p", "a", "--model", model][..]),
        (1, &["inspect", "/no/such/file"]),
        (1, &["chat", "--model", model]),
        (2, &["run", "--model", model]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(args)
            .stdin(Stdio::null())
            .stderr(unread())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn an_empty_prompt_is_the_bos_alone_or_refused() {
    let model = fixture("pocket-q8_0.gguf");
    let report = tandem!("run", "--json", "-n", "2", "-p", "", "--model", model);
    assert_eq!(report.ok().json()["prompt_ids"], serde_json::json!([1]));
    let without = pocket_with("tokenizer.ggml.add_bos_token", Value::Bool(false));
    tandem!("run", "-p", "", "--model", without.path()).fails(1, "the prompt is empty");
}

#[test]
fn no_token_is_generated_where_none_is_asked_for() {
    let model = fixture("pocket-q8_0.gguf");
    let report = tandem!("run", "--json", "-n", "0", "-p", "The", "--model", model);
    let report = report.ok().json();
    assert_eq!(report["ids"], serde_json::json!([]));
    assert_eq!(
        (&report["text"], &report["stop"]),
        (&"".into(), &"max_tokens".into())
    );
}

#[test]
fn the_seed_that_was_drawn_is_told_and_repeats_the_run() {
    let model = fixture("pocket-q8_0.gguf");
    let first = tandem!(
        "run", "-p", "The", "--temp", "1", "-n", "20", "--model", model
    )
    .ok();
    let seed = first.stderr.trim_end().rsplit("seed ").next().unwrap();
    // What was guessed may be told behind it.
    let seed = seed.split(';').next().unwrap();
    let again = tandem!(
        "run", "-p", "The", "--temp", "1", "-n", "20", "--model", model, "--seed", seed
    );
    assert_eq!(first.text(), again.ok().text());
}

#[cfg(feature = "serve")]
#[test]
fn answers_are_held_to_a_form() {
    let model = fixture("pocket-q8_0.gguf");
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    let write = |json: &str| std::fs::write(&schema, json).unwrap();
    write(
        r#"{"type":"object","properties":{"kind":{"enum":["a","b"]}},"required":["kind"],"additionalProperties":false}"#,
    );
    for temperature in ["0", "2"] {
        let run = tandem!(
            "run",
            "-m",
            model,
            "--raw",
            "-p",
            "A package",
            "--temp",
            temperature,
            "--json",
            "--json-schema",
            schema
        );
        let report = run.ok().json();
        let value: serde_json::Value =
            serde_json::from_str(report["text"].as_str().unwrap()).unwrap();
        assert!(matches!(value["kind"].as_str(), Some("a" | "b")), "{value}");
        assert_eq!(report["stop"], "complete");
    }
    let regex = "(ab ){30}c";
    let run = tandem!(
        "run",
        "-m",
        model,
        "--raw",
        "-p",
        "A package",
        "--regex",
        regex,
        "--json"
    );
    // What repeats itself is guessed, and held to the form all the same.
    let report = run.ok().json();
    assert_eq!(report["text"], "ab ".repeat(30) + "c");
    write(r#"{"type":"array","uniqueItems":true}"#);
    tandem!(
        "run",
        "-m",
        model,
        "--raw",
        "-p",
        "x",
        "--json-schema",
        schema
    )
    .fails(1, "cannot be enforced");
    tandem!("run", "-m", model, "--raw", "-p", "x", "--regex", "([").fails(1, "regular expression");
}

#[test]
fn a_prompt_is_read_once() {
    let (model, bundle) = (fixture("pocket-q8_0.gguf"), fixture("pocket.tandem"));
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("prompt");
    let text = "This package provides the shared library for reading and writing images.";
    let said = |compose: &str, text: &str| {
        let run = tandem!(
            "run",
            "-m",
            model,
            "--bundle",
            bundle,
            "--compose",
            compose,
            "-p",
            text,
            "--temp",
            "0",
            "-n",
            "16",
            "--json",
            "--prompt-cache",
            cache
        );
        let run = run.ok();
        let report = run.json();
        let text = report["text"].as_str().unwrap().to_string();
        (text, report["n_cached"].as_u64().unwrap(), run.stderr)
    };
    let (first, n_cached, _) = said("summarize", text);
    assert_eq!(n_cached, 0);
    let (second, n_cached, _) = said("summarize", text);
    assert!(first == second && n_cached > 10, "{n_cached}");
    let (_, n_cached, _) = said("summarize", &format!("{text} It is fast."));
    assert!(n_cached > 10, "{n_cached}");
    // Another composition's is not used, but replaced.
    let (_, n_cached, told) = said("summarize-fr", text);
    assert!(
        n_cached == 0 && told.contains("of another model, composition"),
        "{told}"
    );
    assert!(said("summarize-fr", text).1 > 10);
    // No other file is written over.
    let other = folder.path().join("other");
    std::fs::write(&other, "a letter").unwrap();
    tandem!(
        "run",
        "-m",
        model,
        "-p",
        "x",
        "-n",
        "1",
        "--prompt-cache",
        other
    )
    .fails(1, "no prompt cache");
    assert_eq!(std::fs::read(&other).unwrap(), b"a letter");
}
