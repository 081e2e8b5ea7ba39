//! `tandem eval`: how well compositions do a task.

mod extra;
mod report;
mod rouge;
mod run;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::ArgGroup;
use tandem_engine::chat::fill;
use tandem_engine::{Bundle, Compute, Config, Model, Serial, SharedPool};
use tandem_formats::bundle::is_prompt;
use tandem_formats::{GgufFiles, write_atomically};

use crate::adapters::{Parts, bundle_for, read_all};
use crate::args::{AdapterArgs, Output, SessionArgs};
use crate::dataset::{self, Example};
use crate::open;
use extra::Extra;
use report::{Report, Row};
use rouge::Tokenizer;
use run::Evaluation;

/// What `--compose` calls the model alone.
const NONE: &str = "none";

/// Measure how well compositions do a task
///
/// Every input of the data is answered by the model, always with the most likely token, and the
/// answer compared with the target by ROUGE-1, -2 and -L (F-measures, in percent, as the Python
/// package rouge-score computes them; in brackets the 95 % interval of the mean over drawings of
/// the examples). Each thread answers examples of its own; the milliseconds are those of one
/// example on one thread.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("rows").args(["compose", "multi_step"]).multiple(true)))]
pub(crate) struct Args {
    /// The model: a GGUF file (of a split model, the first part)
    #[arg(long, short, value_name = "FILE")]
    model: PathBuf,
    /// The examples: a JSON object a line with the texts `input` and `target`
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// Evaluate compositions of this adapter bundle, see `tandem bundle`
    #[arg(long, value_name = "FILE", requires = "rows", conflicts_with_all = ["lora", "calibration"])]
    bundle: Option<PathBuf>,
    /// The compositions, or adapters alone; `none` is the model alone
    #[arg(
        long,
        value_name = "NAME[,NAME..]",
        value_delimiter = ',',
        requires = "bundle"
    )]
    compose: Vec<String>,
    /// Answer with one composition or adapter after the other, each but the first having what the
    /// one before said as its input; may be given several times
    #[arg(long, value_name = "NAME,NAME", value_parser = steps, requires = "bundle")]
    multi_step: Vec<Steps>,
    /// The text to ask with, `{{ input }}` standing for the input [default: the composition's; for
    /// those without, that of the first one that has any; otherwise as `tandem run` asks]
    #[arg(long, value_name = "TEXT", value_parser = template)]
    prompt_template: Option<String>,
    /// Take the first N examples only
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value = "64")]
    max_tokens: NonZeroUsize,
    /// What ROUGE takes for a word
    #[arg(long, value_enum, default_value_t = Tokenizer::Words)]
    tokenizer: Tokenizer,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Md)]
    output: Output,
    /// Write every answer with its scores to this file, a JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    predictions: Option<PathBuf>,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    session: SessionArgs,
}

/// One `--multi-step`.
#[derive(Clone, Debug)]
struct Steps(Vec<String>);

fn steps(text: &str) -> std::result::Result<Steps, String> {
    let names: Vec<String> = text.split(',').map(str::to_string).collect();
    match names.len() > 1 && names.iter().all(|name| !name.is_empty()) {
        true => Ok(Steps(names)),
        false => Err("two names with a comma between them are wanted".to_string()),
    }
}

fn template(text: &str) -> std::result::Result<String, String> {
    match is_prompt(text) {
        true => Ok(text.to_string()),
        false => Err("it must hold {{ input }} and no other {{ }} or {% %}".to_string()),
    }
}

/// Something to answer with: a composition, an adapter, or nothing.
struct Answerer {
    parts: Parts,
    extra: Extra,
}

/// One row of the result: who answers, in steps.
struct Plan {
    name: String,
    /// Names of answerers.
    steps: Vec<String>,
}

pub(crate) fn eval(args: &Args) -> Result<()> {
    let limit = args.limit.map_or(usize::MAX, NonZeroUsize::get);
    let examples = dataset::read(&args.data, limit)?;
    refuse_inputs(args, &open::files(&args.model)?)?;
    let model = open::model(&args.model)?;
    open::tokenizer(&args.model, &model)?;
    let bundle = args.bundle.as_deref().map(|path| bundle_for(path, &model));
    let bundle = bundle.transpose()?;
    let plans = plans(args);
    let pool = args.session.pool();
    let loading = Loading {
        args,
        model: &model,
        bundle: bundle.as_ref(),
        compute: args.session.compute(&pool),
    };
    let answerers = loading.answerers(&plans)?;
    let mut compositions = BTreeMap::new();
    for (name, answerer) in &answerers {
        compositions.insert(*name, answerer.parts.composition(model.linears())?);
    }

    let templates = templates(args, &plans, &answerers);
    let ask = |name: &str, input: &str| {
        let template = templates.get(name).and_then(Option::as_deref);
        ids(&model, template, input)
    };
    let n_longest = check_lengths(args, &plans, &examples, model.config(), ask)?;
    // What the steps but the first are asked is known when they are.
    let n_ctx = match plans.iter().all(|plan| plan.steps.len() == 1) {
        true => Some(n_longest + args.max_tokens.get()),
        false => Some(n_ctx_max(args, model.config())),
    };
    // The pool has no more threads than there are cores.
    let n_threads = args.session.threads().map_or(usize::MAX, NonZeroUsize::get);
    let n_threads = n_threads.min(pool.get().n_threads());
    let n_threads = n_threads.min(plans.len() * examples.len());
    let serial = SharedPool::from(Serial);
    let mut sessions = Vec::new();
    for _ in 0..n_threads {
        let session = &args.session;
        sessions.push(session.session(&model, &serial, None, n_ctx)?);
    }
    let start = Instant::now();
    let evaluation = Evaluation {
        examples: &examples,
        plans: &plans,
        compositions: &compositions,
        max_tokens: args.max_tokens.get(),
        ask: &ask,
    };
    let answers = evaluation.run(sessions)?;
    let seconds = start.elapsed().as_secs_f64();

    let mut rows = Vec::new();
    for (plan, answers) in plans.iter().zip(answers.chunks(examples.len())) {
        let extras = plan.steps.iter().filter_map(|name| answerers.get(&**name));
        let extra = extras.fold(Extra::default(), |sum, a| sum.plus(a.extra));
        rows.push(Row::new(args.tokenizer, plan, &examples, answers, extra));
    }
    let report = Report {
        model: args.model.display().to_string(),
        data: args.data.display().to_string(),
        n_examples: examples.len(),
        tokenizer: args.tokenizer.name(),
        max_tokens: args.max_tokens.get(),
        n_threads,
        seconds,
        rows,
    };
    report.print(args.output)?;
    if let Some(path) = &args.predictions {
        write_atomically(path, |out| report.write_predictions(&examples, out))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Predictions in the place of a file that is read would destroy it.
fn refuse_inputs(args: &Args, model: &GgufFiles) -> Result<()> {
    let Some(Ok(out)) = args.predictions.as_ref().map(|path| path.canonicalize()) else {
        return Ok(());
    };
    let mut inputs: Vec<PathBuf> = model.paths().map(Path::to_path_buf).collect();
    inputs.push(args.data.clone());
    inputs.extend(
        args.bundle
            .iter()
            .chain(&args.adapters.calibration)
            .cloned(),
    );
    for lora in &args.adapters.lora {
        let inside = ["adapter_config.json", "adapter_model.safetensors"];
        inputs.extend(inside.map(|name| lora.path.join(name)));
        inputs.push(lora.path.clone());
    }
    let is_out = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == out);
    ensure!(!inputs.iter().any(is_out), "{} is an input", out.display());
    Ok(())
}

/// The rows that the flags ask for.
fn plans(args: &Args) -> Vec<Plan> {
    if args.bundle.is_none() {
        let n_loras = args.adapters.lora.len();
        let name = match (n_loras, args.adapters.kind) {
            (0, None) => NONE.to_string(),
            (_, None) => "lora".to_string(),
            (_, Some(kind)) => format!("lora with {}", kind.name()),
        };
        let steps = vec![name.clone()];
        return vec![Plan { name, steps }];
    }
    let single = args.compose.iter().map(|name| Plan {
        name: name.clone(),
        steps: vec![name.clone()],
    });
    let multi = args.multi_step.iter().map(|Steps(names)| Plan {
        name: names.join(" -> "),
        steps: names.clone(),
    });
    single.chain(multi).collect()
}

/// What answerers are loaded from.
struct Loading<'a> {
    args: &'a Args,
    model: &'a Model,
    bundle: Option<&'a Bundle>,
    compute: Compute<'a>,
}

impl Loading<'_> {
    /// Loads what the plans name, each once.
    fn answerers<'p>(&self, plans: &'p [Plan]) -> Result<BTreeMap<&'p str, Answerer>> {
        let mut answerers = BTreeMap::new();
        for name in plans.iter().flat_map(|plan| &plan.steps) {
            if !answerers.contains_key(&**name) {
                answerers.insert(&**name, self.answerer(name)?);
            }
        }
        Ok(answerers)
    }

    fn answerer(&self, name: &str) -> Result<Answerer> {
        let (args, base) = (self.args, self.model.linears());
        let adapter_type = args.session.adapter_type(self.model);
        let Some(bundle) = self.bundle else {
            let adapters = read_all(&args.adapters, base)?;
            return Ok(Answerer {
                parts: Parts::new(&args.adapters, base, adapters, adapter_type)?,
                extra: Extra::of_files(&args.adapters)?,
            });
        };
        if name == NONE {
            return Ok(Answerer {
                parts: Parts::default(),
                extra: Extra::default(),
            });
        }
        let contents = bundle.file().contents();
        let is_adapter = contents.composition(name).is_err() && contents.adapter(name).is_ok();
        let parts = match is_adapter {
            true => Parts::of_bundled_adapter(bundle, name),
            false => Parts::of_bundle(bundle, name, adapter_type, self.compute),
        };
        let path = args.bundle.as_deref().unwrap_or(Path::new(""));
        Ok(Answerer {
            parts: parts.with_context(|| format!("cannot use {}", path.display()))?,
            extra: Extra::of_bundle(bundle.file(), name),
        })
    }
}

/// The prompt of each answerer; `None` where nothing says any.
fn templates<'p>(
    args: &Args,
    plans: &'p [Plan],
    answerers: &BTreeMap<&'p str, Answerer>,
) -> BTreeMap<&'p str, Option<String>> {
    let own = |name: &str| answerers.get(name).and_then(|a| a.parts.prompt.clone());
    let mut names = plans.iter().flat_map(|plan| &plan.steps);
    let first = names.find_map(|name| own(name));
    let template = |name: &str| {
        let given = args.prompt_template.clone();
        given.or_else(|| own(name)).or_else(|| first.clone())
    };
    answerers
        .keys()
        .map(|name| (*name, template(name)))
        .collect()
}

/// How an input becomes tokens.
fn ids(model: &Model, template: Option<&str>, input: &str) -> Result<Vec<u32>> {
    let ids = match template {
        Some(template) => fill(model.tokenizer()?, template, input.as_bytes())?,
        None => model.prompt_ids(input)?,
    };
    ensure!(!ids.is_empty(), "the prompt is empty");
    Ok(ids)
}

/// The most tokens that prompt and answer may have.
fn n_ctx_max(args: &Args, base: &Config) -> usize {
    let given = args.session.ctx.map(NonZeroUsize::get);
    given.unwrap_or(base.n_ctx_train)
}

/// Checks before anything runs that every example fits the context; returns the tokens of the
/// longest prompt.
fn check_lengths(
    args: &Args,
    plans: &[Plan],
    examples: &[Example],
    base: &Config,
    ask: impl Fn(&str, &str) -> Result<Vec<u32>>,
) -> Result<usize> {
    let (n_max, n_answer) = (n_ctx_max(args, base), args.max_tokens.get());
    let mut n_longest = 0;
    for example in examples {
        for name in plans.iter().filter_map(|plan| plan.steps.first()) {
            let n_prompt = ask(name, &example.input)?.len();
            ensure!(
                n_prompt.saturating_add(n_answer) <= n_max,
                "{}, line {}: {n_prompt} tokens of prompt and up to {n_answer} of the answer do not \
                 fit the context of {n_max}: shorten the input or change --max-tokens or --ctx",
                args.data.display(),
                example.line
            );
            n_longest = n_longest.max(n_prompt);
        }
    }
    Ok(n_longest)
}
