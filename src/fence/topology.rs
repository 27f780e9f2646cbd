//! What is stacked on what: from the kernel's own words to an [`Inventory`].
//!
//! Volume groups are told apart by the device-mapper UUIDs of their devices (`LVM-`, 32 characters for the volume group, 32 for the logical
//! volume, perhaps a suffix for an inner layer), never by names: a name may be changed, and two of them may look alike (S2).

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::inventory::{
    DevNo, DevNos, DmDevice, Inventory, IoCount, LockManager, VolumeGroup, Watchdog,
};
use super::stacks::Stacks;
use super::time::Monotonic;

/// State of a disk that sysfs does not have any more.
pub const GONE: &str = "gone";

/// A disk as sysfs knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name.
    pub name: String,
    /// State, `running` where sysfs has none.
    pub state: String,
    /// Its I/O, as far as it is counted.
    pub io: Option<IoCount>,
}

/// A multipath map as its own table and status describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// `queue_if_no_path` in the table.
    pub queueing: bool,
    /// Paths, and whether the map holds them for active (`A`).
    pub paths: Vec<(DevNo, bool)>,
}

/// What was read of the node, at one point in time.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Every device-mapper device.
    pub devices: Vec<Arc<DmDevice>>,
    /// Everything else.
    pub look: Look,
}

/// What is read anew at each look, whether or not the devices are.
#[derive(Clone, Debug)]
pub struct Look {
    /// When.
    pub taken_at: Monotonic,
    /// Boot ID.
    pub boot_id: String,
    /// Multipath maps by number. A map that is missing here could not be read.
    pub maps: BTreeMap<DevNo, MapState>,
    /// Disks by number, for every device that a table names and device mapper does not know. A disk that is missing here is gone.
    pub disks: BTreeMap<DevNo, Disk>,
    /// The lock manager.
    pub lock_manager: LockManager,
    /// The watchdog daemon.
    pub watchdog: Watchdog,
}

/// The UUID of the volume group in a device-mapper UUID of LVM's; None for everybody else's.
#[must_use]
pub fn volume_group_uuid(dm_uuid: &str) -> Option<&str> {
    /// Both UUIDs, without their dashes.
    const IDS: usize = 64;
    let rest = dm_uuid.strip_prefix("LVM-")?;
    let (ids, suffix) = rest.split_at_checked(IDS)?;
    let plain = ids.bytes().all(|b| b.is_ascii_graphic() && b != b'-');
    (plain && (suffix.is_empty() || suffix.starts_with('-'))).then(|| &ids[..32])
}

/// Takes a device-mapper name of LVM's apart: volume group, logical volume, layer. A hyphen within a part is doubled.
#[must_use]
pub fn split_name(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '-' && chars.next_if_eq(&'-').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// Whether it is a multipath map: by UUID, or by what its table does.
#[must_use]
pub fn is_multipath(device: &DmDevice) -> bool {
    device.uuid.starts_with("mpath-") || device.targets.iter().any(|t| t.kind == "multipath")
}

/// Whether a disk in that state lets commands through: SCSI's `running`, NVMe's `live`.
pub(super) fn lets_commands_through(state: &str) -> bool {
    matches!(state, "running" | "live")
}

/// Puts everything together, from nothing that was kept.
#[must_use]
pub fn build(observed: Observed) -> Inventory {
    Stacks::new(observed.devices).inventory(observed.look)
}

/// The order in which tables may be replaced: from top to bottom, each level before the next; within a level all at once.
///
/// Above is who uses whom (a thin volume its pool, the pool its data). Old snapshots add one rule: the snapshots of an origin come before the
/// origin itself, though neither uses the other. The leases' volume is not part of it.
#[must_use]
pub fn swap_levels(group: &VolumeGroup) -> Vec<Vec<DevNo>> {
    let own: BTreeSet<DevNo> = group.devices.iter().map(|d| d.dev).collect();
    let mut below: BTreeMap<DevNo, DevNos> = BTreeMap::new();
    for device in group.devices.iter() {
        let mut under = under(device, &group.devices);
        under.retain(|d| own.contains(d));
        below.insert(device.dev, under);
    }
    let mut levels = Vec::new();
    while !below.is_empty() {
        let used: BTreeSet<DevNo> = below.values().flatten().copied().collect();
        let mut level: Vec<DevNo> = below
            .keys()
            .copied()
            .filter(|d| !used.contains(d))
            .collect();
        if level.is_empty() {
            // A circle, which the kernel does not let anybody build: whatever it is, no order is better than another.
            level = below.keys().copied().collect();
        }
        for dev in &level {
            below.remove(dev);
        }
        levels.push(level);
    }
    levels
}

/// What has to keep its table until `device` has lost its own: what it uses, and the origin of a snapshot.
#[must_use]
pub fn under(device: &DmDevice, all: &[impl Borrow<DmDevice>]) -> DevNos {
    let mut under = device.deps.clone();
    under.extend(origins_of(device, all));
    under.retain(|dev| *dev != device.dev);
    under.sort_unstable();
    under.dedup();
    under
}

/// The devices that stand for what this `snapshot` device is a snapshot of: `snapshot-origin`, or `snapshot-merge` while another snapshot is being
/// merged back.
fn origins_of(device: &DmDevice, all: &[impl Borrow<DmDevice>]) -> Vec<DevNo> {
    fn real<'a>(d: &'a DmDevice, kinds: &[&str]) -> Option<&'a str> {
        let mut targets = d.targets.iter();
        let target = targets.find(|t| kinds.contains(&t.kind.as_str()))?;
        target.params.split_whitespace().next()
    }
    let Some(mine) = real(device, &["snapshot"]) else {
        return Vec::new();
    };
    let origins = ["snapshot-origin", "snapshot-merge"];
    all.iter()
        .map(Borrow::borrow)
        .filter(|d| real(d, &origins) == Some(mine))
        .map(|d| d.dev)
        .collect()
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
