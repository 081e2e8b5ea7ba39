//! `tandem run`: text in, text out.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
#[cfg(feature = "serve")]
use tandem_engine::constraint::Constraint;
use tandem_engine::{Message, Model, Prompt, Sequence, Session, StopReason};

use tandem_formats::write_atomically;

use crate::args::{ChatArgs, ModelArgs, SamplerArgs};
use crate::open;
use crate::progress::prefill;

/// Continue or answer a prompt
///
/// The text is streamed to standard output, the timings go to standard error.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt
    #[arg(
        long,
        short,
        value_name = "TEXT",
        required_unless_present = "prompt_file"
    )]
    prompt: Option<String>,
    /// Read the prompt from a file, byte for byte; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Take the prompt as it is instead of as the input of the composition's prompt, or as a user's
    /// message in the model's chat template
    #[arg(long, conflicts_with_all = ["system", "template_arg"])]
    raw: bool,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Hold the answer to the JSON schema in this file
    #[cfg(feature = "serve")]
    #[arg(long, value_name = "FILE", conflicts_with = "regex")]
    json_schema: Option<PathBuf>,
    /// Hold the answer to this regular expression
    #[cfg(feature = "serve")]
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Keep what was evaluated in this file, and go on from what of the prompt is there: a long beginning is
    /// read once
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
    /// Print one JSON object instead of the text: text, token ids, counts, timings
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    /// The generated text.
    text: String,
    /// The generated ids; an end-of-text token is the last of them.
    ids: Vec<u32>,
    prompt_ids: Vec<u32>,
    n_prompt: usize,
    /// Tokens of the prompt that --prompt-cache had.
    n_cached: usize,
    n_generated: usize,
    /// Milliseconds from the start of the command to the first token.
    first_token_ms: f64,
    /// Of these, milliseconds to open the model and read the prompt.
    open_ms: f64,
    prompt_tokens_per_second: f64,
    /// Null where fewer than two tokens were generated.
    generated_tokens_per_second: Option<f64>,
    /// Tokens guessed ahead, and those of them that came.
    n_drafted: usize,
    n_accepted: usize,
    stop: &'static str,
    /// The one of `--stop` that it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_string: Option<String>,
    seed: u64,
}

/// The most tokens of a text, where the flags do not say.
const MAX_TOKENS: usize = 256;

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => open::bytes(path)?,
        (None, None) => Vec::new(),
    };
    let path = args.model.path();
    let model = args.model.open()?;
    open::tokenizer(path, &model)?;
    let mut session = args.model.session(&model)?;
    let prompt = prompt_ids(args, &mut session, &text)?;
    ensure!(!prompt.is_empty(), "the prompt is empty");
    warn_of_two_bos(&model, &prompt)?;
    let sampling = args.sampler.sampling(MAX_TOKENS);
    #[cfg(feature = "serve")]
    let constraint = constraint(args, &model)?;
    if let Some(path) = &args.prompt_cache {
        restore(&mut session, path)?;
    }

    let opened = start.elapsed();
    let mut out = std::io::stdout().lock();
    let mut text = String::new();
    let mut generation = session
        .generate(&prompt[..], &sampling)
        .map_err(open::with_hint)?;
    #[cfg(feature = "serve")]
    if let Some(constraint) = constraint {
        generation.set_filter(Box::new(constraint));
    }
    let n_cached = prompt.len() - generation.n_left();
    prefill(&mut generation, || false)?;
    for piece in &mut generation {
        let piece = piece?;
        text.push_str(&piece);
        if !args.json {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
    }
    let ids = generation.tokens().to_vec();
    let stop = generation.stop_reason().unwrap_or(StopReason::Cancelled);
    let stop_string = generation.stop_string().map(str::to_string);
    let timings = generation.timings();
    let drafts = generation.draft_counts();
    let first = opened + timings.prompt;
    drop(generation);

    let report = Report {
        n_prompt: prompt.len(),
        n_cached,
        n_generated: ids.len(),
        first_token_ms: millis(first),
        open_ms: millis(opened),
        prompt_tokens_per_second: prompt.len() as f64 / timings.prompt.as_secs_f64(),
        generated_tokens_per_second: (ids.len() > 1)
            .then(|| (ids.len() - 1) as f64 / timings.decode.as_secs_f64()),
        n_drafted: drafts.drafted,
        n_accepted: drafts.accepted,
        stop: stop.name(),
        stop_string,
        seed: sampling.seed,
        prompt_ids: prompt,
        text,
        ids,
    };
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
    }
    if args.json || !report.text.ends_with('\n') {
        writeln!(out)?;
    }
    report.print_timings();
    match &args.prompt_cache {
        // The prompt's last token is evaluated anew each time.
        Some(path) if n_cached + 1 < report.n_prompt => keep(&mut session, path),
        _ => Ok(()),
    }
}

/// What the flags hold the answer to.
#[cfg(feature = "serve")]
fn constraint(args: &Args, model: &Model) -> Result<Option<Constraint>> {
    let grammar = match (&args.json_schema, &args.regex) {
        (Some(path), _) => {
            let name = || format!("cannot use the schema {}", path.display());
            let schema = String::from_utf8(open::bytes(path)?).with_context(name)?;
            model.grammars()?.json_schema(&schema).with_context(name)?
        }
        (None, Some(regex)) => model
            .grammars()?
            .regex(regex)
            .context("cannot use the regular expression")?,
        (None, None) => return Ok(None),
    };
    Ok(Some(grammar.constraint()))
}

/// Takes up what an earlier run kept, if there is something, and it is of use here.
fn restore(session: &mut Session, path: &Path) -> Result<()> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("cannot read {}", path.display())),
    };
    // Nothing else is written over.
    ensure!(
        bytes.is_empty() || bytes.starts_with(Sequence::MARK),
        "{} is no prompt cache",
        path.display()
    );
    if let Err(error) = session.sequence_mut().restore(&bytes) {
        tell!(
            "note: {} is not used, and written anew: {error}",
            path.display()
        );
    }
    Ok(())
}

/// Keeps what was evaluated for later runs.
fn keep(session: &mut Session, path: &Path) -> Result<()> {
    let bytes = session.sequence_mut().save()?;
    let written = write_atomically(path, |file| -> Result<()> { Ok(file.write_all(&bytes)?) });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    // It holds what was said.
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(())
}

/// Says so where a prompt begins with two BOS tokens: that of the text, and the one that is put before it.
fn warn_of_two_bos(model: &Model, prompt: &[u32]) -> Result<()> {
    if let (Some(bos), [first, second, ..]) = (model.tokenizer()?.vocab().bos(), prompt)
        && [*first, *second] == [bos, bos]
    {
        tell!("warning: the prompt begins with two BOS tokens: leave its own out");
    }
    Ok(())
}

/// The prompt's tokens, as the flags want it read.
fn prompt_ids(args: &Args, session: &mut Session, text: &[u8]) -> Result<Vec<u32>> {
    if args.raw {
        return Ok(session.prompt_ids(Prompt::Raw(text))?);
    }
    if !args.chat.need_template() {
        return Ok(session.prompt_ids(Prompt::Input(text))?);
    }
    let text = std::str::from_utf8(text).context("the prompt is not UTF-8")?;
    let system = args.chat.system.as_deref().map(Message::system);
    let messages: Vec<_> = system.into_iter().chain([Message::user(text)]).collect();
    session.set_template_args(args.chat.template_args());
    let ids = session.prompt_ids(&messages[..]);
    ids.context("--system and --template-arg are for the model's chat template")
}

impl Report {
    fn print_timings(&self) {
        tell!(
            "\n{} prompt tokens, {:.1} tokens/s; first token after {:.0} ms ({:.0} ms to open)",
            self.n_prompt,
            self.prompt_tokens_per_second,
            self.first_token_ms,
            self.open_ms
        );
        let speed = self.generated_tokens_per_second;
        let speed = speed.map_or(String::new(), |s| format!(", {s:.1} tokens/s"));
        let (n, stop, seed) = (self.n_generated, self.stop, self.seed);
        let drafts = match self.n_drafted {
            0 => String::new(),
            n_drafted => format!("; {} of {n_drafted} guessed tokens came", self.n_accepted),
        };
        tell!("{n} tokens generated{speed}; stopped: {stop}; seed {seed}{drafts}");
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
