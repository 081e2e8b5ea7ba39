//! `tandem run`: text in, text out.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tandem_engine::tokenizer::ControlTokens;
use tandem_engine::{Sampler, generate};

use crate::adapters::Parts;
use crate::args::{ModelArgs, SamplerArgs};
use crate::progress::prefill;
use crate::{open, prompt};

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
    #[arg(long)]
    raw: bool,
    /// The most tokens to generate
    #[arg(long, short, value_name = "N", default_value_t = 256)]
    n_predict: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
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
    n_generated: usize,
    /// Milliseconds from the start of the command to the first token.
    first_token_ms: f64,
    /// Of these, milliseconds to open the model and read the prompt.
    open_ms: f64,
    prompt_tokens_per_second: f64,
    /// Null where fewer than two tokens were generated.
    generated_tokens_per_second: Option<f64>,
    stop: &'static str,
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => open::bytes(path)?,
        (None, None) => Vec::new(),
    };
    let path = &args.model.model;
    let files = open::files(path)?;
    let gguf = files.parse()?;
    let model = open::model(path, &gguf)?;
    let tokenizer = open::tokenizer(path, &gguf)?;
    let vocab = tokenizer.vocab();
    let pool = args.model.session.pool();
    let chosen = args.model.bundle.open()?;
    let parts = Parts::load(
        &args.model.adapters,
        chosen.as_ref(),
        &args.model.session,
        &pool,
        &gguf,
        &model,
    )?;
    let prompt = match &parts.prompt {
        Some(form) if !args.raw => prompt::fill(&tokenizer, form, &text)?,
        _ => prompt::encode(&gguf, &tokenizer, &text, args.raw)?,
    };
    ensure!(!prompt.is_empty(), "the prompt is empty");
    let composition = parts.composition(&model.config)?;
    let composition = composition.as_ref();
    let mut session = args
        .model
        .session
        .session(&model, &pool, composition, None)?;
    let options = args.sampler.options();
    let mut sampler = Sampler::new(options, model.config.n_vocab);

    let opened = start.elapsed();
    let (mut first, mut last) = (opened, opened);
    let mut decoder = vocab.stream_continuation(ControlTokens::Hide);
    let mut out = std::io::stdout().lock();
    let (mut text, mut ids) = (String::new(), Vec::new());
    let mut failure = None;
    let mut emit = |piece: &str| -> Result<()> {
        text.push_str(piece);
        if !args.json && !piece.is_empty() {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    };
    let is_end = |id| vocab.is_end_of_generation(id);
    let rest = prefill(&mut session, &prompt, args.model.session.batch.get())?;
    let stop = generate(
        &mut session,
        &mut sampler,
        rest,
        args.n_predict,
        is_end,
        |id| {
            last = start.elapsed();
            if ids.is_empty() {
                first = last;
            }
            ids.push(id);
            let piece = decoder.push(id).map_err(anyhow::Error::from);
            match piece.and_then(&mut emit) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        },
    )
    .context("cannot evaluate the prompt")?;
    if let Some(error) = failure {
        return Err(error);
    }
    emit(decoder.finish())?;
    if ids.is_empty() {
        first = start.elapsed();
    }

    let report = Report {
        n_prompt: prompt.len(),
        n_generated: ids.len(),
        first_token_ms: millis(first),
        open_ms: millis(opened),
        prompt_tokens_per_second: prompt.len() as f64 / (first - opened).as_secs_f64(),
        generated_tokens_per_second: (ids.len() > 1)
            .then(|| (ids.len() - 1) as f64 / (last - first).as_secs_f64()),
        stop: stop.name(),
        seed: options.seed,
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
    Ok(())
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
        tell!("{n} tokens generated{speed}; stopped: {stop}; seed {seed}");
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
