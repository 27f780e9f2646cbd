//! What a fence will do, in order, from what is known of the node: printed by a dry run, followed by a real one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::budget::{ResetWindow, watchdog_client};
use super::inventory::{DevNo, DmDevice, Inventory, MultipathMap, PvKind, VolumeGroup};
use super::order::{Order, ReleaseLocks};
use super::report::{
    DeviceReport, FenceReport, StepKind, StepReport, StepResult, VolumeGroupReport, WatchdogReport,
};
use super::time::Monotonic;
use super::topology::swap_levels;

/// The steps of a fence, and what it begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The report before the first step: every step `Planned`, or `Skipped` with the reason.
    pub report: FenceReport,
    /// When the watchdog may reset the host.
    pub reset: Option<ResetWindow>,
}

impl Plan {
    /// Makes the plan to fence `groups`, which [`super::selection::select`] chose from `inventory`.
    #[must_use]
    pub fn new(
        order: &Order,
        inventory: &Inventory,
        groups: &[VolumeGroup],
        now: Monotonic,
    ) -> Self {
        // What stands fenced waits for no watchdog any more.
        let awake = groups.iter().filter(|g| !g.stands);
        let lockspaces = || awake.clone().filter_map(|g| g.lockspace.as_ref());
        let reset = ResetWindow::of(lockspaces(), &inventory.watchdog);
        let keeps_armed =
            |name: &str| lockspaces().any(|l| watchdog_client(&l.name, l.host_id) == name);
        let armed = inventory.watchdog.known
            && inventory.watchdog.clients.iter().any(|c| keeps_armed(&c.0));
        let report = FenceReport {
            request: order.name.clone(),
            uid: order.uid.clone(),
            generation: order.generation,
            boot_id: inventory.boot_id.clone(),
            started: now,
            volume_groups: groups.iter().map(group).collect(),
            steps: steps(order, groups, inventory),
            watchdog: WatchdogReport {
                armed,
                budget: reset.map(|r| r.budget(now)),
                disarmed_after: None,
            },
            notes: unknown_watchdog(inventory)
                .into_iter()
                .chain(shared_maps(inventory, groups))
                .collect(),
            ..FenceReport::default()
        };
        Self { report, reset }
    }
}

fn unknown_watchdog(inventory: &Inventory) -> Option<String> {
    let watchdog = &inventory.watchdog;
    let why = watchdog.problem.as_deref().unwrap_or("no reason is known");
    let says =
        format!("Whether the watchdog is armed is not known, since wdmd does not answer: {why}");
    (!watchdog.known).then_some(says)
}

/// The multipath maps under a volume group, each once.
#[must_use]
pub fn maps(group: &VolumeGroup) -> Vec<&MultipathMap> {
    let mut maps: Vec<&MultipathMap> = Vec::new();
    for pv in &group.pvs {
        if let PvKind::Multipath(map) = &pv.kind
            && !maps.iter().any(|m| m.uuid == map.uuid)
        {
            maps.push(map);
        }
    }
    maps
}

/// Names of volume groups outside of the order that lie on that map too: two partitions of one, say.
fn others_on<'a>(
    map: &MultipathMap,
    inventory: &'a Inventory,
    groups: &[VolumeGroup],
) -> Vec<&'a str> {
    let outside = |g: &&VolumeGroup| groups.iter().all(|f| f.uuid != g.uuid);
    let all = inventory.volume_groups.iter().filter(outside);
    let on_it = all.filter(|g| maps(g).iter().any(|m| m.uuid == map.uuid));
    on_it.map(|g| g.name.as_str()).collect()
}

/// Queueing is the map's, whichever volume group it is turned off for.
fn shared_maps(inventory: &Inventory, groups: &[VolumeGroup]) -> Vec<String> {
    let mut notes = Vec::new();
    for vg in groups {
        for map in maps(vg) {
            let others = others_on(map, inventory, groups).join(", ");
            let note = format!(
                "Map {} under {} also carries volume group {others}, which is not fenced: while no path of the map works, its I/O fails at once too \
                 instead of waiting, for as long as the fence stands",
                map.name, vg.name
            );
            if !others.is_empty() && !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes
}

fn group(vg: &VolumeGroup) -> VolumeGroupReport {
    let (paths_active, paths_total) = vg.paths();
    VolumeGroupReport {
        name: vg.name.clone(),
        uuid: vg.uuid.clone(),
        lockspace: vg.lockspace_name(),
        // Of one that was fenced without a lockspace it is not known; they begin at 1.
        host_id: vg
            .lockspace
            .as_ref()
            .map(|l| l.host_id)
            .filter(|id| *id > 0),
        generation: vg.lockspace.as_ref().and_then(|l| l.generation),
        paths_total,
        paths_active,
        maps: maps(vg).iter().map(|m| m.name.clone()).collect(),
        devices: Arc::new(top_down(vg).map(device).collect()),
        released_after: None,
    }
}

fn top_down(vg: &VolumeGroup) -> impl Iterator<Item = &DmDevice> {
    let order = swap_levels(vg).into_iter().flatten();
    let by_dev: BTreeMap<DevNo, &DmDevice> =
        vg.devices.iter().map(|d| (d.dev, d.as_ref())).collect();
    order.filter_map(move |dev| by_dev.get(&dev).copied())
}

fn device(d: &DmDevice) -> DeviceReport {
    DeviceReport {
        dev: d.dev,
        name: d.name.clone(),
        uuid: d.uuid.clone(),
        open_count: d.open_count,
        ..DeviceReport::default()
    }
}

fn step(kind: StepKind, vg: &VolumeGroup, message: String) -> StepReport {
    StepReport {
        kind,
        volume_group: vg.name.clone(),
        map: None,
        result: StepResult::Planned,
        at: None,
        took: None,
        message: Some(message),
        untold: false,
    }
}

fn skipped(kind: StepKind, vg: &VolumeGroup, why: String) -> StepReport {
    StepReport {
        result: StepResult::Skipped,
        ..step(kind, vg, why)
    }
}

fn steps(order: &Order, groups: &[VolumeGroup], inventory: &Inventory) -> Vec<StepReport> {
    let all = |make: &dyn Fn(&VolumeGroup) -> StepReport| groups.iter().map(make).collect();
    let freeze: Vec<_> = all(&|vg| {
        let what = if vg.unlocked {
            format!(
                "nobody holds the locks of {}: see that this is still so",
                vg.name
            )
        } else {
            format!("have lvmlockd grant no more locks in {}", vg.name)
        };
        step(StepKind::FreezeLocks, vg, what)
    });
    let swap: Vec<_> = all(&|vg| {
        let what = format!(
            "replace the tables of {} devices by the error target",
            vg.devices.len()
        );
        step(StepKind::Swap, vg, what)
    });
    let verify: Vec<_> = all(&|vg| {
        let what = "read every device back from the kernel".to_owned();
        step(StepKind::Verify, vg, what)
    });
    let release: Vec<_> =
        all(&|vg| release_step(order, vg, StepKind::Release, "drop the lockspace"));
    let confirm: Vec<_> = all(&|vg| {
        let what = "see that sanlock and wdmd let go of the lockspace";
        release_step(order, vg, StepKind::ConfirmRelease, what)
    });
    [
        freeze,
        quiesce(groups, inventory),
        swap,
        verify,
        release,
        confirm,
    ]
    .concat()
}

fn release_step(order: &Order, vg: &VolumeGroup, kind: StepKind, what: &str) -> StepReport {
    let name = vg.lockspace_name().unwrap_or_default();
    match order.release_locks {
        ReleaseLocks::AfterProof => step(kind, vg, format!("{what} {name}")),
        ReleaseLocks::Never => skipped(kind, vg, "the request keeps the locks".into()),
    }
}

fn quiesce(groups: &[VolumeGroup], inventory: &Inventory) -> Vec<StepReport> {
    let mut seen: Vec<&str> = Vec::new();
    let mut steps = Vec::new();
    for vg in groups {
        let maps = maps(vg);
        if maps.is_empty() {
            let why = "no multipath map below: nothing queues I/O".to_owned();
            steps.push(skipped(StepKind::Quiesce, vg, why));
        }
        for map in maps {
            if seen.contains(&map.uuid.as_str()) {
                continue;
            }
            seen.push(&map.uuid);
            let active = map.paths.iter().filter(|p| p.active).count();
            let planned = if active > 0 {
                let n = map.paths.len();
                let why = format!("{active} of {n} paths work: I/O ends by itself");
                skipped(StepKind::Quiesce, vg, why)
            } else {
                let others = others_on(map, inventory, groups);
                let too = if others.is_empty() {
                    String::new()
                } else {
                    format!(", also that of volume group {}", others.join(", "))
                };
                let name = &map.name;
                let what = format!("have map {name} fail I/O instead of queueing it{too}");
                step(StepKind::Quiesce, vg, what)
            };
            steps.push(StepReport {
                map: Some(map.name.clone()),
                ..planned
            });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::inventory::{LockManager, PhysicalVolume, Watchdog};

    fn on(name: &str, map: &str) -> VolumeGroup {
        let map = MultipathMap {
            name: map.into(),
            uuid: format!("mpath-{map}"),
            ..MultipathMap::default()
        };
        VolumeGroup {
            name: name.into(),
            uuid: name.into(),
            pvs: vec![PhysicalVolume {
                dev: DevNo::default(),
                uuid: String::new(),
                kind: PvKind::Multipath(map),
            }],
            ..VolumeGroup::default()
        }
    }

    #[test]
    fn a_map_that_carries_another_volume_group_too_is_told() {
        let inventory = Inventory {
            taken_at: Monotonic::default(),
            boot_id: "boot".into(),
            volume_groups: vec![on("a", "m"), on("b", "m"), on("c", "n")],
            lock_manager: LockManager::Running(Vec::new()),
            watchdog: Watchdog {
                known: true,
                ..Watchdog::default()
            },
        };
        let plan = |names: &[&str]| {
            let wanted = |g: &&VolumeGroup| names.contains(&g.name.as_str());
            let groups: Vec<_> = inventory
                .volume_groups
                .iter()
                .filter(wanted)
                .cloned()
                .collect();
            Plan::new(&Order::default(), &inventory, &groups, Monotonic::default()).report
        };
        let told = plan(&["a"]);
        assert_eq!(told.notes.len(), 1);
        assert!(told.notes[0].starts_with("Map m under a also carries volume group b, "));
        let quiesce = told.steps.iter().find(|s| s.kind == StepKind::Quiesce);
        let message = quiesce.and_then(|s| s.message.clone()).unwrap_or_default();
        assert!(
            message.ends_with("also that of volume group b"),
            "{message}"
        );
        assert_eq!(plan(&["a", "b"]).notes, Vec::<String>::new());
        assert_eq!(plan(&["c"]).notes, Vec::<String>::new());
    }
}
