//! `tandem demo`: the engine at work on the model and the adapters that the repository carries.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tandem_engine::chat::fill;
use tandem_engine::{AdapterType, Compute, Session, SessionOptions, SharedPool, threads};

use crate::adapters::bundle_for;
use crate::args::CpuArgs;
use crate::{greedy, open};

/// Show two tasks at once on the small model that the repository carries
///
/// The input is the description of a software package, and what is wanted one line of French or
/// German that says what the package is: a summary and a translation at once. Shown are what the
/// model says alone, with the adapters of both tasks, and with these and the calibration that was
/// learned for the two.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with the model and its bundle [default: the repository's]
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Describe this instead of the inputs that come with the demo
    #[arg(long, value_name = "TEXT")]
    input: Option<String>,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Descriptions of packages, written for the demo.
const INPUTS: [&str; 3] = [
    "This package contains the documentation of the library in HTML format, with a reference of \
     all functions and a tutorial for beginners.",
    "This package contains the files that are needed to develop programs which use the library \
     to read and write compressed images.",
    "This package provides a plugin for the desktop environment that shows the weather in the \
     panel.",
];

/// The lines of an answer: what they are called, and the composition.
const LINES: [(&str, Option<&str>); 5] = [
    ("model alone", None),
    ("French, adapters only", Some("summarize-fr-plain")),
    ("French, calibrated", Some("summarize-fr")),
    ("German, adapters only", Some("summarize-de-plain")),
    ("German, calibrated", Some("summarize-de")),
];

/// The most tokens of an answer.
const MAX_TOKENS: usize = 32;

/// How the model is asked, with adapters or without.
const PROMPT: &str = "{{ input }}\n=> ";

pub(crate) fn demo(args: &Args) -> Result<()> {
    let folder = fixtures(args.fixtures.as_deref())?;
    let (path, bundle_path) = (
        folder.join("pocket-q8_0.gguf"),
        folder.join("pocket.tandem"),
    );
    let start = Instant::now();
    let model = open::model(&path)?;
    let tokenizer = open::tokenizer(&path, &model)?;
    let bundle = bundle_for(&bundle_path, &model)?;
    let adapter_type = AdapterType::for_model(&model, false);
    let pool = SharedPool::from(threads::all());
    let level = args.cpu.level();
    let mut compositions = Vec::new();
    for (label, name) in LINES {
        let compute = Compute::new(level, pool.get());
        let compose = |name| bundle.composition_as(name, adapter_type, compute);
        compositions.push((label, name.map(compose).transpose()?));
    }
    let mut options = SessionOptions::for_model(model.config());
    options.level = level;
    let mut session = Session::new(&model, &pool, options)?;
    let opened = start.elapsed();

    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "A model of 5.8 million parameters with three adapters, opened in {opened:.0?}."
    )?;
    let (mut n_tokens, start) = (0, Instant::now());
    let inputs: Vec<_> = match &args.input {
        Some(input) => vec![input.as_str()],
        None => INPUTS.to_vec(),
    };
    for input in inputs {
        writeln!(out, "\n{input}")?;
        let ids = fill(tokenizer, PROMPT, input.as_bytes())?;
        for (label, composition) in &compositions {
            write!(out, "  {label:<22} ")?;
            out.flush()?;
            session.set_composition(composition.as_ref())?;
            let (text, n) = greedy::answer(&mut session, &ids, MAX_TOKENS)?;
            writeln!(out, "{}", crate::visible(&text))?;
            n_tokens += n;
        }
    }
    writeln!(
        out,
        "\n{n_tokens} tokens, {:.0} a second.",
        n_tokens as f64 / start.elapsed().as_secs_f64()
    )?;
    Ok(())
}

/// The folder of the fixtures: as given, in the current folder, or where this was built.
fn fixtures(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = given {
        return Ok(folder.to_path_buf());
    }
    let here = Path::new("fixtures").to_path_buf();
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    [here, built]
        .into_iter()
        .find(|folder| folder.join("pocket-q8_0.gguf").is_file())
        .context("the demo's model is not here: run it in the repository or name its folder by --fixtures")
}
