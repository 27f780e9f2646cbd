//! What stands fenced, and what speaks against lifting it. Touches nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{ASK, Obstacle, Step, go_on, wait_for};
use crate::agent::executor::limited;
use crate::agent::journal::{GroupRecord, Journal, MapRecord, Record, Standing as Guarded};
use crate::agent::observe::{observe, physical_volumes};
use crate::fence::report::{StepKind, StepResult};
use crate::fence::unfence::{
    Blocker, BlockerReason, GroupReport, Health, LockState, Opener, Seen, Standing, UnfenceOrder,
    UnfenceOutcome, UnfenceReport, blockers, lock_state, standing,
};
use crate::fence::{DmDevice, Inventory, LockManager, Monotonic};
use crate::host::Host;

/// How long an inventory may take: three daemons that are asked side by side, each with a limit of its own.
pub(super) const OBSERVE: Duration = Duration::from_secs(20);
/// How long to search for openers. What was found by then is told.
const SEARCH: Duration = Duration::from_secs(3);

/// What was found.
pub(super) struct Found {
    pub(super) boot_id: String,
    pub(super) groups: Vec<GroupReport>,
    pub(super) blockers: Vec<Blocker>,
    /// Fences of these that an earlier attempt lifted, for whatever order.
    pub(super) lifted: Vec<Guarded>,
}

/// Looks. The blocker in the error says why it is not known how things stand; interrupted, it has seen nothing.
pub(super) fn look(
    host: &Host,
    journal: &Journal,
    order: &UnfenceOrder,
    previous: Option<&UnfenceReport>,
    interrupt: &dyn Fn() -> bool,
) -> Step<Found> {
    let unknown = |message: String| {
        Obstacle::Blocked(vec![Blocker::new(BlockerReason::StateUnknown, "", message)])
    };
    let inventory = wait_for(host, interrupt, "looking at the node", OBSERVE, observe)?
        .map_err(|e| unknown(format!("the node's storage cannot be looked at: {e}")))?;
    match &inventory.lock_manager {
        LockManager::Running(_) => {}
        LockManager::LvmlockdUnavailable(why, _) | LockManager::SanlockUnavailable(why, _) => {
            return Err(unknown(format!(
                "the lock manager does not answer, so it is not known whether the former lockspace is gone: {why}"
            )));
        }
    }
    let journal_error = |e: crate::agent::journal::Error| unknown(e.to_string());
    // One that did not come to its end may have given way to the one in the journal.
    let left = journal.left().map_err(journal_error)?;
    let aside = journal.set_aside().map_err(journal_error)?;
    let records: Vec<Record> = left.into_iter().chain(aside).collect();
    let guarded = journal.standings().all().map_err(journal_error)?;
    let lifts = journal.half_way().map_err(journal_error)?;
    let of_this_boot = previous.filter(|p| p.boot_id == inventory.boot_id);
    let unfinished = of_this_boot.filter(|p| p.outcome != UnfenceOutcome::Done);
    let mut recorded = recorded(&records, &guarded);
    // What earlier attempts knew, of this agent or of the one before: the last device may be gone by now, and the lockspace still be missing.
    let earlier = lifts.iter().map(|l| &l.report).chain(unfinished);
    for group in earlier.flat_map(|report| &report.groups) {
        if recorded.iter().all(|r| r.uuid != group.standing.uuid) {
            recorded.push(group.standing.clone());
        }
    }
    let devices = devices(&inventory);
    let mut groups = Vec::new();
    let mut all = Vec::new();
    for group in standing(&inventory, recorded, order) {
        let before = of_this_boot
            .and_then(|p| p.groups.iter().find(|g| g.standing.uuid == group.uuid))
            .cloned()
            .unwrap_or_default();
        go_on(interrupt)?;
        let (health, in_use, blockers) =
            look_at(host, &group, &inventory, &devices, &before.health, order)?;
        all.extend(blockers);
        let left = group.error_devices(&devices).len();
        groups.push(GroupReport {
            health,
            in_use,
            devices_total: before.devices_total.max(before.devices_removed + left),
            devices_removed: before.devices_removed,
            joined: before.joined,
            renamed: before.renamed,
            standing: group,
        });
    }
    // Of the order's own volume groups: another order may be half-way with others.
    let mut lifted: Vec<Guarded> = lifts.into_iter().flat_map(|l| l.lifted).collect();
    lifted.retain(|l| groups.iter().any(|g| g.standing.uuid == l.group.uuid));
    Ok(Found {
        boot_id: inventory.boot_id,
        groups,
        blockers: all,
        lifted,
    })
}

/// The volume groups that fences are known to have left: those that are guarded, and those of fences that ended without proof. `records`: the latest
/// first.
pub(in crate::agent) fn recorded(records: &[Record], guarded: &[Guarded]) -> Vec<Standing> {
    let detailed: Vec<Standing> = records.iter().flat_map(of_record).collect();
    let mut all: Vec<Standing> = guarded
        .iter()
        .map(|g| {
            let known = detailed.iter().find(|d| d.uuid == g.group.uuid);
            known.cloned().unwrap_or_else(|| Standing {
                lockspace: g.lockspace.clone().unwrap_or_default(),
                host_id: g.host_id,
                generation: g.generation,
                ..of_group(&g.group, |_| true)
            })
        })
        .collect();
    let unproven = records.iter().filter(|r| r.unfinished());
    for group in unproven.flat_map(of_record) {
        if all.iter().all(|a| a.uuid != group.uuid) {
            all.push(group);
        }
    }
    all
}

fn of_record(record: &Record) -> Vec<Standing> {
    let report = record.finished.as_ref().unwrap_or(&record.begun.report);
    let turned_off = |map: &MapRecord| {
        record.steps.iter().any(|s| {
            s.kind == StepKind::Quiesce
                && s.map.as_deref() == Some(map.name.as_str())
                && !matches!(s.result, StepResult::Planned | StepResult::Skipped)
        })
    };
    let groups = record.begun.groups.iter().zip(&report.volume_groups);
    groups
        .map(|(group, report)| Standing {
            lockspace: report.lockspace.clone().unwrap_or_default(),
            host_id: report.host_id,
            generation: report.generation,
            order: report.devices.iter().map(|d| d.uuid.to_string()).collect(),
            ..of_group(group, turned_off)
        })
        .collect()
}

fn of_group(group: &GroupRecord, turned_off: impl Fn(&MapRecord) -> bool) -> Standing {
    Standing {
        name: group.name.clone(),
        uuid: group.uuid.clone(),
        lvmlock: group.lvmlock.clone(),
        maps: group
            .maps
            .iter()
            .map(|m| (m.uuid.clone(), m.name.clone()))
            .collect(),
        turned_off: group
            .maps
            .iter()
            .filter(|m| turned_off(m))
            .map(|m| m.uuid.clone())
            .collect(),
        pvs: group.pvs.clone(),
        ..Standing::default()
    }
}

fn look_at(
    host: &Host,
    group: &Standing,
    inventory: &Inventory,
    devices: &[DmDevice],
    before: &Health,
    order: &UnfenceOrder,
) -> Step<(Health, bool, Vec<Blocker>)> {
    let theirs = group.clone();
    let pvs = limited::call(host, "looking at the paths", ASK, move |h| {
        physical_volumes(h, &theirs)
    });
    let pvs = pvs.map_err(|e| {
        let message = format!("the paths of {} cannot be looked at: {e}", group.name);
        let blocker = Blocker::new(BlockerReason::StateUnknown, &group.name, message);
        Obstacle::Blocked(vec![blocker])
    })?;
    let now = host.system.monotonic();
    let first = *before == Health::default();
    let health = Health::look((!first).then_some(before), &pvs, now);
    let open: Vec<DmDevice> = group
        .error_devices(devices)
        .into_iter()
        .filter(|d| d.open_count > 0)
        .cloned()
        .collect();
    let openers = openers(host, open);
    let lock = lock_state(group, inventory);
    let seen = Seen {
        devices,
        pvs: &pvs,
        health: &health,
        openers: &openers,
        lock: &lock,
    };
    let blockers = blockers(group, order.healthy_for, seen);
    let in_use = matches!(lock, LockState::Joined { .. } | LockState::Joining);
    Ok((health, in_use, blockers))
}

/// Every device of LVM's.
pub(super) fn devices(inventory: &Inventory) -> Vec<DmDevice> {
    let groups = inventory.volume_groups.iter();
    groups
        .flat_map(|g| g.devices.iter().map(AsRef::as_ref).chain(&g.lvmlock))
        .cloned()
        .collect()
}

/// Who holds devices open, as far as is found in time.
pub(super) fn openers(host: &Host, devices: Vec<DmDevice>) -> Vec<Opener> {
    if devices.is_empty() {
        return Vec::new();
    }
    let found = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&found);
    let search = move |h: &Host| {
        h.openers.of(&devices, &mut |opener| {
            tell.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(opener);
        });
        Ok(())
    };
    // A search that takes too long has told what it found.
    let _ = limited::call(host, "searching for openers", SEARCH, search);
    let mut found: Vec<Opener> =
        std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    found.sort();
    found
}

/// Where the clock stands, for whoever only has a host.
pub(super) fn now(host: &Host) -> Monotonic {
    host.system.monotonic()
}
