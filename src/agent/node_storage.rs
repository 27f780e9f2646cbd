//! What a NodeStorage says, from an inventory. Pure; without clocks, so that it changes only when something has changed.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::hook::install::State;
use super::journal::Standing;
use super::report::{VERSION, cut};
use crate::api::condition::{self, whole_seconds};
use crate::api::node_storage::{
    FenceStatus, KillHookStatus, LockspaceStatus, PathStatus, PhysicalVolumeKind,
    PhysicalVolumeStatus, PreflightCheck, PreflightResult, VolumeGroupStatus, WatchdogStatus,
    condition_type,
};
use crate::api::takeover::DeclaredDead;
use crate::api::{Condition, ConditionStatus, NodeStorageStatus};
use crate::fence::budget::{ResetWindow, overdue, worst_case};
use crate::fence::inventory::paths_of;
use crate::fence::preflight::{Check, Facts, Verdict, preflight};
use crate::fence::{
    DmDevice, Inventory, LockManager, Lockspace, LockspaceState, Monotonic, Path, PhysicalVolume,
    PvKind, VolumeGroup, Watchdog,
};

// The limits of the schema.
const GROUPS: usize = 64;
const VOLUMES: usize = 64;
const PATHS: usize = 64;
/// In place of the state of a disk that runs, when its target denies the LUN.
const NO_SUCH_LUN: &str = "no-such-lun";
const OPEN_DEVICES: usize = 128;

/// One moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// What people read.
    pub wall: Timestamp,
    /// What leases and watchdogs count by.
    pub monotonic: Monotonic,
}

/// Who reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reporter {
    /// UID of the Node, once it is known.
    pub node_uid: Option<String>,
    /// Boot ID, for when there is no inventory.
    pub boot_id: String,
    /// Name and UID of the agent's pod: `NAME (UID)`.
    pub pod: Option<String>,
    /// Fences that stand.
    pub fences: Vec<FenceStatus>,
    /// Which policy governs which volume group, by UUID.
    pub policies: BTreeMap<String, String>,
    /// What the preflight has to know besides the inventory, the kill hook aside.
    pub facts: Facts,
    /// The kill hook, when it is looked at.
    pub kill_hook: Option<KillHookStatus>,
    /// What came of the peers that were to be declared dead.
    pub declared_dead: Vec<DeclaredDead>,
}

/// What is told of the kill hook.
#[must_use]
pub fn kill_hook(state: &State) -> KillHookStatus {
    KillHookStatus {
        state: state.reason().to_owned(),
        message: cut(&state.message(), 1024),
    }
}

/// What is told of the fences that stand.
#[must_use]
pub fn fences(standing: &[Standing]) -> Vec<FenceStatus> {
    let fence = |s: &Standing| {
        let opening = s.last_opening.as_ref();
        let devices = opening.map(|o| o.devices.as_slice()).unwrap_or_default();
        FenceStatus {
            volume_group: cut(&s.group.name, 127),
            uuid: cut(&s.group.uuid, 64),
            by: cut(&s.by, 253),
            locks: format!("{:?}", s.locks),
            openings: s.openings.try_into().unwrap_or(i32::MAX),
            last_opening_milliseconds: opening
                .and_then(|o| o.open_at_most)
                .map(|open| open.as_millis().try_into().unwrap_or(i64::MAX)),
            last_opening_devices: devices.iter().take(16).map(|d| cut(d, 128)).collect(),
        }
    };
    standing.iter().take(GROUPS).map(fence).collect()
}

/// The status for an inventory, or for the reason why there is none. What was told `before` keeps its times, of the conditions' transitions and of the reset.
#[must_use]
pub fn status(
    inventory: Result<&Inventory, &str>,
    reporter: &Reporter,
    before: &NodeStorageStatus,
    now: Moment,
) -> NodeStorageStatus {
    let mut status = NodeStorageStatus {
        node_uid: reporter.node_uid.clone(),
        boot_id: reporter.boot_id.clone(),
        agent_version: VERSION.to_owned(),
        agent_pod: reporter.pod.clone(),
        paths: "0/0".to_owned(),
        conditions: before.conditions.clone(),
        fences: reporter.fences.clone(),
        kill_hook: reporter.kill_hook.clone(),
        declared_dead: reporter.declared_dead.clone(),
        ..NodeStorageStatus::default()
    };
    if let Ok(inventory) = inventory {
        fill(&mut status, inventory, &reporter.policies);
        let reset_at = reset_at(inventory, now);
        if let Some(watchdog) = &mut status.watchdog {
            let before = before.watchdog.as_ref().and_then(|w| w.reset_at);
            watchdog.reset_at = reset_at.map(|at| steady(at, before));
        }
    }
    let hook = reporter.kill_hook.as_ref();
    let facts = Facts {
        kill_hook: hook.map(|h| (h.state == State::InForce.reason(), h.message.clone())),
        ..reporter.facts.clone()
    };
    let checks = preflight(inventory, &facts);
    let (ready, reason, mut message) = match inventory {
        Ok(inventory) => ready(inventory),
        Err(why) => (
            false,
            "DeviceMapperUnavailable",
            format!(
                "device mapper cannot be used, so nothing could be fenced: {why}. Is the pod privileged, and is dm_mod loaded?"
            ),
        ),
    };
    let warnings: Vec<&str> = checks
        .iter()
        .filter(|c| c.verdict == Verdict::Warning)
        .map(|c| c.name)
        .collect();
    if !warnings.is_empty() {
        message.push_str(". Not as good as it could be: ");
        message.push_str(&warnings.join(", "));
        message.push_str("; status.preflight says what to do");
    }
    status.preflight = checks.iter().map(preflight_check).collect();
    let ready = if ready {
        ConditionStatus::True
    } else {
        ConditionStatus::False
    };
    let ready = (condition_type::READY, ready, reason, message);
    let (held, reason, message) = locks_held(inventory);
    let held = (condition_type::LOCKS_HELD, held, reason, message);
    for (type_, is, reason, message) in [ready, held] {
        let condition = Condition {
            type_: type_.to_owned(),
            status: is,
            observed_generation: None,
            last_transition_time: whole_seconds(now.wall),
            reason: reason.to_owned(),
            message: cut(&message, 4096),
        };
        condition::set(&mut status.conditions, condition);
    }
    status
}

/// Whether somebody holds the locks of every volume group that reaches the SAN, why, and in words.
fn locks_held(inventory: Result<&Inventory, &str>) -> (ConditionStatus, &'static str, String) {
    let groups = inventory.map(|i| i.volume_groups.as_slice());
    let without = groups.unwrap_or_default().iter().filter(|g| g.unlocked);
    let names: Vec<&str> = without.map(|g| g.name.as_str()).collect();
    if !names.is_empty() {
        return (ConditionStatus::False, OPEN_WITHOUT_LOCK, in_words(&names));
    }
    match inventory.map(|i| &i.lock_manager) {
        Ok(LockManager::Running(_)) => (
            ConditionStatus::True,
            "AllHeld",
            "Every shared volume group that reaches the SAN has its lockspace".to_owned(),
        ),
        _ => (
            ConditionStatus::Unknown,
            "NotKnown",
            "Device mapper or the lock manager does not answer: Ready says which".to_owned(),
        ),
    }
}

/// Reason of `LocksHeld=False`, and of the event about it.
pub const OPEN_WITHOUT_LOCK: &str = "OpenWithoutLock";

/// What is so, and what to do.
#[must_use]
pub fn in_words(volume_groups: &[&str]) -> String {
    format!(
        "Devices of {} reach the SAN, and nobody holds a lock for them or has the watchdog wait for them: another host may be given the same volumes. \
         If the SAN is away, have them fenced before its paths come back (a StorageFenceRequest that names them), or reset the node. If a path works, \
         at once: with whenPathsRemain: Fence, or by a reset (docs/bad-night.md)",
        volume_groups.join(", ")
    )
}

fn preflight_check(check: &Check) -> PreflightCheck {
    PreflightCheck {
        name: check.name.to_owned(),
        result: match check.verdict {
            Verdict::Passed => PreflightResult::Passed,
            Verdict::Unknown => PreflightResult::Unknown,
            Verdict::Warning => PreflightResult::Warning,
            Verdict::Failed => PreflightResult::Failed,
        },
        message: cut(&check.message, 1024),
    }
}

/// Whether the node could be fenced now, why, and in words.
fn ready(inventory: &Inventory) -> (bool, &'static str, String) {
    match &inventory.lock_manager {
        LockManager::LvmlockdUnavailable(why, _) => (
            false,
            "LvmlockdUnavailable",
            format!(
                "lvmlockd does not answer ({why}): which volume groups are shared is not known, and no lock could be released. Start lvmlockd on \
                 the node, but not while the SAN is away (docs/bad-night.md)"
            ),
        ),
        LockManager::SanlockUnavailable(why, _) => (
            false,
            "SanlockUnavailable",
            format!(
                "sanlock does not answer ({why}): the release of a lockspace could not be proven. Start sanlock on the node"
            ),
        ),
        LockManager::Running(_) if !inventory.watchdog.known => {
            let why = inventory
                .watchdog
                .problem
                .as_deref()
                .unwrap_or("no reason given");
            (
                true,
                "WatchdogUnknown",
                format!(
                    "The node can be fenced, but wdmd does not answer ({why}): how much time there is cannot be told"
                ),
            )
        }
        LockManager::Running(_) => (
            true,
            "AllAnswer",
            "Device mapper, lvmlockd, sanlock and wdmd answer".to_owned(),
        ),
    }
}

fn fill(
    status: &mut NodeStorageStatus,
    inventory: &Inventory,
    policies: &BTreeMap<String, String>,
) {
    let shared = || inventory.volume_groups.iter().filter(|g| g.shared());
    // Below the fence as well: that the paths are back is what a fenced node waits for.
    let on_san = |g: &&VolumeGroup| g.on_san() || !g.recorded_pvs.is_empty();
    let on_san = inventory.volume_groups.iter().filter(on_san);
    let (up, all) = on_san.fold((0, 0), |(up, all), g| {
        let (u, a) = paths_of(g.known_pvs());
        (up + u, all + a)
    });
    let fenced: Vec<&str> = inventory
        .volume_groups
        .iter()
        .filter(|g| g.fenced())
        .map(|g| g.name.as_str())
        .collect();
    status.boot_id.clone_from(&inventory.boot_id);
    status.shared_volume_groups = count(shared().count());
    status.active_logical_volumes = count(shared().map(|g| volumes(g).count()).sum());
    status.paths = format!("{up}/{all}");
    status.fenced_volume_groups = cut(&fenced.join(","), 1024);
    status.volume_groups = inventory
        .volume_groups
        .iter()
        .take(GROUPS)
        .map(|g| VolumeGroupStatus {
            policy: policies.get(&g.uuid).cloned(),
            ..group(g)
        })
        .collect();
    status.watchdog = Some(watchdog(
        &inventory.watchdog,
        inventory.lock_manager.lockspaces(),
    ));
}

/// Devices that people know as logical volumes: the layers below them (pools, mirror legs) have a suffix to their UUID.
fn volumes(group: &VolumeGroup) -> impl Iterator<Item = &DmDevice> {
    const PLAIN: usize = "LVM-".len() + 32 + 32;
    let devices = group.devices.iter().map(AsRef::as_ref);
    devices.filter(|d: &&DmDevice| d.uuid.len() == PLAIN)
}

fn group(group: &VolumeGroup) -> VolumeGroupStatus {
    let mut open: Vec<&str> = volumes(group)
        .filter(|d| d.open_count > 0)
        .map(|d| d.name.as_str())
        .collect();
    let logical_volumes_open = count(open.len());
    // Of thousands, only those that are told need to be in order.
    if open.len() > OPEN_DEVICES {
        open.select_nth_unstable(OPEN_DEVICES);
        open.truncate(OPEN_DEVICES);
    }
    open.sort_unstable();
    VolumeGroupStatus {
        name: cut(&group.name, 127),
        uuid: cut(&group.uuid, 64),
        shared: group.shared(),
        lockspace: group.lockspace.as_ref().map(lockspace),
        physical_volumes: group
            .known_pvs()
            .iter()
            .take(VOLUMES)
            .map(physical_volume)
            .collect(),
        logical_volumes: count(volumes(group).count()),
        logical_volumes_open,
        open_devices: open.into_iter().map(|n| cut(n, 128)).collect(),
        fenced: group.fenced(),
        policy: None,
    }
}

fn lockspace(lockspace: &Lockspace) -> LockspaceStatus {
    let state = match lockspace.state {
        _ if lockspace.frozen => "Killed",
        LockspaceState::Adding => "Adding",
        LockspaceState::Healthy => "Healthy",
        LockspaceState::RenewalFailing => "RenewalFailing",
        LockspaceState::Expired => "Expired",
        LockspaceState::Removing => "Removing",
    };
    LockspaceStatus {
        name: cut(&lockspace.name, 64),
        host_id: lockspace.host_id.try_into().unwrap_or(i64::MAX),
        generation: lockspace.generation.and_then(|g| g.try_into().ok()),
        io_timeout_seconds: lockspace.io_timeout.try_into().unwrap_or(i32::MAX),
        state: state.to_owned(),
    }
}

fn physical_volume(pv: &PhysicalVolume) -> PhysicalVolumeStatus {
    let (device, kind, queueing) = match &pv.kind {
        PvKind::Multipath(map) => (&map.name, PhysicalVolumeKind::Multipath, map.queueing),
        PvKind::Disk(path) => (&path.name, PhysicalVolumeKind::Disk, false),
    };
    // Path groups are listed by priority, and that changes with every failure.
    let mut paths: Vec<&Path> = pv.paths().iter().collect();
    paths.sort_by_key(|p| p.dev);
    PhysicalVolumeStatus {
        device: cut(device, 128),
        kind,
        queueing,
        paths: paths
            .into_iter()
            .take(PATHS)
            .map(|p| PathStatus {
                device: cut(&p.name, 64),
                active: p.active,
                device_state: if p.denied {
                    NO_SUCH_LUN.to_owned()
                } else {
                    cut(&p.device_state, 32)
                },
            })
            .collect(),
    }
}

/// When the watchdog may reset the node because of leases that are not renewed.
fn reset_at(inventory: &Inventory, now: Moment) -> Option<Timestamp> {
    let all = inventory.lock_manager.lockspaces().iter();
    let counts = |l: &&Lockspace| l.state != LockspaceState::Removing;
    let overdue = all.filter(|l| counts(l) && overdue(l, inventory.taken_at));
    let earliest = ResetWindow::of(overdue, &inventory.watchdog)?.earliest;
    let left = SignedDuration::try_from(earliest.since(now.monotonic));
    let gone = SignedDuration::try_from(now.monotonic.since(earliest));
    let at = now.wall.checked_add(left.ok()?).ok()?;
    at.checked_sub(gone.ok()?).ok().map(whole_seconds)
}

/// A time that is counted anew each time is the one that was told before, but for what the clocks are adjusted by.
fn steady(at: Timestamp, before: Option<Timestamp>) -> Timestamp {
    let same = |before: &Timestamp| (before.as_second() - at.as_second()).abs() <= 2;
    before.filter(same).unwrap_or(at)
}

fn watchdog(watchdog: &Watchdog, lockspaces: &[Lockspace]) -> WatchdogStatus {
    if !watchdog.known {
        return WatchdogStatus {
            state: "Unknown".to_owned(),
            ..WatchdogStatus::default()
        };
    }
    let budget = lockspaces
        .iter()
        .map(|l| worst_case(l.io_timeout, watchdog.fire_timeout))
        .min();
    WatchdogStatus {
        state: if watchdog.clients.is_empty() {
            "Idle"
        } else {
            "Armed"
        }
        .to_owned(),
        fire_timeout_seconds: watchdog.fire_timeout.try_into().ok(),
        budget_seconds: budget.and_then(|b| b.as_secs().try_into().ok()),
        reset_at: None,
    }
}

fn count(n: usize) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "node_storage_tests.rs"]
mod tests;
