//! `tandem`: the command of the Tandem inference engine.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_tools::command()
}
