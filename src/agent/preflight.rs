//! What preflight has to know besides the inventory: gathered from the node, without reading the SAN.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tokio::sync::watch;

use crate::fence::preflight::Facts;
use crate::host::{Host, Paths};

/// Between two looks: it is settings that people change.
const EVERY: Duration = Duration::from_mins(1);

/// Gathers again and again, on a thread of its own for as long as somebody listens.
///
/// # Errors
/// When the system has no thread to give.
pub fn start(
    host: &Host,
    paths: &Paths,
    state_directory: &Path,
) -> std::io::Result<watch::Receiver<Facts>> {
    let (tell, facts) = watch::channel(Facts::default());
    let (host, paths, directory) = (host.clone(), paths.clone(), state_directory.to_owned());
    std::thread::Builder::new()
        .name("preflight".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            while tell.send(gather(&host, &paths, &directory)).is_ok() {
                std::thread::sleep(EVERY);
            }
        })?;
    Ok(facts)
}

/// Gathers all but the kill hook, which is looked at elsewhere. Blocks for as long as sanlock takes to answer.
#[must_use]
pub fn gather(host: &Host, paths: &Paths, state_directory: &Path) -> Facts {
    let sanlock = host.sanlock.status().ok();
    Facts {
        memory_locked: memory_locked(&paths.proc),
        host_name: sanlock.as_ref().map(|s| s.host_name.clone()),
        sanlock_version: sanlock.and_then(|s| s.version),
        kill_hook: None,
        state_in_memory: statfs(state_directory)
            .ok()
            .map(|s| s.filesystem_type() == TMPFS_MAGIC),
    }
}

fn memory_locked(proc: &Path) -> Option<bool> {
    let status = fs::read_to_string(proc.join("self/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmLck:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_status_and_a_broken_one_tells_nothing() {
        assert!(memory_locked(Path::new("/proc")).is_some());
        assert_eq!(memory_locked(Path::new("/nowhere")), None);
    }
}
