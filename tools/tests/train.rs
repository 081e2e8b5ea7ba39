//! `tandem calibrate` and `tandem train-lora` on the model in `fixtures/`.
#![cfg(feature = "train")]

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{fixture, tandem};

const LINES: [(&str, &str); 8] = [
    ("This package contains the documentation.", "documentation"),
    (
        "A library for reading images of many kinds.",
        "bibliothèque d'images",
    ),
    (
        "Tools that talk to printers over the network.",
        "outils d'impression",
    ),
    (
        "A small game about falling blocks and time.",
        "jeu de blocs",
    ),
    (
        "Fonts with letters of many languages.",
        "polices de caractères",
    ),
    (
        "This is a transitional package, safe to remove.",
        "paquet de transition",
    ),
    ("An editor of text for the terminal.", "éditeur de texte"),
    (
        "Headers and static libraries for developers.",
        "fichiers de développement",
    ),
];

/// A folder with a recipe, its data, and a copy of the fixtures' bundle.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new() -> Work {
        let folder = tempfile::tempdir().expect("a folder");
        let line = |(input, target): &(&str, &str)| {
            serde_json::json!({ "input": input, "target": target }).to_string() + "\n"
        };
        let data: String = LINES.iter().map(line).collect();
        fs::write(folder.path().join("data.jsonl"), data).expect("data");
        fs::copy(fixture("pocket.tandem"), folder.path().join("x.tandem")).expect("a bundle");
        let work = Work { folder };
        work.write_recipe(&work.recipe());
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(&self) -> String {
        format!(
            r#"base = {:?}
bundle = "x.tandem"
composition = "summarize-fr-plain"

[data]
path = "data.jsonl"
validation = 2

[calibration]
kind = "low_rank"
rank = 2

[lora]
rank = 2
alpha = 4

[train]
steps = 12
batch = 4
micro_batch = 2
learning_rate = 0.02
validate_every = 4
seed = 5
"#,
            fixture("pocket-q8_0.gguf")
        )
    }

    fn write_recipe(&self, text: &str) {
        fs::write(self.path("recipe.toml"), text).expect("a recipe");
    }

    fn calibrate(&self, out: &str, more: &[&str]) -> common::Run {
        let (recipe, out) = (self.path("recipe.toml"), self.path(out));
        let mut args: Vec<&std::ffi::OsStr> = vec![
            "calibrate".as_ref(),
            recipe.as_ref(),
            "--out".as_ref(),
            out.as_ref(),
        ];
        args.extend(more.iter().map(|arg| std::ffi::OsStr::new(*arg)));
        common::run(&args, b"")
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a file")
    }
}

/// The losses that lines like `step 4: training loss 2.3, validation loss 2.4` tell.
fn losses(stderr: &str, what: &str) -> Vec<f64> {
    let number = |line: &str| {
        let (_, rest) = line.split_once(what)?;
        rest.trim().split([',', ' ']).next()?.parse().ok()
    };
    stderr.lines().filter_map(number).collect()
}

#[test]
fn the_loss_falls_and_a_seed_decides_every_byte() {
    let work = Work::new();
    for kind in ["output_bias", "weight_bias", "low_rank", "projection"] {
        let curve = work.path("curve.svg");
        // A vector times the sum of all inputs goes far with each step: at the others' rate its loss rises
        // before it falls.
        let rate = if kind == "weight_bias" {
            "0.002"
        } else {
            "0.02"
        };
        let flags = ["--kind", kind, "--lr", rate, "--steps", "20"];
        let drawn = [&flags[..], &["--curve", curve.to_str().unwrap()]].concat();
        let run = work.calibrate("a.safetensors", &drawn).ok();
        let told = |what: &str| run.stderr.contains(what);
        assert!(told("of memory\n") && told("tokens/s\n"), "{}", run.stderr);
        let training = losses(&run.stderr, "training loss");
        assert_eq!(training.len(), 5, "{}", run.stderr);
        assert!(training[4] < 0.9 * training[0], "{kind}: {training:?}");
        assert!(fs::read_to_string(curve).unwrap().starts_with("<svg"));
        assert!(!work.path("a.safetensors.checkpoint").exists());

        // As many threads as there are, or one: the same.
        let alone = [&flags[..], &["--threads", "1"]].concat();
        work.calibrate("b.safetensors", &alone).ok();
        assert!(
            work.bytes("a.safetensors") == work.bytes("b.safetensors"),
            "{kind}"
        );
    }
    let seeded = ["--kind", "projection", "--steps", "20", "--seed", "6"];
    work.calibrate("b.safetensors", &seeded).ok();
    assert!(work.bytes("a.safetensors") != work.bytes("b.safetensors"));

    let size = |kind: &str, wanted: usize| {
        work.calibrate("c.safetensors", &["--kind", kind, "--steps", "1"])
            .ok();
        let n = work.bytes("c.safetensors").len();
        assert!((wanted * 4..wanted * 4 + 4096).contains(&n), "{kind}: {n}");
    };
    size("output_bias", 2560);
    size("low_rank", 9728);

    // What it wrote runs.
    tandem!(
        "run",
        "--model",
        fixture("pocket-q8_0.gguf"),
        "--calibration",
        work.path("c.safetensors"),
        "--kind",
        "low_rank",
        "--prompt",
        "A game.",
        "--temp",
        "0"
    )
    .ok();
}

#[cfg(unix)]
#[test]
fn stopped_and_resumed_is_as_if_it_had_not_been() {
    for n_held_out in [0, 2] {
        let work = Work::new();
        let text = work.recipe();
        let held_out = format!("validation = {n_held_out}");
        work.write_recipe(&text.replace("validation = 2", &held_out));
        let steps = ["--steps", "60", "--kind", "low_rank"];
        work.calibrate("whole.safetensors", &steps).ok();
        let whole = work.bytes("whole.safetensors");

        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .arg("calibrate")
            .arg(work.path("recipe.toml"))
            .args(steps)
            .arg("--out")
            .arg(work.path("x.safetensors"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut text = String::new();
        while !text.contains("step 8:") {
            assert_ne!(stderr.read_line(&mut text).expect("text"), 0, "{text}");
        }
        let id = child.id().to_string();
        let kill = Command::new("kill").args(["-INT", &id]).status();
        assert!(kill.expect("kill").success());
        std::io::Read::read_to_string(&mut stderr, &mut text).expect("text");
        assert!(child.wait().expect("it ends").success(), "{text}");
        assert!(text.contains("as asked for"), "{text}");
        assert!(text.contains("--resume goes on"), "{text}");
        if n_held_out == 0 {
            // The last is kept then, and it is not the end's.
            assert!(work.bytes("x.safetensors") != whole);
        }

        let other = [&steps[..], &["--resume", "--lr", "0.03"]].concat();
        work.calibrate("x.safetensors", &other)
            .fails(1, "another recipe");
        // For more steps it can go on, too.
        let copy = work.path("copy.checkpoint");
        fs::copy(work.path("x.safetensors.checkpoint"), &copy).unwrap();
        let copy = copy.to_str().unwrap();
        let longer = [
            "--steps",
            "61",
            "--kind",
            "low_rank",
            "--resume",
            "--checkpoint",
            copy,
        ];
        let more = work.calibrate("longer.safetensors", &longer).ok();
        assert!(!more.stderr.contains("step 8:"), "{}", more.stderr);
        let flags = [&steps[..], &["--resume"]].concat();
        let rest = work.calibrate("x.safetensors", &flags).ok();
        assert!(!rest.stderr.contains("step 8:"), "{}", rest.stderr);
        assert!(work.bytes("x.safetensors") == whole, "{}", rest.stderr);
        assert!(!work.path("x.safetensors.checkpoint").exists());
    }
}

#[test]
fn training_ends_where_validation_gets_no_better() {
    let work = Work::new();
    let text = work
        .recipe()
        .replace("steps = 12", "steps = 200\npatience = 1");
    work.write_recipe(&text.replace("learning_rate = 0.02", "learning_rate = 0.2"));
    let run = work.calibrate("a.safetensors", &[]).ok();
    assert!(
        run.stderr.contains("as validation got no better"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_checkpoint_must_be_there_and_be_one() {
    let work = Work::new();
    work.calibrate("a.safetensors", &["--resume"])
        .fails(1, "cannot go on from");
    fs::write(work.path("a.safetensors.checkpoint"), b"nonsense").unwrap();
    work.calibrate("a.safetensors", &["--resume"])
        .fails(1, "cannot go on from");
    assert!(!work.path("a.safetensors").exists());
    // Nor is it replaced by that of a run that begins anew.
    work.calibrate("a.safetensors", &["--steps", "1"])
        .fails(1, "there is a checkpoint of an earlier run");
    assert_eq!(
        fs::read(work.path("a.safetensors.checkpoint")).unwrap(),
        b"nonsense"
    );
}

/// Members that are stored as one are learned for as they are apart.
#[test]
fn a_stored_sum_gets_the_calibration() {
    let work = Work::new();
    work.calibrate("apart.safetensors", &["--steps", "2"]).ok();
    let shown = tandem!("bundle", "inspect", work.path("x.tandem"), "--json");
    let shown = shown.ok().json();
    let compositions = shown["compositions"].as_array().unwrap();
    let plain = compositions
        .iter()
        .find(|c| c["name"] == "summarize-fr-plain");
    let prompt = plain.unwrap()["prompt"].as_str().unwrap();
    let add = format!(
        "[bundle]\nbase = {:?}\n[[composition]]\nname = \"stored\"\nprompt = {prompt:?}\n\
         adapters = [{{ name = \"summarize\", weight = 0.5 }}, {{ name = \"translate-fr\", weight = 0.5 }}]\n\
         ready_made = true\n",
        fixture("pocket-q8_0.gguf")
    );
    fs::write(work.path("add.toml"), add).unwrap();
    let (bundle, add) = (work.path("x.tandem"), work.path("add.toml"));
    tandem!("bundle", "add", bundle, add).ok();
    work.write_recipe(&work.recipe().replace("summarize-fr-plain", "stored"));
    work.calibrate("one.safetensors", &["--steps", "2"]).ok();
    assert!(work.bytes("one.safetensors") == work.bytes("apart.safetensors"));
}

#[test]
fn a_bundle_gets_the_calibration() {
    let work = Work::new();
    let recipe = work.recipe() + "\n[output]\ncomposition = \"learned\"\n";
    work.write_recipe(&recipe);
    for kind in ["low_rank", "output_bias"] {
        tandem!(
            "calibrate",
            work.path("recipe.toml"),
            "--kind",
            kind,
            "--steps",
            "2"
        )
        .ok();
        tandem!(
            "bundle",
            "verify",
            work.path("x.tandem"),
            "--base",
            fixture("pocket-q8_0.gguf")
        )
        .ok();
        let shown = tandem!("bundle", "inspect", work.path("x.tandem"))
            .ok()
            .text();
        assert!(shown.contains(&format!("learned-{kind}")), "{shown}");
        tandem!(
            "run",
            "--model",
            fixture("pocket-q8_0.gguf"),
            "--bundle",
            work.path("x.tandem"),
            "--compose",
            "learned",
            "--prompt",
            "A game.",
            "--temp",
            "0"
        )
        .ok();
    }
    // The second has taken the first one's place, and the others are as they were.
    let shown = tandem!("bundle", "inspect", work.path("x.tandem"))
        .ok()
        .text();
    assert!(
        !shown.contains("learned-low_rank") && shown.contains("sum-fr-lcpp"),
        "{shown}"
    );
}

#[test]
fn a_lora_is_learned_and_runs() {
    let work = Work::new();
    let recipe = work.recipe().replace(
        "bundle = \"x.tandem\"\ncomposition = \"summarize-fr-plain\"",
        "prompt = \"{{ input }}\\n=> \"",
    );
    work.write_recipe(&recipe);
    let out = work.path("adapter");
    let run = tandem!(
        "train-lora",
        work.path("recipe.toml"),
        "--out",
        out,
        "--steps",
        "20"
    )
    .ok();
    let training = losses(&run.stderr, "training loss");
    assert!(training[4] < 0.9 * training[0], "{training:?}");
    let config: serde_json::Value =
        serde_json::from_slice(&work.bytes("adapter/adapter_config.json")).unwrap();
    assert_eq!(
        (config["r"].as_u64(), config["lora_alpha"].as_f64()),
        (Some(2), Some(4.0))
    );
    assert_eq!(config["target_modules"].as_array().map(Vec::len), Some(7));
    let answer = |more: &[&std::ffi::OsStr]| {
        let model = fixture("pocket-q8_0.gguf");
        let mut args: Vec<&std::ffi::OsStr> = vec![
            "run".as_ref(),
            "--model".as_ref(),
            model.as_ref(),
            "--temp".as_ref(),
            "0".as_ref(),
            "--prompt".as_ref(),
            "An editor of text for the terminal.\n=> ".as_ref(),
            "--n-predict".as_ref(),
            "8".as_ref(),
        ];
        args.extend(more);
        common::run(&args, b"").ok().text()
    };
    assert_ne!(answer(&["--lora".as_ref(), out.as_ref()]), answer(&[]));
}

/// Every mistake is told with its place, and what was at the output's path stays there.
#[test]
fn mistakes_are_told_and_nothing_is_overwritten() {
    let work = Work::new();
    fs::write(work.path("a.safetensors"), b"precious").unwrap();
    let fails = |flags: &[&str], what: &str| {
        work.calibrate("a.safetensors", flags).fails(1, what);
        assert_eq!(work.bytes("a.safetensors"), b"precious");
    };
    let recipe = work.recipe();
    for (from, to, what) in [
        (
            "learning_rate",
            "learning_rat",
            "line 21: unknown field `learning_rat`",
        ),
        ("rank = 2", "rank = \"two\"", "line 11:"),
        (
            "kind = \"low_rank\"",
            "kind = \"lowrank\"",
            "no calibration \"lowrank\"; there are output_bias",
        ),
        ("batch = 4", "batch = 0", "batch must be at least 1"),
        (
            "learning_rate = 0.02",
            "learning_rate = -1.0",
            "learning_rate must be above 0",
        ),
        (
            "validation = 2",
            "validation = 8",
            "none is left to learn from",
        ),
        ("summarize-fr-plain", "summarise", "summarise"),
        (
            "composition = \"summarize-fr-plain\"\n",
            "",
            "bundle and composition go together",
        ),
        (
            "bundle = \"x.tandem\"\ncomposition = \"summarize-fr-plain\"",
            "prompt = \"{{ input }}\"",
            "the composition has no members",
        ),
        (
            "composition = \"summarize-fr-plain\"",
            "composition = \"summarize-fr-plain\"\nprompt = \"no place\"",
            "has no place for the input",
        ),
        ("data.jsonl", "nothing.jsonl", "nothing.jsonl"),
        ("x.tandem", "data.jsonl", "data.jsonl"),
        (
            "validation = 2",
            "validation = 2\ncontext = 12",
            "line 1: the example has",
        ),
        (
            "rank = 2\n\n[lora]",
            "modules = [\"x_proj\"]\n\n[lora]",
            "no module \"x_proj\"; there are q_proj",
        ),
        (
            "[train]",
            "[output]\nquant = \"q4\"\n[train]",
            "in f16 or f32",
        ),
    ] {
        assert!(recipe.contains(from), "{from}");
        work.write_recipe(&recipe.replacen(from, to, 1));
        fails(&[], what);
    }
    work.write_recipe(&recipe);
    fails(
        &["--lr", "1e30"],
        "the loss is no finite number any more in step 2 (lines ",
    );
    fails(&["--kind", "magic"], "no calibration \"magic\"");
    fails(&["--rank", "0"], "the rank must be from 1");
    fails(&["--batch", "65537"], "batch must be at most 65536");
    let out = work.path("a.safetensors");
    let out = out.to_str().unwrap();
    fails(
        &["--checkpoint", out],
        "cannot be both the checkpoint and a result",
    );
    let folder = out.trim_end_matches("/a.safetensors");
    fails(&["--curve", folder], "is a folder");
    // The last step may go too far where nothing validates it.
    work.write_recipe(&recipe.replace("validation = 2", "validation = 0"));
    fails(&["--steps", "1", "--lr", "1e300"], "not finite");
    work.write_recipe(&recipe);
    let nowhere = work.path("no/where.svg");
    fails(
        &["--curve", nowhere.to_str().unwrap()],
        "no folder to write",
    );

    let good = String::from_utf8(work.bytes("data.jsonl")).unwrap();
    for (line, what) in [
        (
            "{\"input\": \"a\"}",
            "line 3: no object with texts `input` and `target`: missing field `target`",
        ),
        (
            "{\"target\": \"a\"}",
            "line 3: no object with texts `input` and `target`: missing field `input`",
        ),
        (
            "{\"input\": 1, \"target\": \"a\"}",
            "line 3: no object with texts",
        ),
        (
            "{\"input\": \"a\", \"target\": \" \"}",
            "line 3: the target is empty",
        ),
        (
            "{\"input\": \"\", \"target\": \"a\"}",
            "line 3: the input is empty",
        ),
        ("nonsense", "line 3: no object with texts"),
    ] {
        let mut lines: Vec<&str> = good.lines().collect();
        lines.insert(2, line);
        fs::write(work.path("data.jsonl"), lines.join("\n")).unwrap();
        fails(&[], what);
    }
    fs::write(work.path("data.jsonl"), "\n\n").unwrap();
    fails(&[], "has no examples");

    // Long lines are left out where that is asked for.
    fs::write(work.path("data.jsonl"), &good).unwrap();
    let text = recipe.replace(
        "validation = 2",
        "validation = 2\ncontext = 20\ntoo_long = \"skip\"",
    );
    work.write_recipe(&text);
    let run = work.calibrate("b.safetensors", &["--steps", "1"]).ok();
    assert!(
        run.stderr
            .contains("are longer than 20 tokens and left out"),
        "{}",
        run.stderr
    );

    // An adapter is a folder.
    work.write_recipe(&recipe);
    tandem!(
        "train-lora",
        work.path("recipe.toml"),
        "--out",
        work.path("a.safetensors")
    )
    .fails(1, "an adapter is a folder");
    assert_eq!(work.bytes("a.safetensors"), b"precious");
}
