//! What lies on what, as far as it follows from the devices alone: volume groups, their members, what is at the bottom of each.
//!
//! Of ten thousand devices hardly any changes from one look to the next, so this is made once for them, and each look adds what it saw of maps,
//! disks and the lock manager. An inventory that is made from kept stacks is the same as one that is made from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::inventory::{
    DevNo, DmDevice, Inventory, Lockspace, LockspaceState, MultipathMap, Path, PhysicalVolume,
    PvKind, VolumeGroup,
};
use super::topology::{
    Disk, GONE, Look, MapState, is_multipath, lets_commands_through, split_name, volume_group_uuid,
};

/// Name of the volume that holds the leases, in every volume group of sanlock's (lvm2's `lib/locking/lvmlockd.c`).
const LVMLOCK: &str = "lvmlock";

/// Every device, and what follows from them.
#[derive(Debug, Default)]
pub struct Stacks {
    /// By number, each once.
    devices: Vec<Arc<DmDevice>>,
    /// Places of the multipath maps.
    maps: Vec<usize>,
    /// What tables name and device mapper does not know.
    disks: Vec<DevNo>,
    /// By UUID.
    groups: Vec<Group>,
}

/// A volume group.
#[derive(Debug)]
struct Group {
    uuid: String,
    /// Its name by its devices' names.
    named: Option<String>,
    members: Vec<Arc<DmDevice>>,
    /// Places in `members` of what may be the leases' volume, each with the volume group's name in its own.
    lvmlocks: Vec<(String, usize)>,
    /// Its physical volumes, each with what is at its bottom.
    bottoms: Vec<(DevNo, Vec<Leaf>)>,
    /// As they were told apart last: by a name that only the lockspace tells, and that stays what it is.
    parts: Option<Parts>,
}

/// The members of a volume group of that name.
#[derive(Clone, Debug)]
struct Parts {
    name: String,
    lvmlock: Option<Arc<DmDevice>>,
    devices: Arc<[Arc<DmDevice>]>,
}

/// What is at the bottom of a stack.
#[derive(Clone, Debug)]
enum Leaf {
    /// The multipath map at that place.
    Map(usize),
    /// A disk that device mapper does not know.
    Disk(DevNo),
    /// A device of device mapper's that uses no other: what its table does is all that can be said of it.
    Bottomless(Path),
}

impl Stacks {
    /// Works them out.
    #[must_use]
    pub fn new(mut devices: Vec<Arc<DmDevice>>) -> Self {
        devices.sort_by_key(|d| d.dev);
        // One number is one device: the latest that was read of it.
        devices.dedup_by(|later, earlier| {
            let same = later.dev == earlier.dev;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        let mut stacks = Self {
            devices,
            ..Self::default()
        };
        let places = stacks.devices.iter().enumerate();
        stacks.maps = places
            .filter_map(|(at, d)| is_multipath(d).then_some(at))
            .collect();
        let below: BTreeSet<DevNo> = stacks
            .devices
            .iter()
            .flat_map(|d| d.deps.iter().copied())
            .collect();
        let unknown = |dev: &DevNo| stacks.place(*dev).is_none();
        stacks.disks = below.into_iter().filter(unknown).collect();
        let mut members: BTreeMap<&str, Vec<Arc<DmDevice>>> = BTreeMap::new();
        for device in &stacks.devices {
            if let Some(uuid) = volume_group_uuid(&device.uuid) {
                members.entry(uuid).or_default().push(Arc::clone(device));
            }
        }
        stacks.groups = members
            .into_iter()
            .map(|(uuid, members)| stacks.group(uuid, members))
            .collect();
        stacks
    }

    /// Every device, by number.
    #[must_use]
    pub fn devices(&self) -> &[Arc<DmDevice>] {
        &self.devices
    }

    /// The multipath maps.
    pub fn maps(&self) -> impl Iterator<Item = &Arc<DmDevice>> {
        self.maps.iter().filter_map(|at| self.devices.get(*at))
    }

    /// The disks below everything: what tables name and device mapper does not know, and so of the maps' paths.
    #[must_use]
    pub fn disks(&self, maps: &BTreeMap<DevNo, MapState>) -> BTreeSet<DevNo> {
        let paths = maps.values().flat_map(|m| m.paths.iter().map(|p| p.0));
        let unknown = paths.filter(|dev| self.place(*dev).is_none());
        self.disks.iter().copied().chain(unknown).collect()
    }

    /// Puts an inventory together from this and what a look saw.
    #[must_use]
    pub fn inventory(&mut self, look: Look) -> Inventory {
        let lockspaces = look.lock_manager.lockspaces();
        let mut groups = std::mem::take(&mut self.groups);
        let mut volume_groups: Vec<VolumeGroup> = groups
            .iter_mut()
            .map(|group| self.volume_group(group, lockspaces, &look))
            .collect();
        self.groups = groups;
        volume_groups.sort_by(|a, b| {
            let key = |v: &VolumeGroup| (!v.shared(), v.name.clone(), v.uuid.clone());
            key(a).cmp(&key(b))
        });
        Inventory {
            taken_at: look.taken_at,
            boot_id: look.boot_id,
            volume_groups,
            lock_manager: look.lock_manager,
            watchdog: look.watchdog,
        }
    }

    /// The maps and disks at the bottom of each of these devices.
    #[must_use]
    pub fn bottoms(
        &self,
        tops: &[DevNo],
        maps: &BTreeMap<DevNo, MapState>,
        disks: &BTreeMap<DevNo, Disk>,
    ) -> Vec<PhysicalVolume> {
        let under = |dev: &DevNo| {
            let leaves = self.leaves(*dev);
            self.physical_volumes(*dev, &leaves, maps, disks)
        };
        tops.iter().flat_map(under).collect()
    }

    fn place(&self, dev: DevNo) -> Option<usize> {
        self.devices.binary_search_by_key(&dev, |d| d.dev).ok()
    }

    fn find(&self, dev: DevNo) -> Option<&Arc<DmDevice>> {
        self.devices.get(self.place(dev)?)
    }

    fn group(&self, uuid: &str, members: Vec<Arc<DmDevice>>) -> Group {
        let first = |d: &Arc<DmDevice>| split_name(&d.name).into_iter().next();
        let own = |dev: &DevNo| {
            let device = self.find(*dev);
            device.is_some_and(|d| volume_group_uuid(&d.uuid) == Some(uuid))
        };
        // Every own device is a member already, so one step down from each of them reaches every physical volume.
        let deps: BTreeSet<DevNo> = members
            .iter()
            .flat_map(|d| d.deps.iter().copied())
            .collect();
        let pvs = deps.into_iter().filter(|dev| !own(dev));
        let lvmlocks = members.iter().enumerate();
        Group {
            uuid: uuid.to_owned(),
            named: members.iter().filter_map(first).find(|n| !n.is_empty()),
            lvmlocks: lvmlocks
                .filter_map(|(at, d)| Some((lvmlock_of(d)?, at)))
                .collect(),
            bottoms: pvs.map(|dev| (dev, self.leaves(dev))).collect(),
            parts: None,
            members,
        }
    }

    /// The maps and disks at the bottom of a device: through partitions, encryption, other volume groups.
    fn leaves(&self, top: DevNo) -> Vec<Leaf> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![top];
        let mut leaves = Vec::new();
        while let Some(dev) = todo.pop() {
            if !seen.insert(dev) {
                continue;
            }
            let at = self.place(dev);
            let device = at.and_then(|at| self.devices.get(at));
            match (at, device) {
                (Some(at), Some(device)) if is_multipath(device) => leaves.push(Leaf::Map(at)),
                (_, Some(device)) if device.deps.is_empty() => {
                    leaves.push(Leaf::Bottomless(bottomless(device)));
                }
                (_, Some(device)) => todo.extend(&device.deps),
                (_, None) => leaves.push(Leaf::Disk(dev)),
            }
        }
        leaves
    }

    fn volume_group(
        &self,
        group: &mut Group,
        lockspaces: &[Lockspace],
        look: &Look,
    ) -> VolumeGroup {
        // After a restart of the lockspace the old one may still be listed while it is being removed: the living one counts.
        let mine = lockspaces.iter().filter(|l| l.vg_uuid == group.uuid);
        let lockspace = mine
            .min_by_key(|l| l.state == LockspaceState::Removing)
            .cloned();
        let name = match &lockspace {
            Some(l) if !l.vg_name.is_empty() => &l.vg_name,
            _ => group.named.as_ref().unwrap_or(&group.uuid),
        };
        let parts = match group.parts.take().filter(|p| p.name == *name) {
            Some(parts) => parts,
            None => group.parts(name),
        };
        let volume_group = VolumeGroup {
            name: parts.name.clone(),
            uuid: group.uuid.clone(),
            devices: Arc::clone(&parts.devices),
            lvmlock: parts.lvmlock.as_deref().cloned(),
            // The leases' volume leads to physical volumes too, and keeps doing so when every other table is `error`. One that lies on several
            // maps or disks (a logical volume of another volume group, say) is listed once for each, so that none of its paths is forgotten.
            pvs: group
                .bottoms
                .iter()
                .flat_map(|(dev, leaves)| {
                    self.physical_volumes(*dev, leaves, &look.maps, &look.disks)
                })
                .collect(),
            recorded_pvs: Vec::new(),
            lockspace,
            stands: false,
            unlocked: false,
        };
        group.parts = Some(parts);
        volume_group
    }

    fn physical_volumes(
        &self,
        dev: DevNo,
        leaves: &[Leaf],
        maps: &BTreeMap<DevNo, MapState>,
        disks: &BTreeMap<DevNo, Disk>,
    ) -> Vec<PhysicalVolume> {
        let kind = |leaf: &Leaf| match leaf {
            Leaf::Map(at) => {
                let device = self.devices.get(*at)?;
                Some(PvKind::Multipath(map(device, maps, disks)))
            }
            Leaf::Disk(dev) => Some(PvKind::Disk(path(*dev, true, disks))),
            Leaf::Bottomless(path) => Some(PvKind::Disk(path.clone())),
        };
        let kinds = leaves.iter().filter_map(kind);
        let uuid = || {
            self.find(dev)
                .map_or_else(String::new, |d| d.uuid.to_string())
        };
        let found = |kind| PhysicalVolume {
            dev,
            uuid: uuid(),
            kind,
        };
        kinds.map(found).collect()
    }
}

impl Group {
    /// Tells the leases' volume from the others.
    fn parts(&self, name: &str) -> Parts {
        let leases = self.lvmlocks.iter().filter(|(vg, _)| vg == name);
        let leases: BTreeSet<usize> = leases.map(|(_, at)| *at).collect();
        let members = self.members.iter().enumerate();
        Parts {
            name: name.to_owned(),
            lvmlock: leases.first().and_then(|at| self.members.get(*at).cloned()),
            devices: members
                .filter(|(at, _)| !leases.contains(at))
                .map(|(_, d)| Arc::clone(d))
                .collect(),
        }
    }
}

/// The volume group whose leases' volume it is, if its name is one's.
fn lvmlock_of(device: &DmDevice) -> Option<String> {
    // Of thousands of volumes none but this one's name is worth taking apart.
    let may_be = device.name.ends_with(LVMLOCK) && is_top_level(&device.uuid);
    let mut parts = split_name(may_be.then_some(&device.name)?);
    (parts.len() == 2 && parts.pop()? == LVMLOCK).then(|| parts.pop())?
}

/// Whether it is a device that LVM's users see, not one of its inner layers.
fn is_top_level(dm_uuid: &str) -> bool {
    dm_uuid.len() == "LVM-".len() + 64
}

fn map(
    device: &DmDevice,
    maps: &BTreeMap<DevNo, MapState>,
    disks: &BTreeMap<DevNo, Disk>,
) -> MultipathMap {
    let all = |paths: &mut dyn Iterator<Item = (DevNo, bool)>| {
        paths
            .map(|(dev, active)| path(dev, active, disks))
            .collect()
    };
    let (queueing, paths) = match maps.get(&device.dev) {
        Some(state) => (state.queueing, all(&mut state.paths.iter().copied())),
        // A map that could not be read: its paths are those that the kernel holds open, none of them known to have failed, and it may queue.
        None => (true, all(&mut device.deps.iter().map(|d| (*d, true)))),
    };
    MultipathMap {
        dev: device.dev,
        name: device.name.to_string(),
        uuid: device.uuid.to_string(),
        queueing,
        paths,
    }
}

fn path(dev: DevNo, active_in_map: bool, disks: &BTreeMap<DevNo, Disk>) -> Path {
    match disks.get(&dev) {
        Some(disk) => Path {
            dev,
            name: disk.name.clone(),
            active: active_in_map && lets_commands_through(&disk.state),
            device_state: disk.state.clone(),
            io: disk.io,
            denied: false,
        },
        None => Path {
            dev,
            name: dev.to_string(),
            active: false,
            device_state: GONE.to_owned(),
            io: None,
            denied: false,
        },
    }
}

fn bottomless(device: &DmDevice) -> Path {
    let kind = device.targets.first().map(|t| t.kind.as_str());
    Path {
        dev: device.dev,
        name: device.name.to_string(),
        active: kind.is_some_and(|k| k != "error"),
        device_state: kind.unwrap_or("no table").to_owned(),
        io: None,
        denied: false,
    }
}

#[cfg(test)]
#[path = "stacks_tests.rs"]
mod tests;
