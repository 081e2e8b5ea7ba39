//! `tandem bundle`: made, shown, checked, changed, taken apart.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, shared, tandem};
use serde_json::Value as Json;
use tandem_formats::Gguf;
use tandem_formats::adapter::{Lora, lora_gguf};
use tandem_formats::bundle::Bundle;

/// The three adapters and four calibrations of the trained model, in a bundle for its Q8_0 form.
/// `None` where they are not at hand.
fn pocket(folder: &Path) -> Option<PathBuf> {
    let trained = shared("models/pocket")?;
    let base = fixture("pocket-q8_0.gguf");
    let mut recipe = format!("[bundle]\nname = \"pocket\"\nbase = {base:?}\n");
    for name in ["summarize", "translate-fr", "translate-de"] {
        let path = trained.join("adapters").join(name);
        recipe += &format!("[[adapter]]\nname = \"{name}\"\npath = {path:?}\n");
    }
    for language in ["fr", "de"] {
        for (suffix, kind) in [("lc", "output_bias"), ("lcpp", "low_rank")] {
            let path = trained.join(format!("calibration-sum-{language}-{suffix}.safetensors"));
            recipe += &format!(
                "[[composition]]\nname = \"sum-{language}-{suffix}\"\n\
                 adapters = [{{ name = \"summarize\", weight = 0.5 }}, {{ name = \"translate-{language}\", weight = 0.5 }}]\n\
                 calibration = {{ kind = \"{kind}\", path = {path:?} }}\n\
                 prompt = \"{{{{ input }}}}\\n=> \"\n"
            );
        }
    }
    let recipe_path = folder.join("pocket.toml");
    fs::write(&recipe_path, recipe).unwrap();
    let out = folder.join("pocket.tandem");
    tandem!("bundle", "create", recipe_path, "--out", out).ok();
    Some(out)
}

fn inspect(path: &Path) -> Json {
    tandem!("bundle", "inspect", path, "--json").ok().json()
}

fn names(list: &Json) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|x| x["name"].as_str().unwrap()).collect()
}

#[test]
fn create_inspect_and_verify() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = pocket(folder.path()) else {
        return;
    };
    let report = inspect(&path);
    assert!(report["bytes"].as_u64().unwrap() <= 2_500_000);
    assert_eq!(
        names(&report["adapters"]),
        ["summarize", "translate-fr", "translate-de"]
    );
    assert_eq!(report["calibrations"][1]["parameters"], 19_456);
    assert_eq!(
        report["compositions"][1]["calibration"],
        "calibration-sum-fr-lcpp"
    );
    assert_eq!(
        report["adapters"][0]["factors"].as_array().unwrap().len(),
        42
    );
    let text = tandem!("bundle", "inspect", path).ok().text();
    assert!(
        text.contains("cat (0.5 x summarize + 0.5 x translate-de)"),
        "{text}"
    );

    let base = fixture("pocket-q8_0.gguf");
    let run = tandem!("bundle", "verify", path, "--base", base).ok();
    assert!(
        run.stderr.contains("the base it was made with"),
        "{}",
        run.stderr
    );
    if let Some(f32) = shared("models/pocket/base-f32.gguf") {
        let run = tandem!("bundle", "verify", path, "--base", f32).ok();
        assert!(
            run.stderr.contains("another quantization"),
            "{}",
            run.stderr
        );
    }
    if let Some(other) = shared("peer/logits/llama-f16.gguf") {
        tandem!("bundle", "verify", path, "--base", other).fails(1, "another base model");
    }
}

/// The demo's bundle is what its recipe makes.
#[test]
fn the_fixture_is_made_by_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    if shared("models/pocket").is_none() {
        return;
    }
    let out = folder.path().join("pocket.tandem");
    tandem!("bundle", "create", fixture("pocket.toml"), "--out", out).ok();
    let made = fs::read(&out).unwrap();
    assert!(made == fs::read(fixture("pocket.tandem")).unwrap());
    assert!(made.len() <= 2_500_000);
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = pocket(folder.path()) else {
        return;
    };
    let whole = fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged.tandem");
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    tandem!("bundle", "verify", damaged).fails(1, "adapter \"translate-fr\" is damaged");
    tandem!("bundle", "remove", damaged, "--composition", "sum-fr-lc").fails(1, "is damaged");
    let out = folder.path().join("out.gguf");
    tandem!(
        "bundle",
        "extract",
        damaged,
        "--adapter",
        "translate-fr",
        "--out",
        out
    )
    .fails(1, "is damaged");
    assert_eq!(
        fs::read(&damaged).unwrap(),
        bytes,
        "a refused change changes nothing"
    );

    fs::write(&damaged, &whole[..whole.len() - 1000]).unwrap();
    tandem!("bundle", "inspect", damaged).fails(1, "tensor data");
    bytes.clone_from(&whole);
    bytes[100] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    tandem!("bundle", "inspect", damaged).fails(1, "cannot use");
    tandem!("bundle", "inspect", fixture("pocket-q8_0.gguf")).fails(1, "not an adapter bundle");
    tandem!("bundle", "inspect", folder.path().join("none")).fails(1, "cannot open");
}

fn loras(path: &Path) -> Vec<Lora> {
    let bytes = fs::read(path).unwrap();
    lora_gguf::read(&Gguf::parse(&bytes).unwrap()).unwrap().1
}

#[test]
fn an_extracted_adapter_is_the_one_that_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = pocket(folder.path()) else {
        return;
    };
    let out = folder.path().join("fr.gguf");
    tandem!(
        "bundle",
        "extract",
        path,
        "--adapter",
        "translate-fr",
        "--out",
        out
    )
    .ok();
    tandem!(
        "bundle",
        "extract",
        path,
        "--adapter",
        "english",
        "--out",
        out
    )
    .fails(
        1,
        "no adapter \"english\" in the bundle; it has summarize, translate-fr, translate-de",
    );
    let extracted = loras(&out);
    let bytes = fs::read(&path).unwrap();
    let bundle = Bundle::parse(bytes.clone()).unwrap();
    let (stored, _) = bundle.adapter("translate-fr").unwrap();
    assert_eq!(extracted.len(), stored.factors.len());
    for lora in &extracted {
        let f = stored
            .factors
            .iter()
            .find(|f| f.linear == lora.module)
            .unwrap();
        let (a, b) = f.values(stored.dtype).unwrap();
        assert_eq!(
            (&lora.a.values, &lora.b.values, lora.scale),
            (&a, &b, f.scale)
        );
    }

    // Back into another bundle in float32, and out again: the same bytes.
    let recipe = folder.path().join("again.toml");
    let text = format!(
        "[bundle]\nname = \"again\"\nbase = {:?}\n[[adapter]]\nname = \"translate-fr\"\npath = \"fr.gguf\"\nquant = \"f32\"\n",
        fixture("pocket-q8_0.gguf")
    );
    fs::write(&recipe, text).unwrap();
    let again = folder.path().join("again.tandem");
    tandem!("bundle", "create", recipe, "--out", again).ok();
    let twice = folder.path().join("twice.gguf");
    tandem!(
        "bundle",
        "extract",
        again,
        "--adapter",
        "translate-fr",
        "--out",
        twice
    )
    .ok();
    assert_eq!(fs::read(&out).unwrap(), fs::read(&twice).unwrap());
}

/// What is stored is near what was trained: int8 within half a step of each row's largest value.
#[test]
fn rounding_is_that_of_the_type() {
    let folder = tempfile::tempdir().unwrap();
    let Some(trained) = shared("models/pocket/adapters/summarize") else {
        return;
    };
    let mut exact = Vec::new();
    for (quant, bound) in [("f32", 0.0), ("f16", 1e-3), ("q8_0", 0.01), ("q4_0", 0.12)] {
        let recipe = folder.path().join("one.toml");
        let text = format!(
            "[bundle]\nname = \"one\"\nbase = {:?}\n[[adapter]]\nname = \"a\"\npath = {trained:?}\nquant = \"{quant}\"\n",
            fixture("pocket-q8_0.gguf")
        );
        fs::write(&recipe, text).unwrap();
        let path = folder.path().join("one.tandem");
        tandem!("bundle", "create", recipe, "--out", path).ok();
        let out = folder.path().join("one.gguf");
        tandem!("bundle", "extract", path, "--adapter", "a", "--out", out).ok();
        let found = loras(&out);
        if quant == "f32" {
            exact = found.clone();
        }
        for (found, exact) in found.iter().zip(&exact) {
            for (found, exact) in [(&found.a, &exact.a), (&found.b, &exact.b)] {
                let square = |x: f32| f64::from(x) * f64::from(x);
                let pairs = found.values.iter().zip(&exact.values);
                let error: f64 = pairs.map(|(a, b)| square(a - b)).sum();
                let norm: f64 = exact.values.iter().map(|x| square(*x)).sum();
                let relative = (error / norm).sqrt();
                assert!(relative <= bound, "{quant}: {relative}");
            }
        }
    }
}

#[test]
fn add_and_remove() {
    let folder = tempfile::tempdir().unwrap();
    let (Some(path), Some(trained)) = (pocket(folder.path()), shared("models/pocket")) else {
        return;
    };
    let original = fs::read(&path).unwrap();
    let remove = |flags: &[&str]| {
        let mut args: Vec<&std::ffi::OsStr> =
            vec!["bundle".as_ref(), "remove".as_ref(), path.as_ref()];
        args.extend(flags.iter().map(std::ffi::OsStr::new));
        common::run(&args, b"")
    };
    remove(&["--adapter", "translate-de"])
        .fails(1, "is used by sum-de-lc, sum-de-lcpp: remove these, too");
    remove(&["--composition", "sum-es"]).fails(1, "no composition \"sum-es\"");
    remove(&[]).fails(2, "--adapter");
    assert_eq!(fs::read(&path).unwrap(), original);

    remove(&[
        "--adapter",
        "translate-de",
        "--composition",
        "sum-de-lc",
        "--composition",
        "sum-de-lcpp",
    ])
    .ok();
    let report = inspect(&path);
    assert_eq!(names(&report["adapters"]), ["summarize", "translate-fr"]);
    assert_eq!(names(&report["compositions"]), ["sum-fr-lc", "sum-fr-lcpp"]);
    // Calibrations without a composition are gone, too.
    assert_eq!(
        names(&report["calibrations"]),
        ["calibration-sum-fr-lc", "calibration-sum-fr-lcpp"]
    );
    tandem!(
        "bundle",
        "verify",
        path,
        "--base",
        fixture("pocket-q8_0.gguf")
    )
    .ok();

    let recipe = folder.path().join("more.toml");
    let base = fixture("pocket-q8_0.gguf");
    let german = trained.join("adapters/translate-de");
    let write = |merge: &str| {
        let text = format!(
            "[bundle]\nbase = {base:?}\n[[adapter]]\nname = \"translate-de\"\npath = {german:?}\nquant = \"q4_0\"\n\
             [[composition]]\nname = \"both\"\nadapters = [{{ name = \"summarize\" }}, {{ name = \"translate-de\" }}]\n{merge}\n"
        );
        fs::write(&recipe, text).unwrap();
    };
    write("merge = \"ties_svd\"\ndensity = 0.5");
    tandem!("bundle", "add", path, recipe).fails(1, "rank is missing");
    write("merge = \"lerp\"");
    tandem!("bundle", "add", path, recipe).fails(1, "no merge \"lerp\"");
    write("merge = \"ties\"\ndensity = 0.5\nready_made = true\nquant = \"f16\"");
    tandem!("bundle", "add", path, recipe).ok();
    let report = inspect(&path);
    assert_eq!(report["adapters"][2]["type"], "Q4_0");
    assert_eq!(report["compositions"][2]["merged"]["type"], "F16");
    assert_eq!(
        report["compositions"][2]["merged"]["factors"][0]["rank"],
        16
    );
    tandem!("bundle", "verify", path).ok();
    tandem!("bundle", "add", path, recipe).fails(1, "adapter \"translate-de\" occurs twice");
    remove(&["--adapter", "translate-de"]).fails(1, "is used by both");
}

/// Each of several at once reads what the others wrote, and nothing is lost.
#[test]
fn additions_at_once_are_all_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pocket.tandem");
    fs::copy(fixture("pocket.tandem"), &path).unwrap();
    let base = fixture("pocket-q8_0.gguf");
    let names: Vec<String> = (0..5).map(|i| format!("more-{i}")).collect();
    let mut running = Vec::new();
    for name in &names {
        let recipe = folder.path().join(format!("{name}.toml"));
        let text = format!(
            "[bundle]\nbase = {base:?}\n[[composition]]\nname = {name:?}\nadapters = [{{ name = \"summarize\" }}]\n"
        );
        fs::write(&recipe, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tandem"));
        command.args(["bundle", "add"]).arg(&path).arg(&recipe);
        running.push(command.spawn().unwrap());
    }
    for mut process in running {
        assert!(process.wait().unwrap().success());
    }
    let report = inspect(&path);
    let compositions = report["compositions"].as_array().unwrap();
    for name in names {
        assert!(
            compositions.iter().any(|c| c["name"] == name.as_str()),
            "{name} is lost"
        );
    }
}

#[test]
fn recipes_that_do_not_fit_are_refused_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let out = folder.path().join("out.tandem");
    let base = fixture("pocket-q8_0.gguf");
    for (text, what) in [
        (format!("[bundle]\nbase = {base:?}\n"), "has no name"),
        (
            "[bundle]\nname = \"x\"\nbase = \"none.gguf\"\n".to_string(),
            "cannot open",
        ),
        ("[bundle]\nname = \"x\"\n".to_string(), "has no base"),
        (
            format!("[bundle]\nname = \"x\"\nbase = {base:?}\ncolour = 1\n"),
            "line 4: unknown field `colour`",
        ),
        (
            format!(
                "[bundle]\nname = \"x\"\nbase = {base:?}\n[[adapter]]\nname = \"a\"\npath = \"none\"\n"
            ),
            "adapter \"a\"",
        ),
        (
            format!(
                "[bundle]\nname = \"x\"\nbase = {base:?}\n[[composition]]\nname = \"c\"\nadapters = [{{ name = \"a\" }}]\n"
            ),
            "no adapter \"a\"",
        ),
    ] {
        fs::write(&recipe, text).unwrap();
        tandem!("bundle", "create", recipe, "--out", out).fails(1, what);
        assert!(!out.exists());
    }
}

/// Killed at any moment, a change leaves the old bundle or the new one, whole.
#[test]
fn a_bundle_survives_its_writer_being_killed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = pocket(folder.path()) else {
        return;
    };
    let old = fs::read(&path).unwrap();
    // The same adapters in fewer bits: another size, and other bytes from the header on.
    let text = fs::read_to_string(folder.path().join("pocket.toml")).unwrap();
    let text = text.replace("[[adapter]]\n", "[[adapter]]\nquant = \"q4_0\"\n");
    let recipe = folder.path().join("new.toml");
    fs::write(&recipe, text).unwrap();
    let create = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["bundle".as_ref(), "create".as_ref(), recipe.as_os_str()])
            .args(["--out".as_ref(), path.as_os_str()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let start = std::time::Instant::now();
    assert!(create().wait().unwrap().success());
    // Well beyond the time that it takes, so that some are killed at each point.
    let longest = start.elapsed().mul_f64(1.5);
    let new = fs::read(&path).unwrap();
    assert!(new != old && new.len() != old.len());
    let (mut n_old, mut n_new) = (0, 0);
    for i in 0..60 {
        fs::write(&path, &old).unwrap();
        let delay = longest.mul_f64(f64::from(i) / 60.0);
        let mut child = create();
        std::thread::sleep(delay);
        let _ = child.kill();
        child.wait().unwrap();
        let found = fs::read(&path).unwrap();
        n_old += usize::from(found == old);
        n_new += usize::from(found == new);
        assert!(found == old || found == new, "killed after {delay:?}");
    }
    // Both were seen, or the moments were badly chosen.
    assert!(n_old > 0 && n_new > 0, "{n_old} old, {n_new} new");
}

/// Name and base of a bundle that is added to are its own; calibrations of files of one name stay apart.
#[test]
fn an_addition_needs_no_name_and_no_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pocket.tandem");
    fs::copy(fixture("pocket.tandem"), &path).unwrap();
    let recipe = folder.path().join("more.toml");
    let file = fixture("calibrations/sum-fr-lcpp.safetensors");
    let mut text = String::new();
    for place in ["a", "b"] {
        fs::create_dir(folder.path().join(place)).unwrap();
        fs::copy(&file, folder.path().join(place).join("learned.safetensors")).unwrap();
        text += &format!(
            "[[composition]]\nname = \"{place}\"\nadapters = [{{ name = \"summarize\" }}]\n\
             calibration = {{ kind = \"low_rank\", path = \"{place}/learned.safetensors\" }}\n"
        );
    }
    fs::write(&recipe, text).unwrap();
    tandem!("bundle", "add", path, recipe).fails(1, "name it by --base");
    // Another model beside it is passed over.
    fs::write(folder.path().join("another.gguf"), "GGUF").unwrap();
    fs::copy(
        fixture("pocket-q8_0.gguf"),
        folder.path().join("pocket.gguf"),
    )
    .unwrap();
    let before = fs::read(&path).unwrap();
    tandem!("bundle", "add", path, recipe).ok();
    let report = inspect(&path);
    let calibrations = names(&report["calibrations"]);
    assert!(
        calibrations.ends_with(&["learned", "learned-2"]),
        "{calibrations:?}"
    );
    // The same file is one calibration, whether both compositions name it or one does, in either order.
    for (a, b) in [
        ("", "name = \"mine\", "),
        ("name = \"mine\", ", ""),
        ("", ""),
    ] {
        fs::write(&path, &before).unwrap();
        let composition = |name: &str, stated: &str| {
            format!(
                "[[composition]]\nname = \"{name}\"\nadapters = [{{ name = \"summarize\" }}]\n\
                 calibration = {{ {stated}kind = \"low_rank\", path = \"a/learned.safetensors\" }}\n"
            )
        };
        let text = composition("a", a) + &composition("b", b);
        let recipe = folder.path().join("same.toml");
        fs::write(&recipe, text).unwrap();
        tandem!("bundle", "add", path, recipe).ok();
        let report = inspect(&path);
        let name = if a == b { "learned" } else { "mine" };
        assert_eq!(names(&report["calibrations"])[4..], [name]);
    }
    fs::write(&path, before).unwrap();
    fs::remove_file(folder.path().join("pocket.gguf")).unwrap();
    let base = fixture("pocket-q8_0.gguf");
    tandem!("bundle", "add", path, recipe, "--base", base).ok();
    // A new one must have both.
    let out = folder.path().join("new.tandem");
    tandem!("bundle", "create", recipe, "--out", out).fails(1, "[bundle] has no name");
}
