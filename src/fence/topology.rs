//! What is stacked on what: from the kernel's own words to an [`Inventory`].
//!
//! Volume groups are told apart by the device-mapper UUIDs of their devices (`LVM-`, 32 characters for the volume group, 32 for the logical
//! volume, perhaps a suffix for an inner layer), never by names: a name may be changed, and two of them may look alike (S2).

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::inventory::{
    DevNo, DmDevice, Inventory, IoCount, LockManager, Lockspace, LockspaceState, MultipathMap,
    Path, PhysicalVolume, PvKind, VolumeGroup, Watchdog,
};
use super::time::Monotonic;

/// State of a disk that sysfs does not have any more.
pub const GONE: &str = "gone";
/// Name of the volume that holds the leases, in every volume group of sanlock's (lvm2's `lib/locking/lvmlockd.c`).
const LVMLOCK: &str = "lvmlock";

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
    /// When.
    pub taken_at: Monotonic,
    /// Boot ID.
    pub boot_id: String,
    /// Every device-mapper device.
    pub devices: Vec<Arc<DmDevice>>,
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

/// Whether it is a device that LVM's users see, not one of its inner layers.
fn is_top_level(dm_uuid: &str) -> bool {
    dm_uuid.len() == "LVM-".len() + 64
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
fn lets_commands_through(state: &str) -> bool {
    matches!(state, "running" | "live")
}

/// Puts everything together.
#[must_use]
pub fn build(observed: Observed) -> Inventory {
    let all = observed.devices.iter();
    let by_dev: BTreeMap<DevNo, &Arc<DmDevice>> = all.map(|d| (d.dev, d)).collect();
    let mut groups: BTreeMap<&str, Vec<&Arc<DmDevice>>> = BTreeMap::new();
    for device in by_dev.values() {
        if let Some(uuid) = volume_group_uuid(&device.uuid) {
            groups.entry(uuid).or_default().push(device);
        }
    }
    let lockspaces = observed.lock_manager.lockspaces();
    let below = Below {
        by_dev: &by_dev,
        maps: &observed.maps,
        disks: &observed.disks,
    };
    let mut volume_groups: Vec<VolumeGroup> = groups
        .into_iter()
        .map(|(uuid, devices)| volume_group(uuid, &devices, lockspaces, &below))
        .collect();
    volume_groups.sort_by(|a, b| {
        let key = |v: &VolumeGroup| (!v.shared(), v.name.clone(), v.uuid.clone());
        key(a).cmp(&key(b))
    });
    Inventory {
        taken_at: observed.taken_at,
        boot_id: observed.boot_id,
        volume_groups,
        lock_manager: observed.lock_manager,
        watchdog: observed.watchdog,
    }
}

fn volume_group(
    uuid: &str,
    devices: &[&Arc<DmDevice>],
    lockspaces: &[Lockspace],
    below: &Below<'_>,
) -> VolumeGroup {
    // After a restart of the lockspace the old one may still be listed while it is being removed: the living one counts.
    let mine = lockspaces.iter().filter(|l| l.vg_uuid == uuid);
    let lockspace = mine
        .min_by_key(|l| l.state == LockspaceState::Removing)
        .cloned();
    let from_names = devices.iter().find_map(|d| {
        split_name(&d.name)
            .into_iter()
            .next()
            .filter(|n| !n.is_empty())
    });
    let name = match &lockspace {
        Some(l) if !l.vg_name.is_empty() => l.vg_name.clone(),
        _ => from_names.unwrap_or_else(|| uuid.to_owned()),
    };
    // Of thousands of volumes none but this one's name is worth taking apart.
    let is_lvmlock = |d: &DmDevice| {
        d.name.ends_with(LVMLOCK)
            && is_top_level(&d.uuid)
            && split_name(&d.name) == [name.as_str(), LVMLOCK]
    };
    VolumeGroup {
        // The leases' volume leads to physical volumes too, and keeps doing so when every other table is `error`.
        pvs: below.physical_volumes(uuid, devices),
        lvmlock: devices
            .iter()
            .find(|d| is_lvmlock(d))
            .map(|d| DmDevice::clone(d)),
        devices: devices
            .iter()
            .filter(|d| !is_lvmlock(d))
            .map(|d| Arc::clone(d))
            .collect(),
        uuid: uuid.to_owned(),
        lockspace,
        name,
        stands: false,
    }
}

/// What lies below: lookups by device number.
struct Below<'a> {
    by_dev: &'a BTreeMap<DevNo, &'a Arc<DmDevice>>,
    maps: &'a BTreeMap<DevNo, MapState>,
    disks: &'a BTreeMap<DevNo, Disk>,
}

impl Below<'_> {
    /// The physical volumes that a volume group's devices lead to: the first devices below its own. One that lies on several maps or disks
    /// (a logical volume of another volume group, say) is listed once for each, so that none of its paths is forgotten.
    fn physical_volumes(&self, vg_uuid: &str, devices: &[&Arc<DmDevice>]) -> Vec<PhysicalVolume> {
        let own = |dev: &DevNo| {
            self.by_dev
                .get(dev)
                .is_some_and(|d| volume_group_uuid(&d.uuid) == Some(vg_uuid))
        };
        let deps: BTreeSet<DevNo> = devices
            .iter()
            .flat_map(|d| d.deps.iter().copied())
            .collect();
        // Every own device is in `devices` already, so one step down from each of them reaches every physical volume.
        let pvs = deps.into_iter().filter(|dev| !own(dev));
        pvs.flat_map(|dev| {
            self.leaves(dev)
                .into_iter()
                .map(move |kind| PhysicalVolume { dev, kind })
        })
        .collect()
    }

    /// The maps and disks at the bottom of a device: through partitions, encryption, other volume groups.
    fn leaves(&self, top: DevNo) -> Vec<PvKind> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![top];
        let mut leaves = Vec::new();
        while let Some(dev) = todo.pop() {
            if !seen.insert(dev) {
                continue;
            }
            match self.by_dev.get(&dev) {
                Some(device) if is_multipath(device) => {
                    leaves.push(PvKind::Multipath(self.map(device)));
                }
                Some(device) if device.deps.is_empty() => {
                    leaves.push(PvKind::Disk(bottomless(device)));
                }
                Some(device) => todo.extend(&device.deps),
                None => leaves.push(PvKind::Disk(self.path(dev, true))),
            }
        }
        leaves
    }

    fn map(&self, device: &DmDevice) -> MultipathMap {
        // A map that could not be read: its paths are those that the kernel holds open, none of them known to have failed, and it may queue.
        let unread = || MapState {
            queueing: true,
            paths: device.deps.iter().map(|d| (*d, true)).collect(),
        };
        let state = self.maps.get(&device.dev).cloned().unwrap_or_else(unread);
        MultipathMap {
            dev: device.dev,
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            queueing: state.queueing,
            paths: state
                .paths
                .iter()
                .map(|(dev, active)| self.path(*dev, *active))
                .collect(),
        }
    }

    fn path(&self, dev: DevNo, active_in_map: bool) -> Path {
        match self.disks.get(&dev) {
            Some(disk) => Path {
                dev,
                name: disk.name.clone(),
                active: active_in_map && lets_commands_through(&disk.state),
                device_state: disk.state.clone(),
                io: disk.io,
            },
            None => Path {
                dev,
                name: dev.to_string(),
                active: false,
                device_state: GONE.to_owned(),
                io: None,
            },
        }
    }
}

/// The maps and disks at the bottom of each of these devices.
#[must_use]
pub fn bottoms(
    tops: &[DevNo],
    devices: &[Arc<DmDevice>],
    maps: &BTreeMap<DevNo, MapState>,
    disks: &BTreeMap<DevNo, Disk>,
) -> Vec<PhysicalVolume> {
    let by_dev: BTreeMap<DevNo, &Arc<DmDevice>> = devices.iter().map(|d| (d.dev, d)).collect();
    let below = Below {
        by_dev: &by_dev,
        maps,
        disks,
    };
    let kinds = |dev: &DevNo| {
        let dev = *dev;
        let kinds = below.leaves(dev);
        kinds
            .into_iter()
            .map(move |kind| PhysicalVolume { dev, kind })
    };
    tops.iter().flat_map(kinds).collect()
}

/// A device-mapper device that uses no other: what its table does is all that can be said of it.
fn bottomless(device: &DmDevice) -> Path {
    let kind = device.targets.first().map(|t| t.kind.clone());
    Path {
        dev: device.dev,
        name: device.name.clone(),
        active: kind.as_ref().is_some_and(|k| k != "error"),
        device_state: kind.unwrap_or_else(|| "no table".to_owned()),
        io: None,
    }
}

/// The order in which tables may be replaced: from top to bottom, each level before the next; within a level all at once.
///
/// Above is who uses whom (a thin volume its pool, the pool its data). Old snapshots add one rule: the snapshots of an origin come before the
/// origin itself, though neither uses the other. The leases' volume is not part of it.
#[must_use]
pub fn swap_levels(group: &VolumeGroup) -> Vec<Vec<DevNo>> {
    let own: BTreeSet<DevNo> = group.devices.iter().map(|d| d.dev).collect();
    let mut below: BTreeMap<DevNo, BTreeSet<DevNo>> = BTreeMap::new();
    for device in &group.devices {
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
pub fn under(device: &DmDevice, all: &[impl Borrow<DmDevice>]) -> BTreeSet<DevNo> {
    let mut under: BTreeSet<DevNo> = device.deps.iter().copied().collect();
    under.extend(origins_of(device, all));
    under.remove(&device.dev);
    under
}

/// The `snapshot-origin` devices that stand for what this `snapshot` device is a snapshot of.
fn origins_of(device: &DmDevice, all: &[impl Borrow<DmDevice>]) -> Vec<DevNo> {
    let real = |d: &DmDevice, kind: &str| {
        let target = d.targets.iter().find(|t| t.kind == kind)?;
        target.params.split_whitespace().next().map(str::to_owned)
    };
    let Some(mine) = real(device, "snapshot") else {
        return Vec::new();
    };
    all.iter()
        .map(Borrow::borrow)
        .filter(|d| real(d, "snapshot-origin").as_ref() == Some(&mine))
        .map(|d| d.dev)
        .collect()
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
