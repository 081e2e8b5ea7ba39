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

pub use create::create_by;
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
    let n_sections = verify_whole(&args.file)?;
    tell!("{n_sections} sections and the header are whole");
    let Some(base) = &args.base else {
        return Ok(());
    };
    match fit(&args.file, base)? {
        BaseMatch::Same => tell!("{} is the base it was made with", base.display()),
        BaseMatch::OtherBytes => tell!(
            "{} fits, but its weights are not those that the bundle was made with: another \
             quantization of the same model, or one trained further",
            base.display()
        ),
    }
    Ok(())
}

/// Checks every byte of a bundle. Gives how many sections it has.
///
/// # Errors
///
/// A file that cannot be read, or is no bundle; damage.
pub fn verify_whole(path: &Path) -> Result<usize> {
    let bundle = open_file(path)?;
    bundle
        .verify()
        .with_context(|| format!("cannot use {}", path.display()))?;
    Ok(bundle.sections().len())
}

/// How a model fits a bundle.
///
/// # Errors
///
/// A file that cannot be read; a bundle for another model.
pub fn fit(path: &Path, base: &Path) -> Result<BaseMatch> {
    let bundle = open_file(path)?;
    let files = open::files(base)?;
    let fit = bundle.contents().check_base(&files.parse()?);
    fit.with_context(|| format!("cannot use {}", path.display()))
}

/// What is in a bundle, as `tandem bundle inspect --json` tells it.
///
/// # Errors
///
/// A file that cannot be read, or is no bundle.
pub fn report(path: &Path) -> Result<serde_json::Value> {
    let bundle = open_file(path)?;
    Ok(inspect::json_report(&bundle, bundle.n_bytes()))
}
