//! What lvmlockd, sanlock and wdmd say, put together.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agent::executor::limited::Pending;
use crate::fence::{LockManager, Lockspace, LockspaceState, Watchdog};
use crate::host::{Bell, Host, SanlockLockspace, SanlockStatus};

/// How long a daemon is waited for. Their sockets have limits of their own, shorter than this.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// Two answers are about the same time where they came within this.
const TOGETHER: Duration = Duration::from_millis(100);

/// Only the lock manager: lvmlockd's lockspaces with what sanlock knows of each.
#[must_use]
pub fn lock_manager(host: &Host) -> LockManager {
    daemons(host).0
}

/// Asks lvmlockd, sanlock and wdmd at the same time.
pub(super) fn daemons(host: &Host) -> (LockManager, Watchdog) {
    let bell = Bell::default();
    let began = host.system.monotonic();
    let ask_sanlock = || Pending::start(host, &bell, "asking sanlock", |h| h.sanlock.status());
    let lvmlockd = Pending::start(host, &bell, "asking lvmlockd", |h| h.lvmlockd.lockspaces());
    let sanlock = ask_sanlock();
    let wdmd = Pending::start(host, &bell, "asking wdmd", |h| Ok(h.wdmd.status()));
    let lvmlockd = lvmlockd.wait(host, &bell, ANSWER);
    let late = lvmlockd.is_ok() && host.system.monotonic().since(began) > TOGETHER;
    let mut sanlock = sanlock.wait(host, &bell, ANSWER);
    if late && sanlock.is_ok() {
        // It dropped a lockspace meanwhile, mostly, which sanlock still had when it was asked.
        sanlock = ask_sanlock().wait(host, &bell, ANSWER);
    }
    let watchdog = wdmd.wait(host, &bell, ANSWER).unwrap_or_else(|e| Watchdog {
        problem: Some(e.to_string()),
        ..Watchdog::default()
    });
    let lock_manager = match (lvmlockd, sanlock) {
        (Ok(l), Ok(s)) => LockManager::Running(merge(l, &s)),
        (Ok(l), Err(problem)) => LockManager::SanlockUnavailable(problem.to_string(), l),
        (Err(problem), sanlock) => {
            let alive = |l: &SanlockLockspace| l.state != LockspaceState::Removing;
            let held = |s: SanlockStatus| {
                let all = s.lockspaces.into_iter().filter(alive);
                all.map(|l| l.name).collect()
            };
            LockManager::LvmlockdUnavailable(problem.to_string(), sanlock.ok().map(held))
        }
    };
    (lock_manager, watchdog)
}

/// lvmlockd's lockspaces with what sanlock knows of each; and those of LVM that only sanlock has (a drop leaves one there while it is being
/// removed, a dead lvmlockd for good).
pub(super) fn merge(lvmlockd: Vec<Lockspace>, sanlock: &SanlockStatus) -> Vec<Lockspace> {
    const PREFIX: &str = "lvm_";
    let alive: BTreeSet<String> = lvmlockd
        .iter()
        .filter(|l| l.state != LockspaceState::Removing)
        .map(|l| l.name.clone())
        .collect();
    let mut merged: Vec<Lockspace> = lvmlockd
        .into_iter()
        .map(|l| {
            // The remains of an earlier life: what sanlock says is about the present one.
            let superseded = l.state == LockspaceState::Removing && alive.contains(&l.name);
            let same = sanlock
                .lockspaces
                .iter()
                .filter(|s| !superseded && s.name == l.name);
            match same.min_by_key(|s| s.state == LockspaceState::Removing) {
                Some(s) => Lockspace {
                    host_id: s.host_id,
                    generation: s.generation.or(l.generation),
                    io_timeout: s.io_timeout,
                    last_renewal: s.last_renewal,
                    state: s.state,
                    ..l
                },
                // Not begun yet, or over: in either case it does not hold the watchdog.
                None if l.state == LockspaceState::Adding => l,
                None => Lockspace {
                    state: LockspaceState::Removing,
                    ..l
                },
            }
        })
        .collect();
    let known: BTreeSet<String> = merged.iter().map(|l| l.name.clone()).collect();
    let only_sanlock = sanlock
        .lockspaces
        .iter()
        .filter(|s| !known.contains(&s.name));
    merged.extend(only_sanlock.filter_map(|s| {
        Some(Lockspace {
            name: s.name.clone(),
            vg_name: s.name.strip_prefix(PREFIX)?.to_owned(),
            host_id: s.host_id,
            generation: s.generation,
            io_timeout: s.io_timeout,
            last_renewal: s.last_renewal,
            state: s.state,
            ..Lockspace::default()
        })
    }));
    merged
}
