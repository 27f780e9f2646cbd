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
    let silent = matches!(
        inventory.lock_manager,
        LockManager::LvmlockdUnavailable(_, None)
    );
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
        // One that was left again after it had been joined has nothing open.
        let joined = standing.joined && !group.fenced();
        // By another name, perhaps: what nobody held when it was fenced has only its devices to tell.
        let untold = standing.host_id.is_none() && !group.fenced() && silent;
        if joined || untold || is_in_use_anew(standing, &name, &held) {
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

/// Whether it was joined again since, though lvmlockd does not tell: one that was started anew knows a lockspace again only when it has adopted it. What
/// lvmlockd tells of another volume group is not meant, whatever its name.
fn is_in_use_anew(standing: &Standing, name: &str, held: &[Lockspace]) -> bool {
    let another = |l: &Lockspace| {
        let known = l.host_id != 0;
        let differs = matches!((standing.generation, l.generation), (Some(a), Some(b)) if a != b);
        standing.locks == LocksOutcome::Released
            || standing.host_id.is_none()
            || known && (differs || standing.host_id != Some(l.host_id))
    };
    let mut all = held.iter().filter(|l| l.is_of(&standing.group.uuid, name));
    all.any(|l| standing.joined || another(l))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::{DmDevice, Monotonic, Target};

    fn standing(locks: LocksOutcome) -> Standing {
        let report = FenceReport {
            locks,
            volume_groups: vec![crate::fence::report::VolumeGroupReport {
                lockspace: Some("lvm_vg".into()),
                host_id: Some(7),
                generation: Some(3),
                ..crate::fence::report::VolumeGroupReport::default()
            }],
            ..FenceReport::default()
        };
        let group = GroupRecord {
            name: "vg".into(),
            uuid: "u".into(),
            ..GroupRecord::default()
        };
        let mut all = Standing::of(&report, &[group], Monotonic::from_secs(1));
        all.remove(0)
    }

    #[test]
    fn what_sanlock_alone_has_of_that_name_is_the_former_life_or_another() {
        let known = |host_id, generation| Lockspace {
            name: "lvm_vg".into(),
            host_id,
            generation,
            ..Lockspace::default()
        };
        let same = known(7, Some(3));
        let others = Lockspace {
            vg_uuid: "v".into(),
            ..same.clone()
        };
        let change = |change: fn(&mut Standing)| {
            let mut one = standing(LocksOutcome::NotConfirmed);
            change(&mut one);
            one
        };
        let kept = standing(LocksOutcome::NotConfirmed);
        let released = standing(LocksOutcome::Released);
        let without = change(|s| (s.host_id, s.generation) = (None, None));
        let joined = change(|s| s.joined = true);
        for (one, there, anew) in [
            (&kept, Some(&same), false),
            (&kept, Some(&known(7, None)), false),
            (&kept, Some(&known(7, Some(4))), true),
            (&kept, Some(&known(8, Some(3))), true),
            // Only the name is known.
            (&kept, Some(&known(0, None)), false),
            (&kept, None, false),
            (&released, Some(&same), true),
            (&released, Some(&others), false),
            (&released, None, false),
            (&without, Some(&same), true),
            (&without, None, false),
            (&joined, Some(&same), true),
            (&joined, Some(&others), false),
            // It was left again since.
            (&joined, None, false),
        ] {
            let held: Vec<_> = there.into_iter().cloned().collect();
            assert_eq!(
                is_in_use_anew(one, "lvm_vg", &held),
                anew,
                "{one:?} {there:?}"
            );
        }
    }

    #[test]
    fn what_has_something_open_stands_only_while_it_is_surely_not_in_use_anew() {
        let device = |kind: &str| {
            std::sync::Arc::new(DmDevice {
                sectors: 8,
                targets: vec![Target {
                    length: 8,
                    kind: kind.into(),
                    ..Target::default()
                }]
                .into(),
                ..DmDevice::default()
            })
        };
        let running = || LockManager::Running(Vec::new());
        let silent = || LockManager::LvmlockdUnavailable("gone".into(), None);
        let told = || LockManager::LvmlockdUnavailable("gone".into(), Some(Vec::new()));
        let kept = standing(LocksOutcome::NotConfirmed);
        let joined = Standing {
            joined: true,
            ..kept.clone()
        };
        let without = Standing {
            host_id: None,
            generation: None,
            ..standing(LocksOutcome::Released)
        };
        for (one, open, lock_manager, stands) in [
            (&kept, true, running(), true),
            (&kept, true, silent(), true),
            (&joined, true, running(), false),
            (&joined, true, silent(), false),
            // It was left again since.
            (&joined, false, running(), true),
            (&without, true, running(), true),
            (&without, true, told(), true),
            (&without, true, silent(), false),
            (&without, false, silent(), true),
        ] {
            let kinds: &[&str] = if open {
                &["error", "linear"]
            } else {
                &["error"]
            };
            let inventory = Inventory {
                taken_at: Monotonic::from_secs(1),
                boot_id: "b".into(),
                volume_groups: vec![VolumeGroup {
                    uuid: "u".into(),
                    devices: kinds.iter().copied().map(device).collect(),
                    ..VolumeGroup::default()
                }],
                lock_manager,
                watchdog: crate::fence::Watchdog::default(),
            };
            let told = with_standings(inventory, std::slice::from_ref(one));
            assert_eq!(
                told.volume_groups[0].stands, stands,
                "{one:?} {open} {:?}",
                told.lock_manager
            );
        }
    }
}
