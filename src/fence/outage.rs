//! Whether the storage of volume groups is lost, since when, and whether it may return. Pure: inventories in, with the time at which each was
//! taken.
//!
//! | what | how it is told |
//! | --- | --- |
//! | all paths down (it may return) | no path works, and some disk of each physical volume is still there |
//! | gone for good | no path works, and each disk of a physical volume was dropped or given up by the kernel, or is [denied](super::denials) by its target |
//! | silent (a black hole) | paths look alive, commands are under way, and none ends |
//!
//! Flapping is damped: an outage is over only when a path has worked for [`SETTLE`]. It *began* with the first look that found none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::inventory::{DevNo, Inventory, PhysicalVolume, PvKind, VolumeGroup};
use super::time::Monotonic;
use super::topology::GONE;

/// How long a path has to work before an outage is over. multipathd's checkers bring a path back that fails with the next command.
pub const SETTLE: Duration = Duration::from_secs(3);
/// How long commands may be under way, and none end, before the storage counts as silent. Longer than a busy array takes for one of them.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);

/// How storage is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// No path works. Nobody knows whether they return.
    PathsDown,
    /// No path works, and at least one physical volume does not return by itself.
    DeviceGone,
}

/// A volume group without a working path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When it began.
    pub since: Monotonic,
    /// How it is lost.
    pub loss: Loss,
    /// Since when it is lost in this way.
    pub loss_since: Monotonic,
    /// Since when a path works again; the outage is not over before it has done so for a while. None: none does.
    pub up_since: Option<Monotonic>,
}

impl Outage {
    /// Whether no path works at present.
    #[must_use]
    pub fn down(&self) -> bool {
        self.up_since.is_none()
    }
}

/// Whether a disk in that state does not come back without somebody's doing. `offline`: the kernel's error handling gave it up, and neither the
/// return of its port nor multipathd changes that; the SCSI and NVMe states of a disk that is being removed; no disk at all.
fn never_returns(device_state: &str) -> bool {
    [
        GONE,
        "offline",
        "cancel",
        "deleted",
        "dead",
        "deleting",
        "deleting (no IO)",
    ]
    .contains(&device_state)
}

/// How a volume group's storage is lost; None while some path works, or where its physical volumes are not known. `had_paths`: whether a
/// physical volume was ever seen with a path, without which having none says nothing.
#[must_use]
pub fn loss(group: &VolumeGroup, had_paths: impl Fn(&PhysicalVolume) -> bool) -> Option<Loss> {
    if !group.all_paths_gone() {
        return None;
    }
    let for_good = |pv: &PhysicalVolume| match pv.paths() {
        // multipathd takes a path out of its map when the disk goes, and leaves the map.
        [] => had_paths(pv),
        paths => paths
            .iter()
            .all(|p| p.denied || never_returns(&p.device_state)),
    };
    Some(if group.pvs.iter().any(for_good) {
        Loss::DeviceGone
    } else {
        Loss::PathsDown
    })
}

/// What is known of one disk's I/O.
#[derive(Clone, Copy, Debug)]
struct Disk {
    completed: u64,
    /// When a command ended last, as far as the looks tell.
    progress: Monotonic,
    /// Since when commands are under way.
    busy: Option<Monotonic>,
}

/// What is remembered from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Outages {
    present: BTreeMap<String, Outage>,
    silent: BTreeMap<String, Monotonic>,
    had_paths: BTreeSet<String>,
    disks: BTreeMap<DevNo, Disk>,
}

impl Outages {
    /// With the outages that an earlier agent of this boot saw begin.
    #[must_use]
    pub fn resume(outages: BTreeMap<String, Outage>) -> Self {
        Self {
            present: outages,
            ..Self::default()
        }
    }

    /// Present outages by the UUID of the volume group.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<String, Outage> {
        &self.present
    }

    /// The outage of a volume group.
    #[must_use]
    pub fn of(&self, vg_uuid: &str) -> Option<&Outage> {
        self.present.get(vg_uuid)
    }

    /// Since when the storage of a volume group takes commands and ends none; None when it does not, or not for [`SILENT_AFTER`] yet.
    #[must_use]
    pub fn silent(&self, vg_uuid: &str, now: Monotonic) -> Option<Monotonic> {
        let since = *self.silent.get(vg_uuid)?;
        (now.since(since) >= SILENT_AFTER).then_some(since)
    }

    /// Takes in a look at the node.
    pub fn see(&mut self, inventory: &Inventory) {
        let now = inventory.taken_at;
        self.count_io(inventory);
        for group in &inventory.volume_groups {
            self.note_paths(group);
            let found = loss(group, |pv| self.had_paths.contains(&key(pv)));
            self.note(group, found, now);
        }
        let there = |uuid: &String| inventory.volume_groups.iter().any(|g| g.uuid == **uuid);
        self.present.retain(|uuid, _| there(uuid));
        self.silent = inventory
            .volume_groups
            .iter()
            .filter_map(|g| Some((g.uuid.clone(), self.silent_since(g)?)))
            .collect();
    }

    fn note_paths(&mut self, group: &VolumeGroup) {
        for pv in group.pvs.iter().filter(|pv| !pv.paths().is_empty()) {
            self.had_paths.insert(key(pv));
        }
    }

    fn note(&mut self, group: &VolumeGroup, found: Option<Loss>, now: Monotonic) {
        match (self.present.get_mut(&group.uuid), found) {
            (None, Some(loss)) => {
                let outage = Outage {
                    since: now,
                    loss,
                    loss_since: now,
                    up_since: None,
                };
                self.present.insert(group.uuid.clone(), outage);
            }
            (Some(outage), Some(loss)) => {
                outage.up_since = None;
                if outage.loss != loss {
                    outage.loss = loss;
                    outage.loss_since = now;
                }
            }
            // Unknown is neither gone nor back.
            (Some(_), None) if group.pvs.is_empty() => {}
            (Some(outage), None) => {
                let up = *outage.up_since.get_or_insert(now);
                if now.since(up) >= SETTLE {
                    self.present.remove(&group.uuid);
                }
            }
            (None, None) => {}
        }
    }

    fn count_io(&mut self, inventory: &Inventory) {
        let now = inventory.taken_at;
        let mut seen = BTreeMap::new();
        let paths = inventory
            .volume_groups
            .iter()
            .flat_map(|g| g.pvs.iter().flat_map(PhysicalVolume::paths));
        for path in paths {
            let Some(io) = path.io else { continue };
            let before = self.disks.get(&path.dev);
            let disk = Disk {
                completed: io.completed,
                progress: before
                    .filter(|b| b.completed == io.completed)
                    .map_or(now, |b| b.progress),
                busy: (io.in_flight > 0).then(|| before.and_then(|b| b.busy).unwrap_or(now)),
            };
            seen.insert(path.dev, disk);
        }
        self.disks = seen;
    }

    /// Since when some physical volume has commands under way, and no path of it has ended any.
    fn silent_since(&self, group: &VolumeGroup) -> Option<Monotonic> {
        let of = |pv: &PhysicalVolume| {
            let disks = || pv.paths().iter().filter_map(|p| self.disks.get(&p.dev));
            let busy = disks().filter_map(|d| d.busy).min()?;
            let progress = disks().map(|d| d.progress).max()?;
            Some(busy.max(progress))
        };
        group.pvs.iter().filter_map(of).min()
    }
}

/// What a physical volume is remembered by.
fn key(pv: &PhysicalVolume) -> String {
    match &pv.kind {
        PvKind::Multipath(map) => map.uuid.clone(),
        PvKind::Disk(path) => path.name.clone(),
    }
}

#[cfg(test)]
#[path = "outage_tests.rs"]
mod tests;
