//! What preflight has to know besides the inventory: gathered from the node, without reading the SAN.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
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
        daemons: daemons(&paths.proc, &paths.run),
    }
}

fn memory_locked(proc: &Path) -> Option<bool> {
    let status = fs::read_to_string(proc.join("self/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmLck:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes > 0)
}

/// Where they write down their number, below `/run` (`SANLK_RUN_DIR`, `WDMD_RUN_DIR`, `LVMLOCKD_PIDFILE`, `DEFAULT_PIDFILE` of their sources).
const PID_FILES: [&str; 4] = [
    "lvmlockd.pid",
    "sanlock/sanlock.pid",
    "wdmd/wdmd.pid",
    "multipathd.pid",
];

/// Those that run, with `oom_score_adj`: each as it says itself who it is, or else by the kernel's name of the process; of several of one name, the
/// one that is spared least. No file of these makes anybody wait for the process's memory.
fn daemons(proc: &Path, run: &Path) -> Option<Vec<(&'static str, i32)>> {
    let themselves = PID_FILES.iter().filter_map(|file| {
        let pid: u32 = fs::read_to_string(run.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        // What an older one has left may be another process's number by now, which is told by its name.
        daemon(&proc.join(pid.to_string()))
    });
    let mut found: BTreeMap<&'static str, i32> = themselves.collect();
    if found.len() < DAEMONS.len() {
        for (name, adj) in by_name(proc)? {
            // Of one that says who it is, others of its name are commands (`multipathd show`).
            found.entry(name).or_insert(adj);
        }
    }
    // In the order in which people think of them.
    let known = |name: &&'static str| Some((*name, *found.get(name)?));
    Some(DAEMONS.iter().filter_map(known).collect())
}

/// Which of them a process is, and its `oom_score_adj`.
fn daemon(folder: &Path) -> Option<(&'static str, i32)> {
    let read = |file| fs::read_to_string(folder.join(file)).ok();
    let comm = read("comm")?;
    let name = DAEMONS.iter().find(|d| **d == comm.trim_end())?;
    Some((name, read("oom_score_adj")?.trim().parse().ok()?))
}

/// All of them among all processes.
fn by_name(proc: &Path) -> Option<BTreeMap<&'static str, i32>> {
    let mut found = BTreeMap::new();
    let kernel = kernel_threads(proc);
    for entry in fs::read_dir(proc).ok()?.flatten() {
        if kernel.contains(&entry.file_name()) {
            continue;
        }
        // No process, or one that is gone by now, is none of them.
        if let Some((name, adj)) = daemon(&entry.path()) {
            let worst = found.entry(name).or_insert(adj);
            *worst = adj.max(*worst);
        }
    }
    Some(found)
}

/// The kernel's own threads, which kthreadd starts: each device of device mapper has one, and to look at each of thousands takes longer than to
/// read all devices. Empty where the kernel does not tell a process's children (`CONFIG_PROC_CHILDREN`).
fn kernel_threads(proc: &Path) -> HashSet<OsString> {
    let kthreadd = proc.join("2");
    let is_it = fs::read_to_string(kthreadd.join("comm")).is_ok_and(|c| c.trim_end() == "kthreadd");
    let children = is_it.then(|| fs::read_to_string(kthreadd.join("task/2/children")));
    let children = children.and_then(Result::ok).unwrap_or_default();
    children.split_whitespace().map(OsString::from).collect()
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
        let nothing = Path::new("/nowhere");
        assert_eq!(daemons(proc.path(), nothing), Some(vec![]));
        process("1", "systemd", "0");
        process("10", "sanlock", "-1000");
        process("11", "sanlock-helper", "0");
        process("12", "lvmlockd", "-1000");
        process("13", "lvmlockd", "100");
        process("14", "wdmd", "nonsense");
        fs::create_dir(proc.path().join("sys")).expect("mkdir");
        let expected = vec![("lvmlockd", 100), ("sanlock", -1000)];
        assert_eq!(daemons(proc.path(), nothing), Some(expected));
        assert_eq!(daemons(nothing, nothing), None);
        assert!(daemons(Path::new("/proc"), nothing).is_some());

        // As they say themselves: a command of that name counts no more, and a number that is another's by now is not believed.
        let run = tempfile::tempdir().expect("tempdir");
        let says = |file: &str, pid: &str| {
            let file = run.path().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
            fs::write(file, pid).expect("write");
        };
        says("lvmlockd.pid", "12\n");
        says("multipathd.pid", "1");
        let expected = vec![("lvmlockd", -1000), ("sanlock", -1000)];
        assert_eq!(daemons(proc.path(), run.path()), Some(expected.clone()));
        says("sanlock/sanlock.pid", "9999\n");
        says("wdmd/wdmd.pid", "nonsense\n");
        assert_eq!(daemons(proc.path(), run.path()), Some(expected));
        process("15", "wdmd", "0");
        process("16", "multipathd", "0");
        process("17", "multipathd", "100");
        says("sanlock/sanlock.pid", "10\n");
        says("wdmd/wdmd.pid", "15\n");
        says("multipathd.pid", "16");
        let all = vec![
            ("lvmlockd", -1000),
            ("sanlock", -1000),
            ("wdmd", 0),
            ("multipathd", 0),
        ];
        assert_eq!(daemons(proc.path(), run.path()), Some(all));
    }

    #[test]
    fn the_kernels_own_threads_are_not_looked_at() {
        let proc = tempfile::tempdir().expect("tempdir");
        let write = |file: &str, text: &str| {
            let file = proc.path().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
            fs::write(file, text).expect("write");
        };
        let nothing = Path::new("/nowhere");
        for pid in ["30", "300"] {
            write(&format!("{pid}/comm"), "wdmd\n");
            write(&format!("{pid}/oom_score_adj"), "0\n");
        }
        write("2/comm", "kthreadd\n");
        let both = Some(vec![("wdmd", 0)]);
        // As without CONFIG_PROC_CHILDREN.
        assert_eq!(daemons(proc.path(), nothing), both);
        write("2/task/2/children", "3 30 ");
        assert_eq!(daemons(proc.path(), nothing), both);
        write("2/task/2/children", "3 30 300 301 ");
        assert_eq!(daemons(proc.path(), nothing), Some(vec![]));
        // Not kthreadd: who has that number in a container starts no threads of the kernel's.
        write("2/comm", "bash\n");
        assert_eq!(daemons(proc.path(), nothing), both);
    }

    #[test]
    fn this_process_has_a_status_and_a_broken_one_tells_nothing() {
        assert!(memory_locked(Path::new("/proc")).is_some());
        assert_eq!(memory_locked(Path::new("/nowhere")), None);
    }
}
