//! Closing a fence again that no longer holds (S6): the swap and its proof, without anything about locks.

use std::collections::BTreeSet;
use std::time::Duration;

use super::limited;
use super::quiesce::{Found, turn_off};
use super::{ASK, Fence};
use crate::agent::journal::{GroupRecord, Journal};
use crate::fence::order::{Order, ReleaseLocks};
use crate::fence::report::{
    FenceReport, LocksOutcome, Outcome, StepKind, StepReport, StepResult, VolumeGroupReport,
};
use crate::fence::topology::volume_group_uuid;
use crate::fence::{DmDevice, Monotonic, remembered};
use crate::host::{Host, Result};

/// A closing waits as long as it takes: I/O that went out while it was open has to end, and nobody waits for the result.
const NO_DEADLINE: Duration = Duration::from_hours(24 * 365);

/// What to do about a device of which only a number says that it stands on a physical volume.
pub const FIND_OUT: &str = "find out whose disk that is (dmsetup deps, lsblk), and remove the device only if it is the volume group's";

fn owns(group: &GroupRecord, d: &DmDevice) -> bool {
    volume_group_uuid(&d.uuid) == Some(group.uuid.as_str())
}

/// The devices of a volume group in that list of all devices, the leases' volume aside.
pub fn own_devices<'a>(
    list: &'a [DmDevice],
    group: &'a GroupRecord,
) -> impl Iterator<Item = &'a DmDevice> {
    let leases = |d: &&DmDevice| group.lvmlock.as_deref() != Some(d.uuid.as_str());
    list.iter().filter(|d| owns(group, d)).filter(leases)
}

/// Names of devices that stand on a physical volume of the volume group without belonging to it: they reach its storage whatever its own tables
/// are, and are not the fence's to touch (S2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// On what is proven to be one.
    pub surely: Vec<String>,
    /// On what has one's number, and may be another.
    pub perhaps: Vec<String>,
}

/// Those of that list of all devices.
#[must_use]
pub fn strangers(host: &Host, list: &[DmDevice], group: &GroupRecord) -> Strangers {
    let mark = |dev| host.system.mark(dev);
    let mut names = Strangers::default();
    for stranger in remembered::strangers(list, &group.uuid, &group.pvs, &mark) {
        let name = stranger.device.name.to_string();
        if stranger.surely {
            names.surely.push(name);
        } else {
            names.perhaps.push(name);
        }
    }
    names
}

/// What can still reach the storage of a volume group, by that list of all devices: its own devices that have a way to the SAN, or would have one
/// after a resume; and strangers, also those of which it is only not proven that they cannot, since locks go by the answer (S1). Words for people.
#[must_use]
pub fn open_devices(host: &Host, list: &[DmDevice], group: &GroupRecord) -> Vec<String> {
    let open = own_devices(list, group).filter(|d| !d.is_error_only());
    let strange = strangers(host, list, group);
    let vg = &group.name;
    let surely = strange.surely.into_iter().map(|name| {
        format!("{name} (which is none of {vg}'s, so that it was not touched: remove it)")
    });
    let perhaps = strange.perhaps.into_iter().map(|name| {
        format!(
            "{name} (which is none of {vg}'s, so that it was not touched, and stands on the number of a physical volume: {FIND_OUT})"
        )
    });
    open.map(|d| d.name.to_string())
        .chain(surely)
        .chain(perhaps)
        .collect()
}

/// Has a map fail its I/O that began to queue while no path works. Whether it had.
///
/// # Errors
/// When the map cannot be asked in time.
pub fn keep_queueing_off(host: &Host, map_uuid: &str) -> Result<bool> {
    let uuid = map_uuid.to_owned();
    let call = move |h: &Host| turn_off(h, &uuid, false);
    let what = "looking after the queueing";
    let found = limited::call_about(host, what, map_uuid, ASK, call)?;
    Ok(found == Found::TurnedOff)
}

/// Cuts the devices of a volume group off again. Ends with proof, or when `leave` says so; `progress` is told in between.
pub fn refence(
    host: &Host,
    group: &GroupRecord,
    leave: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&FenceReport),
) -> FenceReport {
    let started = host.system.monotonic();
    let mut fence = Fence {
        host,
        journal: &mut Journal::silent(),
        progress,
        order: Order {
            release_locks: ReleaseLocks::Never,
            drain_timeout: NO_DEADLINE,
            ..Order::default()
        },
        groups: vec![group.clone()],
        planned: Vec::new(),
        reset: None,
        report: report(group, started),
        resumed: true,
        gave_way: false,
        releases_again: false,
        leave,
        cancel: &|| false,
        unguarded: BTreeSet::new(),
        handed_on: BTreeSet::new(),
    };
    // A map with a working path is left alone, here as in every fence: I/O ends by itself.
    let guard = fence.quiesce();
    if fence.swap(guard).is_some() {
        fence.report.outcome = Outcome::Proven;
    }
    fence.report.finished_after = Some(host.system.monotonic().since(started));
    fence.report
}

fn report(group: &GroupRecord, started: Monotonic) -> FenceReport {
    let step = |kind, map: Option<&str>| StepReport {
        kind,
        volume_group: group.name.clone(),
        map: map.map(str::to_owned),
        // Whether it queues is looked at every second, and changed only where no path works.
        result: if kind == StepKind::Quiesce {
            StepResult::Skipped
        } else {
            StepResult::Planned
        },
        at: None,
        took: None,
        message: None,
        untold: false,
    };
    let mut steps: Vec<StepReport> = group
        .maps
        .iter()
        .map(|m| step(StepKind::Quiesce, Some(&m.name)))
        .collect();
    steps.extend([step(StepKind::Swap, None), step(StepKind::Verify, None)]);
    FenceReport {
        started,
        volume_groups: vec![VolumeGroupReport {
            name: group.name.clone(),
            uuid: group.uuid.clone(),
            ..VolumeGroupReport::default()
        }],
        steps,
        locks: LocksOutcome::Kept,
        ..FenceReport::default()
    }
}
