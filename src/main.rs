//! The command line of the operator: wiring only.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use storage_fence::agent::hook::Verdict;
use storage_fence::api::crds;
use storage_fence::fence::preflight::Facts;
use storage_fence::host::{Host, Paths, host_exec, kernel_log};
use storage_fence::telemetry::lines::Lines;
use storage_fence::telemetry::panics;
use storage_fence::{agent, controller, telemetry};

/// Fences a node's SAN storage instead of the node.
///
/// When every path to a SAN is gone, the lock manager's watchdog resets the whole host. This program cuts the host off from that storage alone,
/// proves it, and has the locks released: the host lives, and other hosts can take over.
///
/// Ask for a fence with a StorageFenceRequest (kubectl explain sfr.spec); see what a node would do with `kubectl get nst NODE -o yaml`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes:\n  0  it worked, or it was asked to stop\n  1  it failed: the last line on standard error says why\n  2  the command line is wrong"
)]
struct Cli {
    /// error, warn, info, debug or trace; or directives such as storage_fence=debug,kube=info.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    log_level: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller: judges requests, brings agents to nodes, derives what people read. Several replicas elect a leader.
    Controller(controller::Options),
    /// Run the node's agent: watches the requests for this node, fences its storage, and reports. As root, in the host's network and
    /// process namespaces, with the host's /dev and /run.
    Agent(agent::Options),
    /// What `lvmlockctl --kill VG` runs (lvm.conf: global/lvmlockctl_kill_command = "/path/storage-fence kill-hook"): has the agent fence the volume
    /// group, or does it without the agent. Ends with 0 only with proof, since lvmlockctl then drops the lockspace.
    KillHook(agent::hook::Options),
    /// Put this program on the host as lvmlockctl's kill command: copies it, sets global/lvmlockctl_kill_command in lvm.conf, and looks whether it is
    /// in force. May be run again at any time; --check only looks, --remove undoes it.
    InstallHook(agent::hook::install::Options),
    /// Print what the agent would see of this node, as JSON. Changes nothing, reads nothing from the SAN, needs no cluster.
    Inspect,
    /// Become a program of the host's: how the agent runs LVM's tools when a node is given its storage back.
    #[command(hide = true)]
    HostExec {
        /// The program.
        program: String,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Write the custom resource definitions.
    Crds {
        /// Folder to write into, or to compare with.
        #[arg(default_value = "crds")]
        dir: PathBuf,
        /// Write nothing; fail when a file is not what would be written.
        #[arg(long)]
        check: bool,
    },
    /// Print the completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Outcome = match cli.command {
        Command::Controller(options) => run_controller(&cli.log_level, options),
        Command::Agent(options) => run_agent(&cli.log_level, options),
        Command::KillHook(options) => return kill_hook(&options),
        Command::InstallHook(options) => agent::hook::install::install(&options)
            .map(|done| println!("{done}"))
            .map_err(Into::into),
        Command::Inspect => inspect(),
        Command::HostExec { program, arguments } => {
            Err(host_exec::become_host_program(&Paths::default().proc, &program, &arguments).into())
        }
        Command::Crds { dir, check: true } => crds::check(&dir).map_err(Into::into),
        Command::Crds { dir, check: false } => crds::write(&dir).map_err(Into::into),
        Command::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "storage-fence",
                &mut io::stdout(),
            );
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (mut lines, _written) = Lines::to_stderr();
            let _ = lines.write_all(format!("storage-fence: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run_controller(log_level: &str, options: controller::Options) -> Outcome {
    let _written = telemetry::log_to_stderr(log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(controller::run(options))?;
    Ok(())
}

/// On one thread: what takes time or may hang has threads of its own.
fn run_agent(log_level: &str, options: agent::Options) -> Outcome {
    let missing = agent::prepare(&Paths::default());
    let _written = telemetry::log_to_stderr(log_level)?;
    for what in &missing {
        tracing::warn!("{what}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(agent::run(options));
    // Nothing that still hangs somewhere may keep the process from ending.
    runtime.shutdown_background();
    Ok(result?)
}

/// Says little, and to the kernel's log: nobody reads its output, and a pipe that is full would hold it up.
fn kill_hook(options: &agent::hook::Options) -> ExitCode {
    let paths = Paths::default();
    let missing = agent::prepare(&paths);
    let (mut lines, _written) = Lines::to_stderr();
    let mut tell = |line: &str| {
        kernel_log::tell(&paths, line);
        let _ = lines.write_all(format!("storage-fence: {line}\n").as_bytes());
    };
    let log = paths.clone();
    panics::told_by(move |what| kernel_log::tell(&log, what));
    for what in &missing {
        tell(what);
    }
    tell(&format!("the locks of {} are lost: fencing it", options.vg));
    match agent::hook::run(&Host::real(&paths), options, &mut tell) {
        Verdict::Proven(message) => {
            tell(&message);
            ExitCode::SUCCESS
        }
        Verdict::Unproven(message) => {
            tell(&message);
            ExitCode::FAILURE
        }
    }
}

fn inspect() -> Outcome {
    let paths = Paths::default();
    let host = Host::real(&paths);
    let state = std::path::Path::new(agent::journal::DEFAULT_DIRECTORY);
    let facts = || {
        // Of the host, also when it runs in a container.
        let hook = agent::hook::install::state(&paths.proc.join("1/root")).ok();
        let in_force = agent::hook::install::State::InForce;
        Facts {
            kill_hook: hook.map(|s| (s == in_force, s.message())),
            ..agent::preflight::gather(&host, &paths, state)
        }
    };
    agent::inspect::inspect(&host, &facts, &mut io::stdout())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What clap finds wrong with a command line only when it is used.
    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }
}
