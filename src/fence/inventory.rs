//! What the agent knows of its node's storage: plain data, read from the kernel and the lock manager.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use smol_str::SmolStr;

use super::time::Monotonic;

/// A device number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct DevNo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A few device numbers: two of them take no room of their own.
pub type DevNos = SmallVec<[DevNo; 2]>;

/// A device-mapper table: a single target takes no room of its own.
pub type Table = SmallVec<[Target; 1]>;

/// One target of a device-mapper table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Target {
    /// First sector (512 bytes) that it maps.
    pub start: u64,
    /// Number of sectors.
    pub length: u64,
    /// Target type: `linear`, `striped`, `error`, `multipath`...
    pub kind: SmolStr,
    /// The rest of the table line, as the kernel prints it.
    pub params: SmolStr,
}

/// One device-mapper device, as its own ioctls describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DmDevice {
    /// Number of the block device.
    pub dev: DevNo,
    /// Device-mapper name. For display only: devices are told apart by UUID.
    pub name: SmolStr,
    /// Device-mapper UUID, empty when it has none.
    pub uuid: SmolStr,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Openers: processes, mounts and devices stacked on it.
    pub open_count: u32,
    /// Whether it is suspended (by whoever).
    pub suspended: bool,
    /// Whether another device's suspension holds it up (thin pools do that to their thins).
    pub internally_suspended: bool,
    /// Whether a table waits in the inactive slot.
    pub inactive_table: bool,
    /// The live table; empty when there is none.
    pub targets: Table,
    /// Devices that the live table uses.
    pub deps: DevNos,
}

impl DmDevice {
    /// Whether the live table is one `error` target over the whole device, nothing waits in the inactive slot and nothing is suspended: the
    /// proof of S1 as far as one reading can give it.
    #[must_use]
    pub fn is_error_only(&self) -> bool {
        !self.suspended
            && !self.internally_suspended
            && !self.inactive_table
            && matches!(self.targets.as_slice(), [t] if t.kind == "error" && t.start == 0 && t.length == self.sectors)
    }
}

/// One path of a physical volume: a disk of the host bus adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Device number.
    pub dev: DevNo,
    /// Kernel name, such as `sda`; the number in text when sysfs has no name for it.
    pub name: String,
    /// Whether I/O can use it: the map says A (or there is no map) and the disk's state lets commands through.
    pub active: bool,
    /// The disk's state in sysfs (`running`, `offline`, `blocked`, `transport-offline`, ...); `gone` when sysfs has no such disk.
    pub device_state: String,
    /// What the kernel counts of its I/O; None when it is not told.
    pub io: Option<IoCount>,
    /// Whether its target says that it has no such LUN, while the disk runs: see [`super::denials`]. Only looks that follow one another tell.
    pub denied: bool,
}

/// The kernel's own account of a disk's I/O: read without touching the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCount {
    /// Commands that were issued and have not ended.
    pub in_flight: u64,
    /// Commands that have ended, well or not, since the disk came.
    pub completed: u64,
}

/// A multipath map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MultipathMap {
    /// Device number.
    pub dev: DevNo,
    /// Device-mapper name: what multipathd calls it.
    pub name: String,
    /// Device-mapper UUID, `mpath-WWID`.
    pub uuid: String,
    /// Whether I/O waits while no path works (`queue_if_no_path` in the table).
    pub queueing: bool,
    /// Its paths.
    pub paths: Vec<Path>,
}

/// What a physical volume lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PvKind {
    /// A multipath map, possibly through a partition of it.
    Multipath(MultipathMap),
    /// A disk without multipath.
    Disk(Path),
}

/// A physical volume of a volume group: the device below which nothing belongs to LVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// Device number of what the logical volumes' tables name.
    pub dev: DevNo,
    /// Device-mapper UUID of that: its number may be another's later. Empty for what is none of device mapper's, or has none.
    pub uuid: String,
    /// What it lies on.
    pub kind: PvKind,
}

impl PhysicalVolume {
    /// All paths.
    #[must_use]
    pub fn paths(&self) -> &[Path] {
        match &self.kind {
            PvKind::Multipath(m) => &m.paths,
            PvKind::Disk(p) => std::slice::from_ref(p),
        }
    }

    /// The same, to be marked.
    #[must_use]
    pub fn paths_mut(&mut self) -> &mut [Path] {
        match &mut self.kind {
            PvKind::Multipath(m) => &mut m.paths,
            PvKind::Disk(p) => std::slice::from_mut(p),
        }
    }

    /// What people call it.
    #[must_use]
    pub fn in_words(&self) -> String {
        match &self.kind {
            PvKind::Multipath(map) => format!("map {}", map.name),
            PvKind::Disk(path) => format!("disk {}", path.name),
        }
    }

    /// Whether I/O can still reach the storage, as far as the kernel knows.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.paths().iter().any(|p| p.active)
    }
}

/// Where a lockspace is in its life, as sanlock tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockspaceState {
    /// Being joined.
    Adding,
    /// Renewed in time.
    #[default]
    Healthy,
    /// The last renewal failed, the lease still holds.
    RenewalFailing,
    /// The lease has run out (`space_dead`), or sanlock is killing its users.
    Expired,
    /// Being removed: it no longer holds the watchdog.
    Removing,
}

/// A lockspace of the lock manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lockspace {
    /// `lvm_` and the name of the volume group, cut at 48 bytes.
    pub name: String,
    /// Name of the volume group, as lvmlockd tells it.
    pub vg_name: String,
    /// UUID of the volume group as lvmlockd tells it, dashes removed.
    pub vg_uuid: String,
    /// This host's id.
    pub host_id: u64,
    /// Generation of that id; None when the lock manager does not tell.
    pub generation: Option<u64>,
    /// I/O time-out in seconds: every other time is derived from it.
    pub io_timeout: u32,
    /// Last successful renewal on the monotonic clock, in whole seconds.
    pub last_renewal: Option<Monotonic>,
    /// Where it is in its life.
    pub state: LockspaceState,
    /// Whether lvmlockd has it marked `kill_vg`: it grants no lock any more.
    pub frozen: bool,
    /// How many locks of logical volumes lvmlockd holds in it.
    pub lv_locks: u32,
}

impl Lockspace {
    /// Whether it is that volume group's: by the UUID that lvmlockd tells, since a volume group may be renamed, and another one have its name by now.
    /// What only sanlock knows goes by the lockspace's name.
    #[must_use]
    pub fn is_of(&self, vg_uuid: &str, name: &str) -> bool {
        if self.vg_uuid.is_empty() {
            self.name == name
        } else {
            self.vg_uuid == vg_uuid
        }
    }
}

/// The lockspace of a volume group: the one that holds its locks, where a former one is listed beside it that is on its way out.
#[must_use]
pub fn present<'a>(all: &'a [Lockspace], vg_uuid: &str, name: &str) -> Option<&'a Lockspace> {
    let ours = all.iter().filter(|l| l.is_of(vg_uuid, name));
    ours.min_by_key(|l| l.state == LockspaceState::Removing)
}

/// What the lock manager said, or why it said nothing (S5: unknown is reported as unknown).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockManager {
    /// Both daemons answered.
    Running(Vec<Lockspace>),
    /// lvmlockd did not answer, or not in its language. The names of the lockspaces that sanlock holds, if it answered.
    LvmlockdUnavailable(String, Option<Vec<String>>),
    /// sanlock did not answer, or not in its language. The lockspaces as lvmlockd knows them.
    SanlockUnavailable(String, Vec<Lockspace>),
}

impl LockManager {
    /// The lockspaces as far as they are known.
    #[must_use]
    pub fn lockspaces(&self) -> &[Lockspace] {
        match self {
            Self::Running(l) | Self::SanlockUnavailable(_, l) => l,
            Self::LvmlockdUnavailable(..) => &[],
        }
    }
}

/// The watchdog daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watchdog {
    /// Whether wdmd answered; nothing below means anything otherwise.
    pub known: bool,
    /// Why it is not known.
    pub problem: Option<String>,
    /// Seconds from the last pet to the reset.
    pub fire_timeout: u32,
    /// Clients that keep it armed, by name (`sanlock_LOCKSPACE:HOSTID`), with the time their lease expires.
    pub clients: Vec<(String, Monotonic)>,
}

/// A volume group, gathered from the UUIDs of its active devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Name: lvmlockd's, or taken from the device names when there is no lockspace.
    pub name: String,
    /// UUID: the 32 characters after `LVM-` in its devices' UUIDs.
    pub uuid: String,
    /// Its devices of every layer, the `lvmlock` volume aside.
    ///
    /// Shared with other inventories: of ten thousand devices one that is kept anew at each look would take tens of megabytes.
    pub devices: Arc<[Arc<DmDevice>]>,
    /// The volume that holds the leases; only sanlock writes there.
    pub lvmlock: Option<DmDevice>,
    /// Its physical volumes, as far as active devices lead to them.
    pub pvs: Vec<PhysicalVolume>,
    /// Of one that stands fenced, where its record is at hand: all its physical volumes, also those that no active device leads to any more. To be
    /// told; whatever is decided goes by `pvs`.
    pub recorded_pvs: Vec<PhysicalVolume>,
    /// Its lockspace; a volume group without one is local to the node, unless it is `unlocked`.
    pub lockspace: Option<Lockspace>,
    /// Whether it stands fenced and its lockspace, told above, is the one that it had before.
    pub stands: bool,
    /// Whether it has reached the SAN for two looks in a row although nobody held its locks ([`super::unlocked`]).
    pub unlocked: bool,
}

impl VolumeGroup {
    /// Whether other hosts may use it too.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.lockspace.is_some() || self.unlocked
    }

    /// Whether nobody holds its locks: it is open, or was when it was fenced and stands so.
    #[must_use]
    pub fn without_lock(&self) -> bool {
        let had_none = self.lockspace.as_ref().is_some_and(|l| l.host_id == 0);
        self.unlocked || (self.stands && had_none)
    }

    /// Name of its lockspace, or of the one that it had where nobody holds its locks any more.
    #[must_use]
    pub fn lockspace_name(&self) -> Option<String> {
        let had = || {
            self.unlocked
                .then(|| super::unlocked::lockspace_of(&self.name))
        };
        self.lockspace.as_ref().map(|l| l.name.clone()).or_else(had)
    }

    /// Whether its storage is a SAN's: it has a lockspace, or had one before it was fenced (the leases' volume is still there).
    #[must_use]
    pub fn on_san(&self) -> bool {
        self.shared() || self.lvmlock.is_some()
    }

    /// Whether it stands fenced: every device of it leads nowhere.
    #[must_use]
    pub fn fenced(&self) -> bool {
        !self.devices.is_empty() && self.devices.iter().all(|d| d.is_error_only())
    }

    /// Its physical volumes as far as they are known, for whoever tells of them.
    #[must_use]
    pub fn known_pvs(&self) -> &[PhysicalVolume] {
        if self.recorded_pvs.is_empty() {
            &self.pvs
        } else {
            &self.recorded_pvs
        }
    }

    /// Paths: working, all.
    #[must_use]
    pub fn paths(&self) -> (usize, usize) {
        paths_of(&self.pvs)
    }

    /// Physical volumes without a working path, in words, where others have one; empty where all are alike.
    #[must_use]
    pub fn lost_among_living(&self) -> Vec<String> {
        lost_among_living(&self.pvs)
    }

    /// Whether every path of every physical volume is gone. A volume group without known physical volumes is not: unknown is not gone.
    #[must_use]
    pub fn all_paths_gone(&self) -> bool {
        !self.pvs.is_empty() && self.pvs.iter().all(|pv| !pv.reachable())
    }
}

/// Paths of physical volumes: working, all.
#[must_use]
pub fn paths_of(pvs: &[PhysicalVolume]) -> (usize, usize) {
    let all = pvs.iter().flat_map(PhysicalVolume::paths);
    all.fold((0, 0), |(up, n), p| (up + usize::from(p.active), n + 1))
}

/// Those of physical volumes without a working path, in words, where others have one; empty where all are alike.
#[must_use]
pub fn lost_among_living(pvs: &[PhysicalVolume]) -> Vec<String> {
    let (living, lost): (Vec<_>, Vec<_>) = pvs.iter().partition(|pv| pv.reachable());
    if living.is_empty() {
        return Vec::new();
    }
    let mut lost: Vec<String> = lost.into_iter().map(PhysicalVolume::in_words).collect();
    lost.sort_unstable();
    lost.dedup();
    lost
}

/// Everything, at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// When it was taken.
    pub taken_at: Monotonic,
    /// Boot ID of the running kernel.
    pub boot_id: String,
    /// Volume groups, shared ones first, then by name.
    pub volume_groups: Vec<VolumeGroup>,
    /// The lock manager, including lockspaces without an active device.
    pub lock_manager: LockManager,
    /// The watchdog daemon.
    pub watchdog: Watchdog,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_off() -> DmDevice {
        DmDevice {
            sectors: 8,
            targets: vec![Target {
                length: 8,
                kind: "error".into(),
                ..Target::default()
            }]
            .into(),
            ..DmDevice::default()
        }
    }

    #[test]
    fn only_one_error_target_over_the_whole_device_is_proof() {
        assert!(cut_off().is_error_only());
        let changes: [fn(&mut DmDevice); 8] = [
            |d| d.suspended = true,
            |d| d.internally_suspended = true,
            |d| d.inactive_table = true,
            |d| d.sectors = 9,
            |d| d.targets[0].start = 1,
            |d| d.targets[0].kind = "linear".into(),
            |d| d.targets.push(d.targets[0].clone()),
            |d| d.targets.clear(),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut device = cut_off();
            change(&mut device);
            assert!(!device.is_error_only(), "change {n}: {device:?}");
        }
    }
}
