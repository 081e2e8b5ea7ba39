//! `tandem bench`, and the threads and the memory that a run takes.

mod common;

use std::process::{Command, Stdio};

use common::{fixture, shared, tandem};
use serde_json::Value as Json;
use tandem_engine::{Model, Session, SessionOptions};

fn rows(flags: &[&str]) -> Vec<Json> {
    let model = fixture("pocket-q8_0.gguf");
    let mut args = vec!["bench", "--output", "json", "--repeat", "2", "--model"];
    args.push(model.to_str().unwrap());
    args.extend(flags);
    let args: Vec<_> = args.iter().map(std::ffi::OsStr::new).collect();
    let rows = common::run(&args, b"").ok().json();
    rows.as_array().unwrap().clone()
}

#[test]
fn rows_say_what_was_measured() {
    let rows = rows(&["-p", "8", "-n", "3", "--depth", "40"]);
    let tests: Vec<_> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["pp8@d40", "tg3@d40"]);
    for row in &rows {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(number("tokens_per_second") > 0.0 && number("bandwidth") > 0.0);
        assert!((number("ms_per_token") * number("median") - 1e3).abs() < 1e-6);
        assert_eq!(row["level"], tandem_engine::Level::detect().name());
    }
    assert!(rows[0]["bandwidth_share"].is_null());
    assert!(rows[1]["bandwidth_share"].as_f64() > Some(0.0));
}

#[test]
fn speed_over_time_is_shown() {
    let rows = rows(&["--sustain", "3", "-n", "40"]);
    assert!((2..=4).contains(&rows.len()), "{}", rows.len());
    assert_eq!(rows[0]["of_first"], 1.0);
    let mut last = 0.0;
    for row in &rows {
        let seconds = row["seconds"].as_f64().unwrap();
        assert!(seconds > last + 0.9 && row["tokens_per_second"].as_f64() > Some(0.0));
        last = seconds;
    }
    tandem!("bench", "-m", "x", "--sustain", "0").fails(2, "--sustain");
}

#[test]
fn threads_of_prefill_and_decode_are_chosen_apart() {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = |flags: &[&str]| -> Vec<usize> {
        let flags = [&["-p", "4", "-n", "2"], flags].concat();
        let rows = rows(&flags);
        let threads = rows.iter().map(|row| row["threads"].as_u64().unwrap());
        threads.map(|n| n as usize).collect()
    };
    assert_eq!(threads(&["--threads", "1"]), [1, 1]);
    let two = n_cores.min(2);
    assert_eq!(threads(&["--threads", "2"]), [two, two]);
    assert_eq!(
        threads(&["--threads", "2", "--threads-decode", "1"]),
        [two, 1]
    );
    assert_eq!(
        threads(&["--threads", "1", "--threads-decode", "2"]),
        [1, two]
    );
    // Never more than there are cores.
    assert_eq!(threads(&["--threads", "999"]), [n_cores, n_cores]);
    // Measured: any number, but as many in the row as there can be.
    let measured = threads(&[]);
    assert_eq!(measured[0], n_cores);
    assert!((1..=n_cores).contains(&measured[1]));
}

#[test]
fn all_outputs_have_the_same_rows() {
    let model = fixture("pocket-q8_0.gguf");
    let text = |output: &str| {
        let run = tandem!(
            "bench", "-m", model, "-p4", "-n0", "-r1", "-t1", "-o", output
        );
        run.ok().text()
    };
    let csv = text("csv");
    let (head, row) = csv.trim_end().split_once('\n').unwrap();
    assert_eq!(head.split(',').count(), row.split(',').count());
    assert!(row.contains(",pp4,"));
    let md = text("md");
    let lines: Vec<_> = md.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[2].contains("| pp4 |"));
    let n_cells = lines.iter().map(|line| line.matches('|').count());
    assert!(n_cells.clone().all(|n| n == lines[0].matches('|').count()));
}

#[test]
fn passes_over_several_sequences_are_timed_beside_one_alone() {
    let (model, bundle) = (fixture("pocket-q8_0.gguf"), fixture("pocket.tandem"));
    let run = |parallel: &str, n: &str, output: &str| {
        tandem!(
            "bench",
            "-m",
            model,
            "--bundle",
            bundle,
            "--compose",
            "summarize-fr",
            "-r1",
            "-t1",
            "--parallel",
            parallel,
            "-n",
            n,
            "-o",
            output,
            "--depth",
            "5"
        )
    };
    let rows = run("1,3", "2", "json").ok().json();
    let column = |name: &str| -> Vec<_> {
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row[name].as_f64().unwrap()).collect()
    };
    assert_eq!(column("sequences"), [1.0, 3.0]);
    assert_eq!(column("compositions"), [1.0, 3.0]);
    for name in ["tokens_per_second", "ms_per_pass", "of_one"] {
        assert!(column(name).iter().all(|x| *x > 0.0), "{name}");
    }
    for output in ["csv", "md"] {
        let text = run("2", "1", output).ok().text();
        let mark = if output == "csv" { ',' } else { '|' };
        let counts: Vec<_> = text
            .lines()
            .map(|line| line.matches(mark).count())
            .collect();
        assert!(counts.iter().all(|n| *n == counts[0]), "{text}");
    }
    run("65", "1", "json").fails(1, "at most 64 sequences");
    run("2", "0", "json").fails(1, "nothing to measure");
    run("0", "1", "json").fails(2, "--parallel");
}

#[test]
fn switches_are_timed() {
    let Some(folder) = shared("peer/logits") else {
        return;
    };
    let model = folder.join("llama-f16.gguf");
    let adapter = |name: &str| folder.join("llama-lora").join(name);
    let (a, b) = (adapter("summarize"), adapter("translate"));
    let run = tandem!(
        "bench", "--switch", "-r", "2", "-o", "json", "-m", model, "--lora", a, "--lora", b
    );
    let rows = run.ok().json();
    let names: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["switch"])
        .collect();
    assert_eq!(names[..2], ["ready-made", "cat"]);
    assert!(names.iter().any(|name| *name == "ties"));
    for row in rows.as_array().unwrap() {
        assert!(row["median"].as_f64() > Some(0.0));
    }
    tandem!("bench", "--switch", "-m", model).fails(1, "nothing to switch to");
}

/// Bytes that a process has besides what it maps from files, now.
#[cfg(target_os = "linux")]
fn anonymous_bytes(process: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_takes_little_memory_besides_the_model_and_the_kv_cache() {
    const MARGIN: usize = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let shape = ["--shape", "smollm2-135m", "--type", "Q4_0"];
    tandem!("synth", shape[0], shape[1], shape[2], shape[3], path).ok();
    let kv_cache = {
        let model = Model::open(&path).unwrap();
        let options = SessionOptions::for_model(model.config());
        Session::memory(model.config(), &options, None)
            .unwrap()
            .kv_cache
    };
    // Longer than a batch. The child is looked at while it generates, with all it allocates in use.
    let prompt = "a b c d ".repeat(100);
    let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args([
            "run", "--raw", "--temp", "0", "-n", "48", "--prompt", &prompt,
        ])
        .arg("--model")
        .arg(&path)
        .env_remove("TANDEM_CPU")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut most, mut n_looks) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        if let Some(n_bytes) = anonymous_bytes(child.id()) {
            most = most.max(n_bytes);
            n_looks += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    // 48 tokens take long enough to be seen, and the cache is touched when it is made.
    assert!(n_looks > 10, "{n_looks} looks");
    assert!(most > kv_cache, "{most} bytes with a cache of {kv_cache}");
    assert!(
        most <= kv_cache + MARGIN,
        "{most} bytes with a cache of {kv_cache}"
    );
}
