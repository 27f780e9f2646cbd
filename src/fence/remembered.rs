//! Physical volumes as a fence remembers them, and who else stands on them.
//!
//! A device number says nothing about an outage later: the map is removed, and its minor is the next map's; a disk is dropped, and its number is
//! another LUN's. So a physical volume is remembered with what a number cannot fake: the device-mapper UUID, or the disk's WWID and `diskseq`.
//! Where even that is not known (a record of an earlier agent, a disk that was gone already), a number is a hint and no proof of anything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::inventory::{DevNo, DmDevice, PhysicalVolume};
use super::topology::{is_multipath, volume_group_uuid};

/// What tells a disk from another one that has its number later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMark {
    /// What the LUN calls itself, wherever it comes back: `naa.600...`, `eui....`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
    /// `diskseq` of the whole disk: the kernel gives it to one disk and never again. A LUN that comes back has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Which partition of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
}

impl DiskMark {
    /// Whether it tells nothing: which partition it is alone does not.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.wwid.is_none() && self.sequence.is_none()
    }
}

/// Reads the mark of the disk that has a number now.
pub type ReadMark<'a> = &'a dyn Fn(DevNo) -> DiskMark;

/// Whether something is what was remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Same {
    /// Proven to be another.
    No,
    /// Not known.
    Perhaps,
    /// Proven to be it.
    Surely,
}

/// A physical volume as a fence met it. Without the identity it reads as a plain number, which is what earlier agents wrote, and read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvRecord {
    /// The number that it had then.
    #[serde(flatten)]
    pub dev: DevNo,
    /// Device-mapper UUID; empty where it was no device of device mapper's, where that has none, and in earlier agents' records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    /// Of what has no UUID, whatever the kernel told.
    #[serde(default, skip_serializing_if = "DiskMark::is_empty")]
    pub disk: DiskMark,
}

impl PvRecord {
    /// One of that number, by its UUID if it has one.
    #[must_use]
    pub fn new(dev: DevNo, uuid: &str, mark: ReadMark<'_>) -> Self {
        Self {
            dev,
            uuid: uuid.to_owned(),
            disk: if uuid.is_empty() {
                mark(dev)
            } else {
                DiskMark::default()
            },
        }
    }

    /// Those of a volume group, each once. Marks are read only of what has no UUID: plain disks.
    #[must_use]
    pub fn all(pvs: &[PhysicalVolume], mark: ReadMark<'_>) -> Vec<Self> {
        let mut seen = BTreeSet::new();
        let once = pvs.iter().filter(|pv| seen.insert(pv.dev));
        once.map(|pv| Self::new(pv.dev, &pv.uuid, mark)).collect()
    }

    /// Whether a device of device mapper's is it: by its UUID, or as a multipath map that has been made of the disk since.
    #[must_use]
    pub fn is(&self, device: &DmDevice) -> bool {
        let uuid = device.uuid.as_str();
        !uuid.is_empty() && (uuid == self.uuid || self.as_map().is_some_and(|map| map == uuid))
    }

    /// Whether a device that has its number now is proven to be another. What is made by hand has no UUID, and that of other tools may change with a
    /// name; a map's and its partitions' is the LUN's WWID, and LVM's are LVM's own.
    fn is_not(&self, device: &DmDevice) -> bool {
        let tells = |uuid: &str| {
            uuid.starts_with("mpath-") || uuid.starts_with("part") || uuid.starts_with("LVM-")
        };
        !self.is(device) && !device.uuid.is_empty() && (tells(&device.uuid) || tells(&self.uuid))
    }

    /// UUID of the map that multipathd makes of the disk, or of kpartx's on it: `scsi_id` writes `naa.` as 3 and `eui.` as 2, NVMe's names stay as they are.
    fn as_map(&self) -> Option<String> {
        let wwid = self.disk.wwid.as_ref()?;
        let map = match wwid.split_once('.') {
            Some(("naa", id)) => format!("mpath-3{id}"),
            Some(("eui", id)) if id.len() == 16 => format!("mpath-2{id}"),
            _ => format!("mpath-{wwid}"),
        };
        Some(match self.disk.partition {
            Some(n) => format!("part{n}-{map}"),
            None => map,
        })
    }

    /// Whether the disk of that mark, which has the number now, is it.
    ///
    /// One WWID is one LUN, whatever disk it is. Two are two, unless the disk is the very same: then it is not known what the array did to it. Without
    /// them the same `diskseq` is the same disk, and another one may still be the LUN that came back.
    #[must_use]
    pub fn has_mark(&self, now: &DiskMark) -> Same {
        let then = &self.disk;
        let known = |a: bool, b: bool, same: bool| (a && b).then_some(same);
        let wwid = known(
            then.wwid.is_some(),
            now.wwid.is_some(),
            then.wwid == now.wwid,
        );
        let disk = known(
            then.sequence.is_some(),
            now.sequence.is_some(),
            then.sequence == now.sequence,
        );
        match (wwid, disk) {
            (Some(true), _) | (None, Some(true)) if then.partition != now.partition => Same::No,
            (Some(true), _) | (None, Some(true)) => Same::Surely,
            (Some(false), Some(true)) | (None, _) => Same::Perhaps,
            (Some(false), _) => Same::No,
        }
    }
}

/// A device that stands on a physical volume of a volume group without belonging to it.
#[derive(Clone, Copy, Debug)]
pub struct Stranger<'a> {
    /// The device.
    pub device: &'a DmDevice,
    /// Whether what it stands on is proven to be the physical volume. Otherwise it has its number, and is not known to be another: enough to withhold
    /// the locks (S1), not to have anybody touch the device (S2).
    pub surely: bool,
}

/// Devices that stand on the physical volumes of a volume group without belonging to it, by that list of all devices.
///
/// What its own devices lead to is its physical volume now. A remembered one is wherever its UUID is, under whatever number; its old number
/// counts only while no other device is seen to have it. A disk is looked at when something else stands on its number; and for a LUN that came
/// back under another one, only when its own number is not it any more. Then of other disks only those are looked at that a device of another
/// kind than multipath's stands on: a map tells by its own UUID what it is made of. So as long as nothing is strange, the kernel is asked no more than
/// which disk each number of a plain disk is.
#[must_use]
pub fn strangers<'a>(
    list: &'a [DmDevice],
    vg_uuid: &str,
    pvs: &[PvRecord],
    mark: ReadMark<'_>,
) -> Vec<Stranger<'a>> {
    let ours = |d: &&DmDevice| volume_group_uuid(&d.uuid) == Some(vg_uuid);
    // There may be thousands, each looked at once.
    let (own, others): (Vec<&DmDevice>, Vec<&DmDevice>) = list.iter().partition(ours);
    let mut surely: BTreeSet<DevNo> = own.iter().flat_map(|d| &d.deps).copied().collect();
    for own in own {
        surely.remove(&own.dev);
    }
    let uuids: BTreeSet<String> = pvs
        .iter()
        .flat_map(|pv| [Some(pv.uuid.clone()), pv.as_map()])
        .flatten()
        .filter(|uuid| !uuid.is_empty())
        .collect();
    let is_one = |d: &DmDevice| uuids.contains(d.uuid.as_str());
    surely.extend(others.iter().filter(|d| is_one(d)).map(|d| d.dev));
    let numbers: BTreeSet<DevNo> = pvs.iter().map(|pv| pv.dev).collect();
    let there: BTreeMap<DevNo, &DmDevice> = list
        .iter()
        .filter(|d| numbers.contains(&d.dev))
        .map(|d| (d.dev, d))
        .collect();
    let own_major = list.first().map(|d| d.dev.major);
    let mut disks = Disks {
        mark,
        marks: BTreeMap::new(),
    };
    // Those whose number decides, as far as it does; and those that are looked for among the others.
    let (mut by_number, mut moved) = (Vec::new(), Vec::new());
    for pv in pvs {
        if !pv.uuid.is_empty() {
            // Nobody's that is in the list: then it is not known whose.
            if there.get(&pv.dev).is_none_or(|d| !pv.is_not(d)) {
                by_number.push(pv);
            }
            continue;
        }
        by_number.push(pv);
        if pv.disk.wwid.is_some() && pv.has_mark(disks.mark(pv.dev)) != Same::Surely {
            moved.push(pv);
        }
    }
    let mut stands_on = |d: &DmDevice| -> Same {
        let mut found = Same::No;
        for dep in &d.deps {
            if surely.contains(dep) {
                return Same::Surely;
            }
            for pv in by_number.iter().filter(|pv| pv.dev == *dep) {
                let same = if pv.uuid.is_empty() && !pv.disk.is_empty() {
                    pv.has_mark(disks.mark(*dep))
                } else {
                    Same::Perhaps
                };
                found = found.max(same);
            }
            let disk = Some(dep.major) != own_major && !is_multipath(d);
            if disk
                && moved
                    .iter()
                    .any(|pv| pv.has_mark(disks.mark(*dep)) == Same::Surely)
            {
                return Same::Surely;
            }
        }
        found
    };
    let mut all = Vec::new();
    // A map of the LUN is the physical volume itself, and none that stands on it.
    for device in others.into_iter().filter(|d| !is_one(d)) {
        let same = stands_on(device);
        if same > Same::No {
            let surely = same == Same::Surely;
            all.push(Stranger { device, surely });
        }
    }
    all
}

/// Marks, each read once.
struct Disks<'a> {
    mark: ReadMark<'a>,
    marks: BTreeMap<DevNo, DiskMark>,
}

impl Disks<'_> {
    fn mark(&mut self, dev: DevNo) -> &DiskMark {
        self.marks.entry(dev).or_insert_with(|| (self.mark)(dev))
    }
}

#[cfg(test)]
#[path = "remembered_tests.rs"]
mod tests;
