//! The book of a swap: every device of the volume groups, how it stands, and what the last listing says about it. Knows no I/O.

use std::collections::BTreeSet;
use std::time::Duration;

use super::worker::Attempt;
use crate::agent::journal::GroupRecord;
use crate::fence::report::{DeviceOutcome, DeviceReport, VolumeGroupReport};
use crate::fence::topology;
use crate::fence::{DevNo, DmDevice, Monotonic};

/// Between attempts that failed.
const RETRY: Duration = Duration::from_millis(200);
/// More threads than that are not started at once, for devices that go quickly...
const FAST: usize = 32;
/// ...one that takes longer than this no longer counts among those...
const STUCK: Duration = Duration::from_millis(500);
/// ...and this many there are at most.
const MOST: usize = 1024;

/// What is known about a device that needs no more work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Swapped(Duration),
    Found,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not before that time.
    Waiting(Monotonic),
    /// A thread is at it since then.
    Running(Monotonic),
    Settled(Settled),
}

#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub(super) group: usize,
    pub(super) dev: DevNo,
    pub(super) uuid: String,
    pub(super) name: String,
    open_count: u32,
    /// What has to wait for it.
    below: BTreeSet<DevNo>,
    pub(super) state: State,
    late: bool,
    /// Whether the last listing showed it on the error target.
    read_back: bool,
    note: Option<String>,
}

impl Tracked {
    fn settled(&self) -> bool {
        matches!(self.state, State::Settled(_))
    }
}

/// That every device was read back on the error target (S1). Only a listing can make one, and nothing is released without.
#[derive(Debug)]
pub(super) struct Proof(());

/// All devices of a fence.
#[derive(Debug, Default)]
pub(super) struct Book {
    devices: Vec<Tracked>,
    /// Counts what was settled: a listing proves only what was settled before it began.
    epoch: u64,
    listed: bool,
    listed_before: bool,
    /// Devices that stand on a physical volume without belonging to the volume group: (group, what to say).
    foreign: Vec<(usize, String)>,
}

impl Book {
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether there is nothing to do for the group, as far as is known.
    pub(super) fn group_settled(&self, group: usize) -> bool {
        self.listed
            && self
                .devices
                .iter()
                .filter(|d| d.group == group)
                .all(Tracked::settled)
    }

    pub(super) fn all_settled(&self) -> bool {
        self.listed && self.devices.iter().all(Tracked::settled)
    }

    /// Takes a listing in that was begun at `epoch`. It is the proof if it was begun after everything was settled, every device of the volume
    /// groups is on the error target, and none else stands on their physical volumes (S1).
    pub(super) fn see(
        &mut self,
        groups: &mut [GroupRecord],
        list: &[DmDevice],
        epoch: u64,
        now: Monotonic,
    ) -> Option<Proof> {
        let current = epoch == self.epoch;
        self.listed_before = self.listed;
        self.listed = true;
        let mut proven = current && self.listed_before;
        self.foreign.clear();
        for (at, group) in groups.iter_mut().enumerate() {
            let uuid = group.uuid.clone();
            let is_ours =
                |d: &DmDevice| topology::volume_group_uuid(&d.uuid) == Some(uuid.as_str());
            let is_lvmlock = |d: &DmDevice| group.lvmlock.as_deref() == Some(d.uuid.as_str());
            let ours: Vec<&DmDevice> = list.iter().filter(|d| is_ours(d)).collect();
            for d in &ours {
                for dep in &d.deps {
                    if !ours.iter().any(|o| o.dev == *dep) && !group.pvs.contains(dep) {
                        group.pvs.push(*dep);
                    }
                }
            }
            for d in ours.iter().filter(|d| !is_lvmlock(d)) {
                proven &= d.is_error_only();
                self.see_device(at, d, list, current, now);
            }
            for d in list.iter().filter(|d| !is_ours(d)) {
                if d.deps.iter().any(|dep| group.pvs.contains(dep)) {
                    proven = false;
                    self.foreign.push((at, foreign(d, group)));
                }
            }
        }
        for t in &mut self.devices {
            let listed = list.iter().any(|d| d.uuid == t.uuid);
            if !listed
                && !matches!(t.state, State::Running(_) | State::Settled(Settled::Gone))
                && current
            {
                t.state = State::Settled(Settled::Gone);
                self.epoch += 1;
            }
        }
        (proven && self.all_settled()).then_some(Proof(()))
    }

    fn see_device(
        &mut self,
        group: usize,
        d: &DmDevice,
        list: &[DmDevice],
        current: bool,
        now: Monotonic,
    ) {
        let Some(t) = self.devices.iter_mut().find(|t| t.uuid == d.uuid) else {
            self.devices.push(Tracked {
                group,
                dev: d.dev,
                uuid: d.uuid.clone(),
                name: d.name.clone(),
                open_count: d.open_count,
                below: topology::under(d, list),
                state: State::Waiting(now),
                late: self.listed_before,
                read_back: false,
                note: None,
            });
            return;
        };
        t.below = topology::under(d, list);
        t.read_back = d.is_error_only();
        if matches!(t.state, State::Running(_)) {
            return;
        }
        if t.dev != d.dev {
            // Taken down and set up again under another number: another device in all but name.
            t.dev = d.dev;
            t.state = State::Waiting(now);
        } else if t.settled()
            && current
            && (!d.is_error_only() || t.state == State::Settled(Settled::Gone))
        {
            t.note = Some("its table was replaced after it had been swapped".into());
            t.state = State::Waiting(now);
        }
    }

    /// Devices to start with now: nothing unsettled is stacked on them, and a thread is free. They are marked as running.
    pub(super) fn start(&mut self, now: Monotonic) -> Vec<(DevNo, String)> {
        let running = |t: &&Tracked| matches!(t.state, State::Running(_));
        let quick =
            |t: &&Tracked| matches!(t.state, State::Running(since) if now.since(since) < STUCK);
        let all = self.devices.iter().filter(running).count();
        let fast = self.devices.iter().filter(quick).count();
        let free = FAST.saturating_sub(fast).min(MOST.saturating_sub(all));
        let ready: Vec<usize> = (0..self.devices.len())
            .filter(|i| {
                let due = |t: &Tracked| matches!(t.state, State::Waiting(at) if at <= now);
                self.devices
                    .get(*i)
                    .is_some_and(|t| due(t) && self.above(t).is_none())
            })
            .take(free)
            .collect();
        let mut started = Vec::new();
        for i in ready {
            if let Some(t) = self.devices.get_mut(i) {
                t.state = State::Running(now);
                started.push((t.dev, t.uuid.clone()));
            }
        }
        started
    }

    /// A device that has to be settled first: it is stacked on this one.
    fn above(&self, t: &Tracked) -> Option<&Tracked> {
        let on_top = |o: &&Tracked| o.uuid != t.uuid && !o.settled() && o.below.contains(&t.dev);
        self.devices.iter().find(on_top)
    }

    /// When to look at [`Self::start`] again though nothing was settled.
    pub(super) fn next_retry(&self, now: Monotonic) -> Option<Monotonic> {
        let at = |t: &Tracked| match t.state {
            State::Waiting(at) if at > now => Some(at),
            State::Running(since) if since + STUCK > now => Some(since + STUCK),
            _ => None,
        };
        self.devices.iter().filter_map(at).min()
    }

    /// Takes in what became of an attempt.
    pub(super) fn attempted(&mut self, uuid: &str, attempt: Attempt, now: Monotonic) {
        let Some(t) = self.devices.iter_mut().find(|t| t.uuid == uuid) else {
            return;
        };
        t.state = match attempt {
            Attempt::Swapped(took) => State::Settled(Settled::Swapped(took)),
            Attempt::Found => State::Settled(Settled::Found),
            Attempt::Gone => State::Settled(Settled::Gone),
            Attempt::Failed(why) => {
                t.note = Some(why);
                State::Waiting(now + RETRY)
            }
        };
        self.epoch += u64::from(t.settled());
    }

    /// Writes the book into the report. `proven`: by the last listing; `given_up`: the deadline has passed.
    pub(super) fn report(
        &self,
        groups: &mut [VolumeGroupReport],
        proven: bool,
        given_up: bool,
        now: Monotonic,
    ) {
        for t in &self.devices {
            let Some(group) = groups.get_mut(t.group) else {
                continue;
            };
            let at = group
                .devices
                .iter()
                .position(|d| d.uuid == t.uuid)
                .unwrap_or_else(|| {
                    group.devices.push(DeviceReport {
                        uuid: t.uuid.clone(),
                        name: t.name.clone(),
                        open_count: t.open_count,
                        ..DeviceReport::default()
                    });
                    group.devices.len() - 1
                });
            if let Some(d) = group.devices.get_mut(at) {
                d.dev = t.dev;
                self.report_device(t, d, proven, given_up, now);
            }
        }
        // In the plan, but in no listing.
        let unseen = |d: &&mut DeviceReport| !self.devices.iter().any(|t| t.uuid == d.uuid);
        let (outcome, message) = match (proven, given_up) {
            (true, _) => (DeviceOutcome::Gone, None),
            (false, true) => (DeviceOutcome::NotProven, Some("it could not be read back")),
            (false, false) => return,
        };
        for d in groups
            .iter_mut()
            .flat_map(|g| &mut g.devices)
            .filter(unseen)
        {
            d.outcome = outcome;
            d.message = message.map(str::to_owned);
        }
    }

    fn report_device(
        &self,
        t: &Tracked,
        d: &mut DeviceReport,
        proven: bool,
        given_up: bool,
        now: Monotonic,
    ) {
        let unproven = if given_up {
            DeviceOutcome::NotProven
        } else {
            DeviceOutcome::Planned
        };
        let late = t.late.then(|| "it appeared during the fence".to_owned());
        (d.outcome, d.message) = match &t.state {
            State::Settled(Settled::Gone) => (DeviceOutcome::Gone, None),
            State::Settled(settled) => {
                let message = match settled {
                    Settled::Swapped(took) => {
                        d.swap_took = Some(*took);
                        late
                    }
                    _ => Some("the error target was in place already; the kernel puts it there only when no I/O is in flight".into()),
                };
                if proven || t.read_back {
                    (DeviceOutcome::Error, message)
                } else {
                    (unproven, Some("swapped, but not read back".into()))
                }
            }
            State::Running(since) => {
                let waited = now.since(*since).as_secs();
                (
                    unproven,
                    Some(format!(
                        "its I/O that was already issued has not ended for {waited} s: the kernel cannot swap its table before"
                    )),
                )
            }
            State::Waiting(_) => {
                let above = self
                    .above(t)
                    .map(|a| format!("waits for {}, which is stacked on it", a.name));
                (unproven, above.or_else(|| t.note.clone()).or(late))
            }
        };
    }

    /// What stands in the way of proof in a group.
    pub(super) fn shortcomings(&self, group: usize) -> Vec<String> {
        let mut all: Vec<String> = self
            .devices
            .iter()
            .filter(|t| t.group == group && !t.settled())
            .map(|t| t.name.clone())
            .collect();
        all.extend(
            self.foreign
                .iter()
                .filter(|f| f.0 == group)
                .map(|f| f.1.clone()),
        );
        if !self.listed {
            all.push("the devices could not be listed".into());
        }
        all
    }
}

fn foreign(d: &DmDevice, group: &GroupRecord) -> String {
    format!(
        "{} ({}, UUID '{}') stands on a physical volume of {} without belonging to it, so it was not touched: remove it",
        d.name, d.dev, d.uuid, group.name
    )
}
