//! `tandem eval` on the repository's model: what it answers, how it scores, what it refuses.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, fixture, run, shared, tandem};
use serde_json::{Value as Json, json};

const INPUTS: [&str; 3] = [
    "This package contains the documentation of the library in HTML format.",
    "This package provides a plugin for the desktop environment that shows the weather.",
    "This package contains the header files to develop programs with the library.",
];

/// A data file of the inputs, each with a target.
fn data(folder: &Path, targets: &[String]) -> PathBuf {
    let lines = INPUTS.iter().zip(targets);
    let lines = lines.map(|(input, target)| json!({"input": input, "target": target}).to_string());
    let path = folder.join("data.jsonl");
    fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    path
}

/// `tandem eval` with the demo's model and bundle.
fn eval(data: &Path, flags: &[&OsStr]) -> Run {
    let (model, bundle) = (fixture("pocket-q8_0.gguf"), fixture("pocket.tandem"));
    let mut args: Vec<&OsStr> = vec!["eval".as_ref(), "--model".as_ref(), model.as_ref()];
    args.extend(["--bundle".as_ref(), bundle.as_os_str()]);
    args.extend(["--data".as_ref(), data.as_os_str()]);
    args.extend(["--max-tokens".as_ref(), OsStr::new("24")]);
    args.extend(flags);
    run(&args, b"")
}

macro_rules! flags {
    ($($arg:expr),* $(,)?) => { &[$(OsStr::new(&$arg)),*] };
}

/// What `tandem run` says with a composition.
fn said(composition: &str, input: &str) -> String {
    let report = tandem!(
        "run",
        "--model",
        fixture("pocket-q8_0.gguf"),
        "--bundle",
        fixture("pocket.tandem"),
        "--compose",
        composition,
        "--prompt",
        input,
        "--temp",
        "0",
        "--n-predict",
        "24",
        "--json"
    );
    report.ok().json()["text"]
        .as_str()
        .unwrap()
        .trim()
        .to_string()
}

/// The lines of a file of predictions.
fn predictions(path: &Path) -> Vec<Json> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Answers are those of `tandem run`, also where one feeds the next; those that are wanted score
/// 100, and each row has its own.
#[test]
fn answers_are_scored_against_the_targets() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wanted: Vec<String> = INPUTS.map(|input| said("summarize-fr", input)).to_vec();
    let data = data(folder, &wanted);
    let out = folder.join("out.jsonl");
    let flags = flags![
        "--compose",
        "none,translate-fr,summarize-fr",
        "--multi-step",
        "summarize,translate-fr",
        "--multi-step",
        "translate-fr,summarize",
        "--output",
        "json",
        "--predictions",
        out,
    ];
    let report = eval(&data, flags).ok().json();
    assert_eq!(report["examples"], 3);
    assert_eq!(report["tokenizer"], "words");
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| &row["composition"]).collect();
    assert_eq!(
        names,
        [
            "none",
            "translate-fr",
            "summarize-fr",
            "summarize -> translate-fr",
            "translate-fr -> summarize"
        ]
    );
    let inferences: Vec<_> = rows.iter().map(|row| &row["inferences"]).collect();
    assert_eq!(inferences, [1, 1, 1, 2, 2]);
    for score in ["rouge1", "rouge2", "rougeL"] {
        let mean = |i: usize| rows[i][score]["mean"].as_f64().unwrap();
        assert!((mean(2) - 100.0).abs() < 1e-9);
        for i in [0, 1, 3, 4] {
            assert!(mean(i) < 99.0, "{}: {}", names[i], mean(i));
            let (low, high) = (&rows[i][score]["low"], &rows[i][score]["high"]);
            assert!(low.as_f64().unwrap() <= mean(i) && mean(i) <= high.as_f64().unwrap());
        }
    }
    assert!(
        rows.iter()
            .all(|row| row["ms_per_example"].as_f64().unwrap() > 0.0)
    );

    let lines = predictions(&out);
    assert_eq!(lines.len(), 5 * 3);
    let prediction = |row: usize, i: usize| lines[row * 3 + i]["prediction"].as_str().unwrap();
    for (i, input) in INPUTS.into_iter().enumerate() {
        assert_eq!(lines[i]["line"], i + 1);
        assert_eq!(prediction(1, i), said("translate-fr", input));
        assert_eq!(prediction(2, i), wanted[i]);
        let summary = said("summarize", input);
        assert_eq!(prediction(3, i), said("translate-fr", &summary));
        let french = said("translate-fr", input);
        assert_eq!(prediction(4, i), said("summarize", &french));
    }
    // The model alone is asked as the compositions are.
    let model = fixture("pocket-q8_0.gguf");
    let prompt = format!("{}\n=> ", INPUTS[0]);
    let alone = tandem!(
        "run",
        "--model",
        model,
        "--raw",
        "--prompt",
        prompt,
        "--temp",
        "0",
        "--n-predict",
        "24"
    );
    assert_eq!(prediction(0, 0), alone.ok().text().trim());
}

#[test]
fn results_do_not_depend_on_threads_and_come_in_three_forms() {
    let folder = tempfile::tempdir().unwrap();
    let targets = [
        "documentation HTML",
        "greffon météo",
        "fichiers de développement",
    ];
    let data = data(folder.path(), &targets.map(str::to_string));
    let compose = [
        "--compose".as_ref(),
        OsStr::new("summarize-fr-lc,summarize-fr"),
    ];
    let with = |flags: &[&OsStr]| eval(&data, &[&compose[..], flags].concat()).ok();
    let json = |threads: &str| with(flags!["-o", "json", "--threads", threads]).json();
    let (one, two) = (json("1"), json("2"));
    assert_eq!(one["threads"], 1);
    assert_eq!(two["rows"].as_array().unwrap().len(), 2);
    for (a, b) in one["rows"]
        .as_array()
        .unwrap()
        .iter()
        .zip(two["rows"].as_array().unwrap())
    {
        for key in ["composition", "rouge1", "rouge2", "rougeL"] {
            assert_eq!(a[key], b[key]);
        }
    }
    // The calibrations, in F16.
    let extra = |row: usize| {
        let row = &one["rows"][row];
        (
            row["extra_parameters"].as_u64(),
            row["extra_bytes"].as_u64(),
        )
    };
    assert_eq!(extra(0), (Some(2560), Some(2 * 2560)));
    assert_eq!(extra(1), (Some(19456), Some(2 * 19456)));

    let md = with(&[]).text();
    let rouge_l = one["rows"][1]["rougeL"]["mean"].as_f64().unwrap();
    let row = md.lines().find(|line| line.starts_with("| summarize-fr |"));
    assert!(row.unwrap().contains(&format!("| {rouge_l:.1} (")), "{md}");
    assert!(row.unwrap().ends_with("| 19456 | 38912 |"), "{md}");

    let csv = with(flags!["--output", "csv", "--limit", "2"]).text();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    assert_eq!(
        (lines[0][0], lines[1][0]),
        ("composition", "summarize-fr-lc")
    );
    assert_eq!((lines[0][14], lines[1][14]), ("examples", "2"));

    // Words with accents are one word only where white space alone parts words.
    let whitespace = with(flags!["-o", "json", "--tokenizer", "whitespace"]).json();
    assert_ne!(whitespace["rows"][1]["rouge1"], one["rows"][1]["rouge1"]);
}

/// An adapter of the bundle alone, and what it costs where no composition uses it.
#[test]
fn adapters_are_evaluated_alone() {
    let folder = tempfile::tempdir().unwrap();
    let targets: Vec<String> = INPUTS.map(|input| said("translate-fr", input)).to_vec();
    let data = data(folder.path(), &targets);
    let bundle = folder.path().join("small.tandem");
    fs::copy(fixture("pocket.tandem"), &bundle).unwrap();
    let mut args = vec!["bundle", "remove", bundle.to_str().unwrap()];
    for name in [
        "translate-fr",
        "summarize-fr-plain",
        "summarize-fr",
        "summarize-fr-lc",
    ] {
        args.extend(["--composition", name]);
    }
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    run(&args, b"").ok();
    let model = fixture("pocket-q8_0.gguf");
    let flags = flags![
        "eval",
        "--model",
        model,
        "--data",
        data,
        "--max-tokens",
        "24",
        "-o",
        "json",
        "--bundle",
        bundle,
        "--compose",
        "translate-fr,summarize",
        "--prompt-template",
        "{{ input }}\n=> ",
    ];
    let report = run(flags, b"").ok().json();
    let rows = &report["rows"];
    assert!((rows[0]["rougeL"]["mean"].as_f64().unwrap() - 100.0).abs() < 1e-9);
    // Rank 16 on all linears of 6 layers: q and o 256 to 256, k and v to 128, gate, up and down.
    let n = 6 * 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 768));
    assert_eq!(rows[0]["extra_parameters"], n);
    assert!(rows[0]["extra_bytes"].as_u64().unwrap() > n);
    assert_eq!(rows[1]["extra_parameters"], 0);
    assert_eq!(rows[1]["extra_bytes"], 0);
}

/// The greedy answers of transformers and PEFT in float32.
#[test]
fn files_answer_as_in_peft() {
    let (Some(trained), Some(base)) = (
        shared("models/pocket"),
        shared("models/pocket/base-f32.gguf"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let golden = fs::read(trained.join("greedy-f32.json")).unwrap();
    let golden: Json = serde_json::from_slice(&golden).unwrap();
    let lora = |name: &str, scale: &str| {
        let mut path = trained.join("adapters").join(name).into_os_string();
        path.push(scale);
        path
    };
    let (summarize, translate) = (lora("summarize", "=0.5"), lora("translate-fr", "=0.5"));
    let both = flags!["--lora", summarize, "--lora", translate];
    let calibration = trained.join("calibration-sum-fr-lc.safetensors");
    let lc = flags!["--calibration", calibration, "--kind", "output_bias"];
    let (data, out) = (
        folder.path().join("data.jsonl"),
        folder.path().join("out.jsonl"),
    );
    for (name, row, adapters) in [
        ("base", "none", vec![]),
        ("sum-fr/cat-0.5", "lora", both.to_vec()),
        (
            "sum-fr/lc",
            "lora with output_bias",
            [&both[..], lc].concat(),
        ),
    ] {
        let cases = &golden[name].as_array().unwrap()[..8];
        let lines = cases.iter().map(|case| {
            let target = case["output"].as_str().unwrap();
            json!({"input": case["input"], "target": format!("{target} .")}).to_string()
        });
        fs::write(&data, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let flags = flags![
            "eval",
            "--model",
            base,
            "--data",
            data,
            "--prompt-template",
            "{{ input }}\n=> ",
            "--max-tokens",
            "32",
            "--exact",
            "-o",
            "json",
            "--predictions",
            out,
        ];
        let report = run(&[&flags[..], &adapters].concat(), b"").ok().json();
        assert_eq!(report["rows"][0]["composition"], row);
        let lines = predictions(&out);
        assert_eq!(lines.len(), cases.len());
        for (line, case) in lines.iter().zip(cases) {
            let wanted = case["output"].as_str().unwrap().trim();
            assert_eq!(line["prediction"].as_str().unwrap(), wanted, "{name}");
        }
        let extra = &report["rows"][0]["extra_parameters"];
        assert_eq!(*extra, if name == "sum-fr/lc" { 2560 } else { 0 });
    }
}

#[test]
fn bad_data_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let good = r#"{"input": "a library", "target": "une bibliothèque"}"#;
    let long = format!(r#"{{"input": "{}", "target": "b"}}"#, "word ".repeat(500));
    for (line, what) in [
        (
            r#"{"input": "a"}"#,
            "line 3: no object with texts `input` and `target`: missing field `target` (column 14)",
        ),
        (
            r#"{"input": "a", "target": " "}"#,
            "line 3: the target is empty",
        ),
        (
            r#"{"input": "a", "target": "b""#,
            "line 3: no object with texts `input` and `target`: EOF",
        ),
        (&long, "line 3: 1006 tokens of prompt"),
    ] {
        fs::write(&path, format!("{good}\n{good}\n{line}\n")).unwrap();
        let compose = flags!["--compose", "summarize-fr"];
        eval(&path, compose).fails(1, what);
        eval(&path, &[&compose[..], flags!["--limit", "2"]].concat()).ok();
    }
    fs::write(&path, "\n").unwrap();
    eval(&path, flags!["--compose", "none"]).fails(1, "has no examples");
    let missing = folder.path().join("missing.jsonl");
    eval(&missing, flags!["--compose", "none"]).fails(1, "missing.jsonl");
}

#[test]
fn senseless_flags_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path(), &INPUTS.map(str::to_string));
    let before = fs::read(&data).unwrap();
    eval(&data, flags!["--compose", "nothing"]).fails(
        1,
        "no composition \"nothing\" in the bundle; it has summarize, translate-fr",
    );
    eval(&data, &[]).fails(2, "--compose");
    eval(&data, flags!["--multi-step", "summarize"]).fails(2, "two names");
    eval(&data, flags!["--multi-step", "summarize,"]).fails(2, "two names");
    let compose = flags!["--compose", "summarize-fr"];
    let with = |flags: &[&OsStr]| eval(&data, &[&compose[..], flags].concat());
    with(flags!["--prompt-template", "input"]).fails(2, "{{ input }}");
    with(flags!["--lora", "x"]).fails(2, "--lora");
    with(flags!["--limit", "0"]).fails(2, "--limit");
    with(flags!["--tokenizer", "letters"]).fails(2, "words");
    with(flags!["--ctx", "30"]).fails(1, "line 1: ");
    with(flags!["--predictions", data]).fails(1, "is an input");
    assert_eq!(fs::read(&data).unwrap(), before);
    let model = fixture("pocket-q8_0.gguf");
    tandem!(
        "eval",
        "--model",
        model,
        "--data",
        data,
        "--compose",
        "none"
    )
    .fails(2, "--bundle");
}
