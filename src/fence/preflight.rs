//! Whether the node could be fenced now, and what stands in the way: one check after the other, each with what to do. Pure.

use super::inventory::{Inventory, LockManager, Lockspace, LockspaceState, PvKind};
use super::plan::maps;

/// The first sanlock that can declare a host dead (`set_host DEAD_EXT`), as in `version_hex`.
const DEAD_EXT_SINCE: u32 = 0x0402_0000;
/// Name of the check that says whether sanlock can.
pub const DEAD_EXT: &str = "DeadExt";
/// With a shorter fire time-out sanlock kills at once and never calls the kill hook (sanlock: src/timeouts.c).
const HOOK_NEEDS: u32 = 30;

/// What a fence cannot do without, or not well, as their processes are called.
pub const DAEMONS: [&str; 4] = ["lvmlockd", "sanlock", "wdmd", "multipathd"];
/// An `oom_score_adj` from here down spares: that process would have to fill nine tenths of the memory to be ended before one without a setting.
const SPARED: i32 = -900;

/// What is known besides the inventory. None: it could not be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the agent's memory is locked.
    pub memory_locked: Option<bool>,
    /// sanlock's `our_host_name`; empty when it has none of its own.
    pub host_name: Option<String>,
    /// sanlock's version, as in `version_hex`.
    pub sanlock_version: Option<u32>,
    /// Whether the kill hook is in force, and what that means in words.
    pub kill_hook: Option<(bool, String)>,
    /// Whether the agent's state directory lies in memory.
    pub state_in_memory: Option<bool>,
    /// The [`DAEMONS`] that run, each with its `oom_score_adj`.
    pub daemons: Option<Vec<(&'static str, i32)>>,
}

/// How a check ended, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// It could not be told.
    Unknown,
    /// The node can be fenced, but something will not be as good as it could be.
    Warning,
    /// The node cannot be fenced.
    Failed,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in CamelCase.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub message: String,
}

fn check(name: &'static str, verdict: Verdict, message: impl Into<String>) -> Check {
    Check {
        name,
        verdict,
        message: message.into(),
    }
}

/// All checks, always the same ones in the same order. `inventory`: or why there is none.
#[must_use]
pub fn preflight(inventory: Result<&Inventory, &str>, facts: &Facts) -> Vec<Check> {
    let known = inventory.ok();
    vec![
        device_mapper(inventory),
        lock_manager(known),
        watchdog(known),
        queueing(known),
        kill_hook(facts, known),
        memory(facts),
        spared(facts),
        state(facts),
        host_name(facts),
        dead_ext(facts),
    ]
}

fn device_mapper(inventory: Result<&Inventory, &str>) -> Check {
    const NAME: &str = "DeviceMapper";
    match inventory {
        Ok(_) => check(NAME, Verdict::Passed, "it answers"),
        Err(why) => check(
            NAME,
            Verdict::Failed,
            format!("{why}. Is the pod privileged, and is dm_mod loaded?"),
        ),
    }
}

fn lock_manager(inventory: Option<&Inventory>) -> Check {
    const NAME: &str = "LockManager";
    match inventory.map(|i| &i.lock_manager) {
        Some(LockManager::Running(lockspaces)) => match orphan(lockspaces) {
            Some(orphan) => check(
                NAME,
                Verdict::Warning,
                format!(
                    "sanlock holds lockspace {}, and lvmlockd does not know it: it was started anew after one that was killed. The volume group counts \
                     as local and cannot be fenced, and the watchdog resets the host when its lease runs out. On the node, but not while the SAN is away (docs/bad-night.md): \
                     vgchange --lockstart --lockopt adoptls {}",
                    orphan.name, orphan.vg_name
                ),
            ),
            None => check(NAME, Verdict::Passed, "lvmlockd and sanlock answer"),
        },
        Some(LockManager::LvmlockdUnavailable(why, _)) => check(
            NAME,
            Verdict::Failed,
            format!(
                "lvmlockd does not answer: {why}. Start it on the node and have it adopt its lockspaces, but not while the SAN is away: sanlock may give them up then (docs/bad-night.md, lvmlockd has died)"
            ),
        ),
        Some(LockManager::SanlockUnavailable(why, _)) => check(
            NAME,
            Verdict::Failed,
            format!("sanlock does not answer: {why}. Start it on the node"),
        ),
        None => check(NAME, Verdict::Unknown, "the node was not looked at"),
    }
}

/// A lockspace that only sanlock knows of, and that is neither coming nor going: for these a moment of that is nothing.
fn orphan(lockspaces: &[Lockspace]) -> Option<&Lockspace> {
    use LockspaceState::{Adding, Removing};
    let stays = |l: &&Lockspace| l.vg_uuid.is_empty() && !matches!(l.state, Adding | Removing);
    lockspaces.iter().find(stays)
}

fn watchdog(inventory: Option<&Inventory>) -> Check {
    const NAME: &str = "Watchdog";
    let Some(inventory) = inventory else {
        return check(NAME, Verdict::Unknown, "the node was not looked at");
    };
    let watchdog = &inventory.watchdog;
    let joined = inventory.lock_manager.lockspaces().len();
    if !watchdog.known {
        let why = watchdog.problem.as_deref().unwrap_or("no reason given");
        return check(
            NAME,
            Verdict::Warning,
            format!(
                "wdmd does not answer, so it is not known how much time a fence has: {why}. Start it on the node"
            ),
        );
    }
    if joined > 0 && watchdog.clients.is_empty() {
        return check(
            NAME,
            Verdict::Warning,
            format!(
                "no lockspace keeps the watchdog armed, though {joined} are joined: a host that hangs would go on holding its locks. Is sanlock \
                 running with use_watchdog=0?"
            ),
        );
    }
    let seconds = watchdog.fire_timeout;
    let state = if watchdog.clients.is_empty() {
        "idle: no lockspace is joined"
    } else {
        "armed"
    };
    check(
        NAME,
        Verdict::Passed,
        format!("{state}; it fires after {seconds} s"),
    )
}

fn queueing(inventory: Option<&Inventory>) -> Check {
    const NAME: &str = "Queueing";
    let Some(inventory) = inventory else {
        return check(NAME, Verdict::Unknown, "the node was not looked at");
    };
    let shared = || inventory.volume_groups.iter().filter(|g| g.shared());
    let mut off: Vec<&str> = shared()
        .flat_map(maps)
        .filter(|m| !m.queueing)
        .map(|m| m.name.as_str())
        .collect();
    off.sort_unstable();
    off.dedup();
    if !off.is_empty() {
        return check(
            NAME,
            Verdict::Passed,
            format!(
                "{} does not queue: the shortest outage reaches the volumes' users as errors. If that is not meant: no_path_retry in multipath.conf, \
                 or multipathd restorequeueing map MAP after a fence that was lifted by hand",
                off.join(", ")
            ),
        );
    }
    let plain = shared()
        .flat_map(|g| &g.pvs)
        .any(|pv| matches!(pv.kind, PvKind::Disk(_)));
    let message = if plain {
        "no map below some of the volume groups; where there is one, it queues until the fence turns that off"
    } else {
        "every map queues until the fence turns that off"
    };
    check(NAME, Verdict::Passed, message)
}

fn kill_hook(facts: &Facts, inventory: Option<&Inventory>) -> Check {
    const NAME: &str = "KillHook";
    let fire = inventory.map_or(0, |i| i.watchdog.fire_timeout);
    if (1..HOOK_NEEDS).contains(&fire) {
        return check(
            NAME,
            Verdict::Warning,
            format!(
                "sanlock never calls it with a watchdog that fires after {fire} s: only the agent fences this node. Use {HOOK_NEEDS} s or more"
            ),
        );
    }
    match &facts.kill_hook {
        None => check(
            NAME,
            Verdict::Unknown,
            "it is not looked at: the agent was not told where the host's files are",
        ),
        Some((true, says)) => check(NAME, Verdict::Passed, says),
        Some((false, says)) => check(
            NAME,
            Verdict::Warning,
            format!("{says}. Without it a node whose agent is dead is reset by its watchdog"),
        ),
    }
}

fn memory(facts: &Facts) -> Check {
    const NAME: &str = "MemoryLocked";
    match facts.memory_locked {
        Some(true) => check(NAME, Verdict::Passed, "the agent stays in memory"),
        Some(false) => check(
            NAME,
            Verdict::Warning,
            "the agent's memory is not locked: in an outage it may wait for a disk. It needs CAP_IPC_LOCK or RLIMIT_MEMLOCK",
        ),
        None => check(NAME, Verdict::Unknown, "/proc/self/status does not tell"),
    }
}

fn spared(facts: &Facts) -> Check {
    const NAME: &str = "DaemonsSpared";
    let Some(daemons) = &facts.daemons else {
        return check(NAME, Verdict::Unknown, "/proc cannot be read");
    };
    if daemons.is_empty() {
        return check(
            NAME,
            Verdict::Unknown,
            format!(
                "none of {} is seen in /proc. Do they run, and is the agent in the host's process namespace (hostPID)?",
                DAEMONS.join(", ")
            ),
        );
    }
    let names = |of: &mut dyn Iterator<Item = &(&str, i32)>| {
        let all: Vec<String> = of.map(|(name, adj)| format!("{name} ({adj})")).collect();
        all.join(", ")
    };
    let exposed = names(&mut daemons.iter().filter(|(_, adj)| *adj > SPARED));
    if exposed.is_empty() {
        let all = names(&mut daemons.iter());
        return check(NAME, Verdict::Passed, all);
    }
    check(
        NAME,
        Verdict::Warning,
        format!(
            "the kernel may end {exposed} when memory runs out, which an outage brings about: without the lock manager nothing can be released. \
             Set OOMScoreAdjust=-1000 in their units, and with choom for what runs (docs/install.md, When memory runs out)"
        ),
    )
}

fn state(facts: &Facts) -> Check {
    const NAME: &str = "StateDirectory";
    match facts.state_in_memory {
        Some(true) => check(NAME, Verdict::Passed, "in memory"),
        Some(false) => check(
            NAME,
            Verdict::Warning,
            "the agent's state directory is not on a tmpfs: it may lie on the SAN that is lost, and survives a reboot. Use a folder under /run",
        ),
        None => check(NAME, Verdict::Unknown, "its file system could not be told"),
    }
}

fn host_name(facts: &Facts) -> Check {
    const NAME: &str = "HostName";
    match facts.host_name.as_deref() {
        None => check(NAME, Verdict::Unknown, "sanlock does not tell"),
        Some("") => check(
            NAME,
            Verdict::Warning,
            "sanlock has no our_host_name: after a restart of sanlock, joining a lockspace again takes minutes. Set it in sanlock.conf",
        ),
        Some(name) => check(NAME, Verdict::Passed, name),
    }
}

/// Whether a sanlock of that version can declare a host dead. Unknown is no.
#[must_use]
pub fn can_declare_dead(version: Option<u32>) -> bool {
    version.is_some_and(|v| v >= DEAD_EXT_SINCE)
}

fn dead_ext(facts: &Facts) -> Check {
    match facts.sanlock_version {
        None => check(
            DEAD_EXT,
            Verdict::Unknown,
            "sanlock does not tell its version",
        ),
        Some(v) if can_declare_dead(Some(v)) => check(
            DEAD_EXT,
            Verdict::Passed,
            format!("sanlock {} can declare a fenced peer dead", dotted(v)),
        ),
        Some(v) => check(
            DEAD_EXT,
            Verdict::Warning,
            format!(
                "sanlock {} cannot declare a fenced peer dead: other hosts get its locks when the leases have run out. From {} on it can",
                dotted(v),
                dotted(DEAD_EXT_SINCE)
            ),
        ),
    }
}

/// A `version_hex` as people write it.
#[must_use]
pub fn dotted(version: u32) -> String {
    let [major, minor, .., patch] = version.to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
