//! `tandem demo`: the engine at work on the model that the repository carries.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions};
use tandem_engine::{Sampler, SamplerOptions, Session, SessionOptions, ThreadPool, generate};

use crate::open;

/// Show the engine at work on the small model that the repository carries
///
/// The model was trained on Debian's package descriptions and continues each input as such a
/// description would go on.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with the model [default: the repository's]
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Describe this instead of the inputs that come with the demo
    #[arg(long, value_name = "TEXT")]
    input: Option<String>,
}

/// Beginnings of package descriptions, written for the demo.
const INPUTS: [&str; 3] = [
    "This package provides a small library for reading and writing",
    "A command line tool that converts images",
    "Python module to",
];

pub(crate) fn demo(args: &Args) -> Result<()> {
    let path = fixtures(args.fixtures.as_deref())?.join("pocket-q8_0.gguf");
    let start = Instant::now();
    let files = open::files(&path)?;
    let gguf = files.parse()?;
    let model = open::model(&path, &gguf)?;
    let tokenizer = open::tokenizer(&path, &gguf)?;
    let vocab = tokenizer.vocab();
    let pool = ThreadPool::new(std::thread::available_parallelism().map_or(1, usize::from));
    let mut session = Session::new(&model, &pool, SessionOptions::for_model(&model.config))?;
    let opened = start.elapsed();

    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "A model of 5.8 million parameters ({}), opened in {opened:.0?}.",
        path.display()
    )?;
    let (mut n_tokens, start) = (0, Instant::now());
    let inputs: Vec<_> = match &args.input {
        Some(input) => vec![input.as_str()],
        None => INPUTS.to_vec(),
    };
    for input in inputs {
        write!(out, "\n{input}")?;
        out.flush()?;
        let options = EncodeOptions {
            add_special: true,
            parse_special: false,
        };
        let ids = tokenizer.encode(input, options)?;
        session.truncate(0);
        let mut sampler = Sampler::new(
            SamplerOptions {
                repeat_penalty: 1.3,
                ..SamplerOptions::default()
            },
            model.config.n_vocab,
        );
        let mut decoder = vocab.stream_continuation(ControlTokens::Hide);
        let mut failure = None;
        write!(out, " [...]")?;
        generate(
            &mut session,
            &mut sampler,
            &ids,
            40,
            |id| vocab.is_end_of_generation(id),
            |id| {
                n_tokens += 1;
                let written = decoder
                    .push(id)
                    .map_err(anyhow::Error::from)
                    .and_then(|piece| Ok(out.write_all(piece.as_bytes())?));
                match written {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failure = Some(error);
                        ControlFlow::Break(())
                    }
                }
            },
        )?;
        if let Some(error) = failure {
            return Err(error);
        }
        writeln!(out, "{}", decoder.finish())?;
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
