//! `tandem cross`: from a workstation to a board.

mod boards;
mod deb;
mod deploy;
mod package;
mod toolchain;
mod units;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use boards::Board;
use deb::Deb;
use package::Content;
use toolchain::Toolchain;

/// Build for a board, and copy it there
///
/// Compiles Tandem's source tree for 64-bit Arm and writes a directory that is ready to copy: the
/// program, linked statically, a systemd service, a README, checksums, and if wanted a model and a
/// bundle. With --deb it is a package, to be installed on the board by `sudo apt install ./FILE`. One
/// program serves all boards; the best level that the CPU has is chosen at start.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The board, see --list
    #[arg(long, value_name = "NAME", value_parser = Board::from_name, required_unless_present = "list")]
    board: Option<&'static Board>,
    /// List the boards
    #[arg(long, exclusive = true)]
    list: bool,
    /// The directory to write; one that this command wrote before is replaced [default:
    /// tandem-BOARD]. With --deb the package, or a folder for it
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Write a Debian package, with completions for shells and manual pages
    #[arg(long, conflicts_with = "deploy")]
    deb: bool,
    /// Copy it to a board by ssh, to the folder `tandem` in the user's home unless another is
    /// named, and run `tandem doctor` there
    #[arg(long, value_name = "USER@HOST[:DIR]", value_parser = deploy::target)]
    deploy: Option<deploy::Target>,
    /// Add this model
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Add this bundle, which must be for the model
    #[arg(long, value_name = "FILE", requires_all = ["model", "compose"])]
    bundle: Option<PathBuf>,
    /// The bundle's composition that the service runs where a request names none
    #[arg(long, value_name = "NAME", requires = "bundle")]
    compose: Option<String>,
    /// Tandem's source tree [default: the one that the current folder is in]
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
}

pub(crate) fn cross(args: &Args) -> Result<()> {
    let Some(board) = args.board else {
        let mut out = std::io::stdout().lock();
        out.write_all(boards::table().as_bytes())?;
        return Ok(out.flush()?);
    };
    // All that may be wrong is looked for before the build, which takes minutes.
    let default = || PathBuf::from(format!("tandem-{}", board.name));
    let out = args.out.clone().unwrap_or_else(default);
    let deb = match args.deb {
        true => Some(Deb::new(args.out.as_deref())?),
        false => {
            package::check_out(&out)?;
            None
        }
    };
    if let Some(target) = &args.deploy {
        target.check_tools()?;
    }
    let (bundle, compose) = (args.bundle.as_deref(), args.compose.as_deref());
    let content = Content::open(args.model.as_deref(), bundle, compose)?;
    if let Some(warning) = board.warning(content.model_bytes()?) {
        tell!("{warning}");
    }
    let source = source(args.source.as_deref())?;
    let toolchain = Toolchain::find()?;
    tell!("building with {}", toolchain.describe());
    let binary = toolchain.build(&source)?;
    if let Some(deb) = deb {
        deb.write(&binary, &content)?;
        tell!("{}", deb.path().display());
        return Ok(());
    }
    let package = package::write(&out, board, &binary, &content)?;
    tell!("{}", package.describe().trim_end());
    match &args.deploy {
        Some(target) => target.deploy(&package),
        None => Ok(()),
    }
}

/// The source tree: as given, or around the current folder.
fn source(given: Option<&Path>) -> Result<PathBuf> {
    let is_source = |folder: &Path| {
        folder.join("tools/src/cross.rs").is_file() && folder.join("Cargo.toml").is_file()
    };
    if let Some(folder) = given {
        ensure!(
            is_source(folder),
            "{} is not Tandem's source tree",
            folder.display()
        );
        return Ok(folder.canonicalize()?);
    }
    let here = std::env::current_dir()?;
    let found = here.ancestors().find(|folder| is_source(folder));
    found.map(Path::to_path_buf).context(
        "this is not Tandem's source tree, which is needed to build for a board: run it there, or \
         name the tree by --source",
    )
}
