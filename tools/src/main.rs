//! `tandem`: the command of the Tandem inference engine. One file a subcommand.

/// `eprintln!`, but a standard error that nobody reads is no reason to panic.
macro_rules! tell {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod args;
mod bench;
mod chat;
mod demo;
mod inspect;
mod logits;
mod open;
mod perplexity;
mod progress;
mod prompt;
mod quantize;
mod run;
mod synth;
mod tokenize;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run a base model and its LoRA adapters on small machines.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the engine at work on the small model that the repository carries
    Demo(demo::Args),
    /// Continue or answer a prompt
    Run(run::Args),
    /// Talk with a model
    Chat(chat::Args),
    /// Write the logits at every position of a sequence of token ids
    Logits(logits::Args),
    /// Turn text into token ids
    Tokenize(tokenize::TokenizeArgs),
    /// Turn token ids into text
    Detokenize(tokenize::DetokenizeArgs),
    /// Show what is in a GGUF file and what memory it will need
    Inspect(inspect::Args),
    /// Store a model's weights in another type
    Quantize(quantize::Args),
    /// Write a model of random weights, for timing
    Synth(synth::Args),
    /// Measure how fast a model runs
    Bench(bench::Args),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Logits(args) => logits::logits(&args),
        Command::Tokenize(args) => tokenize::tokenize(&args),
        Command::Detokenize(args) => tokenize::detokenize(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Quantize(args) => quantize::quantize(&args),
        Command::Synth(args) => synth::synth(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Perplexity(args) => perplexity::perplexity(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
