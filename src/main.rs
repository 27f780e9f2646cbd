//! The command line of the operator: wiring only.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use storage_fence::api::crds;

/// Fences a node's SAN storage instead of the node.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the custom resource definitions.
    Crds {
        /// Folder to write into, or to compare with.
        #[arg(default_value = "crds")]
        dir: PathBuf,
        /// Write nothing; fail when a file is not what would be written.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Crds { dir, check: true } => crds::check(&dir),
        Command::Crds { dir, check: false } => crds::write(&dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storage-fence: {error}");
            ExitCode::FAILURE
        }
    }
}
