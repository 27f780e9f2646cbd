//! What else stands on the physical volumes, and what these are.

use std::collections::{BTreeSet, HashSet};

use crate::agent::executor::FIND_OUT;
use crate::agent::journal::GroupRecord;
use crate::fence::remembered::{ReadMark, Stranger, strangers};
use crate::fence::topology;
use crate::fence::{DevNo, DmDevice, PvRecord};

/// Whether nothing of a volume group can reach the SAN, by that list of all devices. What may stand on a physical volume counts as if it did: this
/// is what locks are released on (S1).
pub(in crate::agent::executor) fn closed(
    group: &GroupRecord,
    list: &[DmDevice],
    mark: ReadMark<'_>,
) -> bool {
    let cut_off = |d: &DmDevice| {
        topology::volume_group_uuid(&d.uuid) != Some(group.uuid.as_str())
            || group.lvmlock.as_deref() == Some(d.uuid.as_str())
            || d.is_error_only()
    };
    list.iter().all(cut_off) && strangers(list, &group.uuid, &group.pvs, mark).is_empty()
}

/// What the volume group's own devices lead to is a physical volume of it: remembered with what it is, for when they do so no more.
pub(super) fn learn(
    group: &mut GroupRecord,
    ours: &[&DmDevice],
    list: &[DmDevice],
    mark: ReadMark<'_>,
) {
    let numbers: HashSet<DevNo> = ours.iter().map(|d| d.dev).collect();
    let below: BTreeSet<DevNo> = ours.iter().flat_map(|d| &d.deps).copied().collect();
    for dev in below.into_iter().filter(|dev| !numbers.contains(dev)) {
        let device = list.iter().find(|d| d.dev == dev);
        let found = PvRecord::new(dev, device.map_or("", |d| &d.uuid), mark);
        // A disk whose folder has gone tells nothing any more, and is known already.
        let tells = !found.uuid.is_empty() || !found.disk.is_empty();
        let known = |pv: &PvRecord| *pv == found || (!tells && pv.dev == dev);
        if !group.pvs.iter().any(known) {
            group.pvs.push(found);
        }
    }
}

/// It, in words.
pub(super) fn foreign(stranger: &Stranger<'_>, group: &GroupRecord) -> String {
    let d = stranger.device;
    let (what, then) = if stranger.surely {
        ("stands on a physical volume of", "remove it")
    } else {
        ("stands on the number of a physical volume of", FIND_OUT)
    };
    format!(
        "{} ({}, UUID '{}') {what} {} without belonging to it, so it was not touched: {then}",
        d.name, d.dev, d.uuid, group.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::DiskMark;

    #[test]
    fn a_number_that_became_its_own_is_learnt_beside_what_it_was() {
        let dm = |minor| DevNo { major: 253, minor };
        let sd = DevNo { major: 8, minor: 0 };
        let device = |minor, uuid: &str, deps: &[DevNo]| DmDevice {
            dev: dm(minor),
            uuid: uuid.into(),
            deps: deps.to_vec().into(),
            ..DmDevice::default()
        };
        let mark = |_| DiskMark {
            sequence: Some(4),
            ..DiskMark::default()
        };
        let was = PvRecord::new(dm(1), "mpath-a", &mark);
        let mut group = GroupRecord {
            pvs: vec![was.clone()],
            ..GroupRecord::default()
        };
        let list = [
            device(1, "mpath-b", &[]),
            device(2, "own", &[dm(1), sd]),
            device(3, "own too", &[dm(2), dm(1)]),
        ];
        let ours: Vec<&DmDevice> = list.iter().skip(1).collect();
        for _ in 0..2 {
            learn(&mut group, &ours, &list, &mark);
        }
        let is = PvRecord::new(dm(1), "mpath-b", &mark);
        assert_eq!(group.pvs, [was, PvRecord::new(sd, "", &mark), is]);
    }

    #[test]
    fn a_disk_that_the_kernel_has_dropped_is_known_by_what_it_was() {
        let sd = DevNo { major: 8, minor: 0 };
        let mark = |_| DiskMark {
            sequence: Some(4),
            ..DiskMark::default()
        };
        let own = DmDevice {
            deps: vec![sd].into(),
            ..DmDevice::default()
        };
        let mut group = GroupRecord::default();
        learn(&mut group, &[&own], &[], &mark);
        let was = [PvRecord::new(sd, "", &mark)];
        assert_eq!(group.pvs, was);
        learn(&mut group, &[&own], &[], &|_| DiskMark::default());
        assert_eq!(group.pvs, was);
    }
}
