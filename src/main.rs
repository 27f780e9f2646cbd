//! The command line of the operator: wiring only.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use storage_fence::agent::inspect::inspect;
use storage_fence::api::crds;
use storage_fence::controller;
use storage_fence::host::{Host, Paths};

/// Fences a node's SAN storage instead of the node.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// error, warn, info, debug or trace; or directives such as storage_fence=debug,kube=info.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    log_level: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller.
    Controller(controller::Options),
    /// Print what this node's kernel and daemons say of its storage, as JSON. Changes nothing.
    Inspect,
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
    let cli = Cli::parse();
    let result: Result<(), Box<dyn Error>> = match cli.command {
        Command::Controller(options) => run_controller(&cli.log_level, options),
        Command::Inspect => {
            inspect(&Host::real(&Paths::default()), &mut std::io::stdout()).map_err(Into::into)
        }
        Command::Crds { dir, check: true } => crds::check(&dir).map_err(Into::into),
        Command::Crds { dir, check: false } => crds::write(&dir).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storage-fence: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_controller(log_level: &str, options: controller::Options) -> Result<(), Box<dyn Error>> {
    log_to_stderr(log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(controller::run(options))?;
    Ok(())
}

/// One JSON object a line: what collects a pod's output can read it.
fn log_to_stderr(level: &str) -> Result<(), Box<dyn Error>> {
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .map_err(|error| format!("log level {level:?}: {error}"))?;
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
