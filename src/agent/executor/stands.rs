//! Volume groups that stand fenced already, for an order that means them too.
//!
//! Their lockspace is gone, so by themselves they look like local ones, and an order would be refused: the status of a request whose spec was
//! edited would deny the fence that stands, and a health controller be told that a fenced node cannot be fenced. So they count as what they
//! were: the fence is read back, and what was released is seen to be released.

use std::time::Duration;

use crate::agent::journal::{GroupRecord, Standing};
use crate::fence::report::{FenceReport, LocksOutcome};
use crate::fence::{Inventory, LockManager, Lockspace, LockspaceState, VolumeGroup};
use crate::host::Host;

/// The inventory in which they are told. Pure.
#[must_use]
pub fn with_standings(mut inventory: Inventory, standings: &[Standing]) -> Inventory {
    let held = held(&inventory.lock_manager);
    for group in &mut inventory.volume_groups {
        // One that was joined again since is in use anew, and one without a device has nothing to be read back.
        if group.lockspace.is_some() || group.devices.is_empty() {
            continue;
        }
        let of_it = standings.iter().find(|s| s.group.uuid == group.uuid);
        let Some((standing, name)) = of_it.and_then(|s| Some((s, s.lockspace.clone()?))) else {
            continue;
        };
        if is_in_use_anew(standing, &name, &held) {
            continue;
        }
        group.name.clone_from(&standing.group.name);
        group.stands = true;
        group.lockspace = Some(Lockspace {
            name,
            vg_name: standing.group.name.clone(),
            vg_uuid: group.uuid.clone(),
            host_id: standing.host_id.unwrap_or_default(),
            generation: standing.generation,
            state: LockspaceState::Removing,
            frozen: true,
            ..Lockspace::default()
        });
    }
    inventory
}

/// The lockspaces that are there, as far as they are known: by name, with what is known of them.
fn held(manager: &LockManager) -> Vec<Lockspace> {
    let named = |name: &String| Lockspace {
        name: name.clone(),
        ..Lockspace::default()
    };
    let all = match manager {
        LockManager::LvmlockdUnavailable(_, held) => held.iter().flatten().map(named).collect(),
        known => known.lockspaces().to_vec(),
    };
    let alive = |l: &Lockspace| l.state != LockspaceState::Removing;
    all.into_iter().filter(alive).collect()
}

/// Whether it was joined again since, though lvmlockd does not tell: one that was started anew knows a lockspace again only when it has adopted it.
fn is_in_use_anew(standing: &Standing, name: &str, held: &[Lockspace]) -> bool {
    let another = |l: &Lockspace| {
        let known = l.host_id != 0;
        let differs = matches!((standing.generation, l.generation), (Some(a), Some(b)) if a != b);
        standing.locks == LocksOutcome::Released
            || standing.host_id.is_none()
            || known && (differs || standing.host_id != Some(l.host_id))
    };
    standing.joined || held.iter().any(|l| l.name == name && another(l))
}

/// What the journal keeps of a volume group: of one that stands, what was known when it had not been fenced yet. Its physical volumes by what they are,
/// so that a number that has passed on since then is not taken for one, and one that came back under another is.
pub(super) fn record(host: &Host, vg: &VolumeGroup, standings: &[Standing]) -> GroupRecord {
    let of_it = standings
        .iter()
        .find(|s| vg.stands && s.group.uuid == vg.uuid);
    of_it.map_or_else(|| super::record(host, vg), |s| s.group.clone())
}

/// Of those that stand, the locks are released already where the fence saw that.
pub(super) fn tell_released(
    report: &mut FenceReport,
    groups: &[VolumeGroup],
    standings: &[Standing],
) {
    for (told, group) in report.volume_groups.iter_mut().zip(groups) {
        let seen = |s: &Standing| s.group.uuid == group.uuid && s.locks == LocksOutcome::Released;
        // One that was joined again since is not on its way out.
        let lockspace = group.lockspace.as_ref();
        let gone = lockspace.is_some_and(|l| l.state == LockspaceState::Removing);
        if gone && standings.iter().any(seen) {
            told.released_after = Some(Duration::ZERO);
        }
    }
}

/// A fence that stood before keeps its history: when it was proven first, and how often it did not hold. That this one came later is told beside it.
pub(super) fn carried_on(new: Standing, before: Option<Standing>) -> Standing {
    match before {
        Some(old) if (&old.lockspace, old.generation) == (&new.lockspace, new.generation) => {
            Standing {
                proven: old.proven,
                proven_anew: Some(new.proven),
                told: old.told,
                openings: old.openings,
                last_opening: old.last_opening,
                ..new
            }
        }
        _ => new,
    }
}
