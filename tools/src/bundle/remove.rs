//! `tandem bundle remove`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// Remove adapters and compositions from a bundle
///
/// A calibration that no composition uses any more goes, too. An adapter that a composition uses is
/// not removed unless the composition is.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The bundle
    file: PathBuf,
    /// An adapter to remove; may be given several times
    #[arg(
        long = "adapter",
        value_name = "NAME",
        required_unless_present = "compositions"
    )]
    adapters: Vec<String>,
    /// A composition to remove; may be given several times
    #[arg(long = "composition", value_name = "NAME")]
    compositions: Vec<String>,
}

pub(super) fn remove(args: &Args) -> Result<()> {
    let _lock = super::lock(&args.file)?;
    let bundle = super::open_file(&args.file)?;
    // What stays must be whole, or its damage would get a checksum that is right.
    bundle
        .verify()
        .with_context(|| format!("cannot use {}", args.file.display()))?;
    let mut contents = bundle.contents().clone();
    for name in &args.compositions {
        contents.composition(name)?;
        contents.compositions.retain(|c| c.name != *name);
    }
    for name in &args.adapters {
        contents.adapter(name)?;
        let uses =
            |c: &&tandem_formats::bundle::Composition| c.members.iter().any(|m| m.adapter == *name);
        let users: Vec<_> = contents.compositions.iter().filter(uses).collect();
        if !users.is_empty() {
            let names: Vec<_> = users.iter().map(|c| &*c.name).collect();
            bail!(
                "adapter {name:?} is used by {}: remove these, too (--composition NAME)",
                names.join(", ")
            );
        }
        contents.adapters.retain(|a| a.name != *name);
    }
    let compositions = contents.compositions.iter();
    let used: Vec<_> = compositions.filter_map(|c| c.calibration.clone()).collect();
    contents.calibrations.retain(|c| used.contains(&c.name));
    super::write(&args.file, &contents)
}
