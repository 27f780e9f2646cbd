//! Removing the error devices, dropping a lockspace that the fence left frozen, and giving queueing back.

use std::time::Duration;

use super::look::{OBSERVE, now, openers};
use super::{Lifting, Obstacle, Step};
use crate::agent::executor::FIND_OUT;
use crate::agent::observe::observe;
use crate::fence::remembered::strangers;
use crate::fence::report::StepResult;
use crate::fence::unfence::{
    Blocker, BlockerReason, GroupReport, LockState, UnfenceStep, UnfenceStepKind, lock_state,
};
use crate::fence::{DmDevice, Inventory};
use crate::host::{Error, Host, Result};

/// How long a device that is busy though nobody had it open a moment ago is tried again: udev looks into devices now and then.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// How long a drop may take, and how long the lockspace may take to go after it.
const DROP_LIMIT: Duration = Duration::from_secs(45);
const GONE_LIMIT: Duration = Duration::from_mins(1);
/// multipathd may be busy with the paths that have just come back.
const QUEUEING_TRIES: u32 = 3;
const QUEUEING: UnfenceStepKind = UnfenceStepKind::RestoreQueueing;

/// What became of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Yes,
    /// It is not on the error target any more, so it is not ours to remove.
    NotError,
}

/// Removes one device if it is what it was taken for. By UUID, which no other device has (S2); and never one that is open.
fn remove(host: &Host, device: &DmDevice) -> Result<Removed> {
    let mapper = &host.device_mapper;
    let found = mapper.device(&device.uuid)?;
    if !found.is_error_only() {
        return Ok(Removed::NotError);
    }
    mapper.remove(&device.uuid).map(|()| Removed::Yes)
}

impl Lifting<'_> {
    /// Afterwards no device of the groups is on the error target any more.
    pub(super) fn remove_devices(&mut self) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::RemoveDevices;
        let until = now(self.host) + BUSY_LIMIT;
        for group in self.groups() {
            self.begin(KIND, &group);
        }
        loop {
            let devices = match self.list() {
                Ok(devices) => devices,
                Err(e) => return Err(self.fail_first(KIND, &e.to_string())),
            };
            let mut busy = Vec::new();
            let mut left = false;
            for (at, group) in self.groups().into_iter().enumerate() {
                for device in group.standing.error_devices(&devices) {
                    left = true;
                    self.go_on()?;
                    self.remove_one(at, &group, device, &mut busy)?;
                }
            }
            if !left {
                break;
            }
            if !busy.is_empty() {
                if now(self.host) >= until {
                    return Err(self.busy(busy));
                }
                self.pause()?;
            }
        }
        for group in self.groups() {
            let n = group.devices_removed;
            let message = format!("{n} devices removed or gone");
            self.end(KIND, &group, StepResult::Done, message);
        }
        Ok(())
    }

    fn remove_one(
        &mut self,
        at: usize,
        group: &GroupReport,
        device: &DmDevice,
        busy: &mut Vec<(String, DmDevice)>,
    ) -> Step {
        let target = device.clone();
        let name = &group.standing.name;
        match self.ask("removing a device", move |h| remove(h, &target)) {
            Ok(Removed::Yes) | Err(Error::NoSuchDevice { .. }) => {
                if let Some(report) = self.report.groups.get_mut(at) {
                    report.devices_removed += 1;
                    report.devices_total = report.devices_total.max(report.devices_removed);
                }
                Ok(())
            }
            Err(Error::Busy { .. } | Error::Interrupted { .. }) => {
                busy.push((name.clone(), device.clone()));
                Ok(())
            }
            Ok(Removed::NotError) => {
                let message = format!(
                    "the table of {} was replaced just now: it is not removed, since it may be in use",
                    device.name
                );
                let blocker = Blocker {
                    device: Some(device.name.to_string()),
                    ..Blocker::new(BlockerReason::DeviceNotFenced, name, message)
                };
                Err(Obstacle::Blocked(vec![blocker]))
            }
            Err(e) => Err(self.fail(UnfenceStepKind::RemoveDevices, group, &e.to_string())),
        }
    }

    /// Devices that came into use since they were looked at.
    fn busy(&mut self, busy: Vec<(String, DmDevice)>) -> Obstacle {
        let found = openers(self.host, busy.iter().map(|b| b.1.clone()).collect());
        let blockers = busy.into_iter().map(|(group, device)| {
            let by = found.iter().find(|o| o.dev == device.dev);
            let who = by.map_or("somebody who is not to be seen", |o| o.who.as_str());
            Blocker {
                device: Some(device.name.to_string()),
                holder: by.map(|o| o.who.clone()),
                pod_uid: by.and_then(|o| o.pod_uid.clone()),
                ..Blocker::new(
                    BlockerReason::DeviceOpen,
                    &group,
                    format!("{} was opened meanwhile by {who}", device.name),
                )
            }
        });
        Obstacle::Blocked(blockers.collect())
    }

    pub(super) fn fail_first(&mut self, kind: UnfenceStepKind, why: &str) -> Obstacle {
        let first = self.report.groups.first().cloned().unwrap_or_default();
        self.fail(kind, &first, why)
    }

    /// Daemons that do not answer take their time: not a fence's.
    pub(super) fn inventory(&self) -> Step<Result<Inventory>> {
        self.wait_for("looking at the node", OBSERVE, observe)
    }

    /// Drops lockspaces that the fence froze and kept. No device of the volume group is left by now, so nobody can use what the locks protect.
    pub(super) fn drop_lockspaces(&mut self) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::DropLockspace;
        for group in self.groups() {
            let inventory = match self.inventory()? {
                Ok(inventory) => inventory,
                Err(e) => return Err(self.fail(KIND, &group, &e.to_string())),
            };
            let LockState::Frozen { vg } = lock_state(&group.standing, &inventory) else {
                let why = "the fence left no lockspace behind".to_owned();
                self.end(KIND, &group, StepResult::Skipped, why);
                continue;
            };
            self.begin(KIND, &group);
            if let Some(why) = self.in_the_way_of_a_drop(&group) {
                return Err(self.fail(KIND, &group, &why));
            }
            // Interrupted, it is left to lvmlockd, which goes on with it: the next attempt sees how far it has come.
            let dropped = self.wait_for("dropping the lockspace", DROP_LIMIT, move |h| {
                h.lvmlockd.drop_vg(&vg, DROP_LIMIT)
            })?;
            self.wait_until_gone(&group, dropped.err())?;
            let done = "the frozen lockspace is dropped".to_owned();
            self.end(KIND, &group, StepResult::Done, done);
        }
        Ok(())
    }

    /// A device that could still reach the storage under the locks.
    fn in_the_way_of_a_drop(&self, group: &GroupReport) -> Option<String> {
        let devices = match self.list() {
            Ok(devices) => devices,
            Err(e) => return Some(e.to_string()),
        };
        let standing = &group.standing;
        let own = devices
            .iter()
            .find(|d| standing.owns(d) && !standing.is_lvmlock(d));
        // A drop gives the locks away, so what is not proven to stand elsewhere is in its way (S1). One that is, on a device that has got the number of
        // a physical volume, is none of its business: it would be waited for in vain.
        let mark = |dev| self.host.system.mark(dev);
        let strange = || strangers(&devices, &standing.uuid, &standing.pvs, &mark);
        let found = own.map(|d| (d, true));
        let found = found.or_else(|| strange().first().map(|s| (s.device, s.surely)));
        let (device, surely) = found?;
        // Nobody is told to remove what may be somebody else's (S2).
        let then = if surely { "remove it first" } else { FIND_OUT };
        Some(format!(
            "{} may still use the storage that the locks protect; {then}",
            device.name
        ))
    }

    fn wait_until_gone(&mut self, group: &GroupReport, failed: Option<Error>) -> Step {
        let until = now(self.host) + GONE_LIMIT;
        loop {
            let state = self
                .inventory()?
                .map(|inventory| lock_state(&group.standing, &inventory));
            if matches!(state, Ok(LockState::Absent)) {
                return Ok(());
            }
            if now(self.host) >= until {
                let why = failed.map_or_else(
                    || "the lock manager was not seen to let go".to_owned(),
                    |e| e.to_string(),
                );
                return Err(self.fail(UnfenceStepKind::DropLockspace, group, &why));
            }
            self.pause()?;
        }
    }

    /// Has multipathd queue again as it is configured, where the fence turned it off. A map that it fails for is told: the node can be used without,
    /// it only answers the next short outage with errors.
    pub(super) fn restore_queueing(&mut self) -> Step {
        self.restore_maps(self.groups(), QUEUEING_TRIES)
    }

    /// Once more what failed. A multipathd that was busy with the paths has had the time until the lockspaces were joined; nothing waits for it.
    pub(super) fn restore_what_is_left(&mut self) {
        let failed = self.groups().into_iter().filter(|g| {
            let step = self.step(QUEUEING, g);
            step.is_some_and(|s| s.result == StepResult::Failed)
        });
        let failed: Vec<GroupReport> = failed.collect();
        if failed.is_empty() {
            return;
        }
        // Interrupted, it is told as before: what is not known to queue counts as if it did not.
        let _ = self.restore_maps(failed.clone(), 1);
        for group in failed {
            let step = self.step(QUEUEING, &group);
            let left =
                |s: &&mut UnfenceStep| matches!(s.result, StepResult::Failed | StepResult::Running);
            let Some(step) = step.filter(left) else {
                continue;
            };
            step.result = StepResult::Failed;
            let why = step.message.clone().unwrap_or_default();
            self.note(why);
        }
    }

    fn restore_maps(&mut self, groups: Vec<GroupReport>, tries: u32) -> Step {
        let devices = self.list();
        // One that hangs does so for every map, and to find that out takes seconds.
        let mut hangs = false;
        for group in groups {
            let turned_off = &group.standing.turned_off;
            if let (Err(e), false) = (&devices, turned_off.is_empty()) {
                let why = format!("its maps are not seen ({e}); see multipath -ll");
                self.end(QUEUEING, &group, StepResult::Failed, why);
                continue;
            }
            let devices = devices.as_deref().unwrap_or_default();
            let maps: Vec<String> = turned_off
                .iter()
                .filter_map(|uuid| devices.iter().find(|d| d.uuid == *uuid))
                .map(|d| d.name.to_string())
                .collect();
            if maps.is_empty() {
                let why = "the fence turned no queueing off".to_owned();
                self.end(QUEUEING, &group, StepResult::Skipped, why);
                continue;
            }
            self.begin(QUEUEING, &group);
            let mut failed = Vec::new();
            for map in &maps {
                let why = if hangs {
                    "not asked, since multipathd does not answer".to_owned()
                } else if let Err(e) = self.restore_map(map, tries)? {
                    hangs = matches!(e, Error::TimedOut { .. });
                    e.to_string()
                } else {
                    continue;
                };
                failed.push(format!(
                    "map {map} does not queue yet ({why}); multipathd restorequeueing map {map}"
                ));
            }
            if failed.is_empty() {
                let done = format!("{} queues again as it is configured", maps.join(", "));
                self.end(QUEUEING, &group, StepResult::Done, done);
            } else {
                self.end(QUEUEING, &group, StepResult::Failed, failed.join("; "));
            }
        }
        Ok(())
    }

    /// One question is waited for even when a fence waits: left in multipathd's socket it might be answered in the middle of that.
    fn restore_map(&self, map: &str, most: u32) -> Step<Result<()>> {
        let mut tries = 0;
        loop {
            self.go_on()?;
            let name = map.to_owned();
            let answer = self.ask("telling multipathd", move |h| {
                h.multipathd.restore_queueing(&name)
            });
            tries += 1;
            if answer.is_ok() || tries >= most {
                return Ok(answer);
            }
            self.pause()?;
        }
    }
}
