//! `tandem bundle`: adapters, compositions and calibrations for one base model in one file.

mod create;
mod extract;
mod inspect;
mod pack;
mod remove;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use tandem_formats::bundle::{BaseMatch, Bundle, Contents};
use tandem_formats::{Mapping, write_atomically};

pub(crate) use inspect::{n_parameters, section_bytes};

use crate::open;
#[cfg(feature = "train")]
pub(crate) use create::{merge_now, method};
#[cfg(feature = "train")]
pub(crate) use pack::corrections;

/// Make, show, check and change adapter bundles
///
/// A bundle holds LoRA adapters for one base model, the compositions they are used in, and learned
/// calibrations of these.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::CreateArgs),
    Inspect(inspect::Args),
    Verify(VerifyArgs),
    Extract(extract::Args),
    Add(create::AddArgs),
    Remove(remove::Args),
}

pub(crate) fn bundle(args: &Args) -> Result<()> {
    match &args.command {
        Command::Create(args) => create::create(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Verify(args) => verify(args),
        Command::Extract(args) => extract::extract(args),
        Command::Add(args) => create::add(args),
        Command::Remove(args) => remove::remove(args),
    }
}

/// Maps and reads a bundle.
pub(crate) fn open_file(path: &Path) -> Result<Bundle> {
    let mapping = Mapping::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Bundle::parse(mapping.into_bytes()).with_context(|| format!("cannot use {}", path.display()))
}

/// Keeps others from changing a bundle between our reading and writing it, until the file is dropped: the
/// folder is locked, as the bundle itself is replaced.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let path = path.canonicalize();
    let path = path
        .as_deref()
        .ok()
        .and_then(Path::parent)
        .unwrap_or(Path::new("."));
    let folder = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match folder.try_lock() {
        Ok(()) => return Ok(folder),
        Err(TryLockError::WouldBlock) => tell!("another process changes a bundle here: waiting"),
        // Not every file system can.
        Err(TryLockError::Error(_)) => return Ok(folder),
    }
    folder
        .lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(folder)
}

/// Replaces a bundle by another.
pub(crate) fn write(path: &Path, contents: &Contents) -> Result<()> {
    write_atomically(path, |out| contents.write_to(out))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Check every byte of a bundle, and whether it is for a model
#[derive(clap::Args)]
struct VerifyArgs {
    /// The bundle
    file: PathBuf,
    /// The base model: a GGUF file (of a split model, the first part)
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
}

fn verify(args: &VerifyArgs) -> Result<()> {
    let bundle = open_file(&args.file)?;
    let refused = || format!("cannot use {}", args.file.display());
    bundle.verify().with_context(refused)?;
    let n_sections = bundle.sections().len();
    tell!("{n_sections} sections and the header are whole");
    if let Some(path) = &args.base {
        let files = open::files(path)?;
        let base = files.parse()?;
        let fit = bundle.contents().check_base(&base).with_context(refused)?;
        match fit {
            BaseMatch::Same => tell!("{} is the base it was made with", path.display()),
            BaseMatch::OtherBytes => tell!(
                "{} fits, but its weights are not those that the bundle was made with: another \
                 quantization of the same model, or one trained further",
                path.display()
            ),
        }
    }
    Ok(())
}
