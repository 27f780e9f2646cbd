//! What preflight has to know besides the inventory: gathered from the node, without reading the SAN.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tokio::sync::watch;

use crate::fence::preflight::{DAEMONS, Facts};
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
        daemons: daemons(&paths.proc),
    }
}

fn memory_locked(proc: &Path) -> Option<bool> {
    let status = fs::read_to_string(proc.join("self/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmLck:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes > 0)
}

/// Those that run, by the kernel's name of the process, with `oom_score_adj`: of several of one name, the one that is spared least. Neither file
/// makes anybody wait for the process's memory.
fn daemons(proc: &Path) -> Option<Vec<(&'static str, i32)>> {
    let mut found: BTreeMap<&'static str, i32> = BTreeMap::new();
    for entry in fs::read_dir(proc).ok()?.flatten() {
        let folder = entry.path();
        // No process, or one that is gone by now.
        let Ok(comm) = fs::read_to_string(folder.join("comm")) else {
            continue;
        };
        let Some(name) = DAEMONS.iter().find(|d| **d == comm.trim_end()) else {
            continue;
        };
        let Ok(adj) = fs::read_to_string(folder.join("oom_score_adj")) else {
            continue;
        };
        if let Ok(adj) = adj.trim().parse() {
            let worst = found.entry(name).or_insert(adj);
            *worst = adj.max(*worst);
        }
    }
    // In the order in which people think of them.
    let known = |name: &&'static str| Some((*name, *found.get(name)?));
    Some(DAEMONS.iter().filter_map(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_found_by_name_and_the_least_spared_of_a_name_counts() {
        let proc = tempfile::tempdir().expect("tempdir");
        let process = |pid: &str, comm: &str, adj: &str| {
            let folder = proc.path().join(pid);
            fs::create_dir(&folder).expect("mkdir");
            fs::write(folder.join("comm"), format!("{comm}\n")).expect("write");
            fs::write(folder.join("oom_score_adj"), format!("{adj}\n")).expect("write");
        };
        assert_eq!(daemons(proc.path()), Some(vec![]));
        process("1", "systemd", "0");
        process("10", "sanlock", "-1000");
        process("11", "sanlock-helper", "0");
        process("12", "lvmlockd", "-1000");
        process("13", "lvmlockd", "100");
        process("14", "wdmd", "nonsense");
        fs::create_dir(proc.path().join("sys")).expect("mkdir");
        let expected = vec![("lvmlockd", 100), ("sanlock", -1000)];
        assert_eq!(daemons(proc.path()), Some(expected));
        assert_eq!(daemons(Path::new("/nowhere")), None);
        assert!(daemons(Path::new("/proc")).is_some());
    }

    #[test]
    fn this_process_has_a_status_and_a_broken_one_tells_nothing() {
        assert!(memory_locked(Path::new("/proc")).is_some());
        assert_eq!(memory_locked(Path::new("/nowhere")), None);
    }
}
