//! `tandem completions`: what shells need to complete this command's words.

use std::io::{self, Write as _};

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

/// Write the file by which a shell completes this command's words
///
/// For bash: tandem completions bash > ~/.local/share/bash-completion/completions/tandem
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(args: &Args) -> Result<()> {
    // What cannot be written would be a panic of the library's.
    let mut script = Vec::new();
    generate(
        args.shell,
        &mut crate::Cli::command(),
        "tandem",
        &mut script,
    );
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    Ok(out.flush()?)
}
