//! The work behind the command `tandem`, one file a subcommand: [`command`] is the command itself, the modules
//! are what other programs, as the Python package, share with it.

/// `eprintln!`, but a standard error that nobody reads is no reason to panic.
macro_rules! tell {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod adapters;
mod args;
mod bandwidth;
mod bench;
pub mod bundle;
#[cfg(feature = "calls")]
pub mod calls;
mod chat;
mod completions;
#[cfg(feature = "cross")]
mod cross;
mod dataset;
mod demo;
mod doctor;
mod eval;
mod greedy;
mod inspect;
mod logits;
mod mapped;
mod merge;
mod open;
pub mod perplexity;
mod progress;
pub mod quantize;
mod recipe;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod synth;
mod tokenize;
#[cfg(feature = "train")]
pub mod train;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

/// Run language models on small machines.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Chat(chat::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    Logits(logits::Args),
    Tokenize(tokenize::TokenizeArgs),
    Detokenize(tokenize::DetokenizeArgs),
    Inspect(inspect::Args),
    Bundle(bundle::Args),
    Quantize(quantize::Args),
    Merge(merge::Args),
    Synth(synth::Args),
    Bench(bench::Args),
    Perplexity(perplexity::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    #[cfg(feature = "cross")]
    Cross(cross::Args),
    Eval(eval::Args),
    #[cfg(feature = "train")]
    Calibrate(train::CalibrateArgs),
    #[cfg(feature = "train")]
    TrainLora(train::TrainLoraArgs),
}

/// The command, with the arguments of this process.
pub fn command() -> ExitCode {
    mapped::tell_of_lost_pages();
    let result = match parse().command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::serve(&args),
        Command::Logits(args) => logits::logits(&args),
        Command::Tokenize(args) => tokenize::tokenize(&args),
        Command::Detokenize(args) => tokenize::detokenize(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Bundle(args) => bundle::bundle(&args),
        Command::Quantize(args) => quantize::quantize_command(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Synth(args) => synth::synth(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Perplexity(args) => perplexity::perplexity_command(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions(args) => completions::completions(&args),
        #[cfg(feature = "cross")]
        Command::Cross(args) => cross::cross(&args),
        Command::Eval(args) => eval::eval(&args),
        #[cfg(feature = "train")]
        Command::Calibrate(args) => train::calibrate_command(&args),
        #[cfg(feature = "train")]
        Command::TrainLora(args) => train::train_lora_command(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {}", visible(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// The command line; where it makes no sense the process ends.
fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        let wants_prompt = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => {
                error.kind() == ErrorKind::MissingRequiredArgument
                    && missing.iter().any(|flag| flag.starts_with("--prompt"))
            }
            _ => false,
        };
        if wants_prompt && !io::stdin().is_terminal() {
            tell!("hint: --prompt-file - takes the prompt from standard input");
        }
        std::process::exit(error.exit_code())
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Text that may hold names from a file, with what could move a terminal's cursor or turn the
/// direction of writing made visible.
fn visible(text: &str) -> String {
    let is_harmless = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        !c.is_control() && !turns
    };
    text.chars()
        .map(|c| match is_harmless(c) {
            true => c.to_string(),
            false => c.escape_default().to_string(),
        })
        .collect()
}
