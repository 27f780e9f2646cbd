//! Becoming a program of the host: what the agent's container starts a tool of the host's with.
//!
//! A process of its own, because a mount namespace can only be entered by a process with one thread. It needs the host's process 1 in /proc
//! (hostPID) and CAP_SYS_ADMIN.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::urgency;

/// Where a host keeps its tools.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// Why it did not become one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace cannot be entered.
    #[error(
        "the host's {what} namespace cannot be entered: {source}. The pod needs hostPID: true and privileged: true"
    )]
    Namespace {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("{program} cannot be run on the host: {source}. Install it there")]
    Program {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Enters the namespaces of process 1 and becomes `program`. Returns only when that failed.
///
/// IPC too: LVM waits for udev on a semaphore, which udev sets in the host's namespace.
#[must_use]
pub fn become_host_program(proc: &Path, program: &str, arguments: &[OsString]) -> Error {
    let namespaces = [
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        // Last: it changes what paths mean.
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // It runs all the same.
    let _ = urgency::ordinary(proc);
    let mut files = Vec::new();
    for (what, flag) in namespaces {
        match File::open(proc.join("1/ns").join(what)) {
            Ok(file) => files.push((what, flag, file)),
            Err(source) => return Error::Namespace { what, source },
        }
    }
    for (what, flag, file) in files {
        if let Err(errno) = setns(file, flag) {
            return Error::Namespace {
                what,
                source: errno.into(),
            };
        }
    }
    #[expect(clippy::disallowed_methods, reason = "no fence comes here")]
    let source = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .exec();
    Error::Program {
        program: program.to_owned(),
        source,
    }
}
