//! The book of a swap: every device of the volume groups, how it stands, and what the last listing says about it. Knows no I/O.

mod proof;
mod strange;
#[cfg(test)]
mod tests;
mod told;

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use super::worker::{Attempt, Job, Letter, Work};
use crate::agent::journal::GroupRecord;
use crate::fence::remembered::{ReadMark, strangers};
use crate::fence::topology;
use crate::fence::{DevNo, DevNos, DmDevice, Monotonic};

pub(super) use proof::{Proof, open_groups};
pub(super) use strange::closed;
use strange::{foreign, learn};

/// A device's part of what all of them take that go quickly, on a slow machine (docs/measurements.md: 0.2 to 1 ms on two emulated cores)...
const EACH: Duration = Duration::from_millis(1);
/// ...and what is waited for them, however many there are.
const AT_MOST: Duration = Duration::from_secs(10);
/// Between attempts that failed.
const RETRY: Duration = Duration::from_millis(200);
/// Between looks whether a thread of an earlier fence has come back from a device.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// More threads than that are not needed, for devices that go quickly...
const FAST: usize = 32;
/// ...one that takes longer than this no longer counts among those...
pub(super) const STUCK: Duration = Duration::from_millis(500);
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
    /// It may go; no thread is at it yet.
    Queued,
    /// A thread is at it since then.
    Running(Monotonic),
    /// A thread that an earlier fence of this process left there is at it, since the first of these; not before the other.
    Elsewhere(Monotonic, Monotonic),
    Settled(Settled),
}

#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub(super) group: usize,
    pub(super) dev: DevNo,
    /// One for the book, its index, and who is at work: there may be thousands.
    pub(super) uuid: SmolStr,
    pub(super) name: SmolStr,
    sectors: u64,
    open_count: u32,
    /// What has to wait for it.
    below: DevNos,
    pub(super) state: State,
    late: bool,
    /// Whether the last listing showed it suspended.
    suspended: bool,
    /// What the thread is for that it waits for or has.
    work: Option<Work>,
    /// Whether the last listing showed it on the error target.
    read_back: bool,
    note: Option<String>,
}

impl Tracked {
    fn settled(&self) -> bool {
        matches!(self.state, State::Settled(_))
    }
}

/// Lists of the devices that were taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Lists {
    /// None, and the kernel was not asked for one.
    #[default]
    NotAsked,
    /// None, though the kernel was asked.
    NoneYet,
    One,
    More,
}

/// All devices of a fence.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// Only grows: a device keeps its place.
    devices: Vec<Tracked>,
    /// Places by UUID.
    places: HashMap<SmolStr, usize>,
    /// Counts what was settled: a listing proves only what was settled before it began.
    epoch: u64,
    lists: Lists,
    settled_last: Monotonic,
    /// The devices were known before the first listing.
    pub(super) planned: bool,
    /// Devices that stand on a physical volume without belonging to the volume group: (group, what to say).
    foreign: Vec<(usize, String)>,
    /// Volume groups that are none of its business any more: whatever it has of them counts as gone.
    left_out: BTreeSet<usize>,
}

impl Book {
    /// These volume groups are none of the fence's business any more.
    pub(super) fn leave_out(&mut self, groups: &BTreeSet<usize>) {
        if self.left_out == *groups {
            return;
        }
        self.left_out.clone_from(groups);
        let theirs = self
            .devices
            .iter_mut()
            .filter(|t| groups.contains(&t.group));
        for t in theirs.filter(|t| !matches!(t.state, State::Running(_))) {
            t.state = State::Settled(Settled::Gone);
        }
        self.epoch += 1;
    }

    /// The kernel is asked for a list.
    pub(super) fn ask(&mut self) {
        self.lists = self.lists.max(Lists::NoneYet);
    }

    fn listed(&self) -> bool {
        self.lists >= Lists::One
    }

    fn listed_before(&self) -> bool {
        self.lists == Lists::More
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether there is nothing to do for the group, as far as is known.
    pub(super) fn group_settled(&self, group: usize) -> bool {
        self.listed()
            && self
                .devices
                .iter()
                .filter(|d| d.group == group)
                .all(Tracked::settled)
    }

    pub(super) fn all_settled(&self) -> bool {
        self.listed() && self.planned_settled()
    }

    /// The same before there was a listing: it is time for one.
    pub(super) fn planned_settled(&self) -> bool {
        self.devices.iter().all(Tracked::settled)
    }

    /// Takes a listing in that was begun then, at `epoch`. It is the proof if it was begun after everything was settled, every device of the volume
    /// groups is on the error target, and none else stands on their physical volumes (S1).
    pub(super) fn see(
        &mut self,
        groups: &mut [GroupRecord],
        list: &[DmDevice],
        epoch: u64,
        mark: ReadMark<'_>,
        begun: Monotonic,
        now: Monotonic,
    ) -> Option<Proof> {
        let current = epoch == self.epoch;
        self.lists = if self.listed() {
            Lists::More
        } else {
            Lists::One
        };
        let mut proven = current && (self.listed_before() || self.planned);
        self.foreign.clear();
        for (at, group) in groups.iter_mut().enumerate() {
            if self.left_out.contains(&at) {
                continue;
            }
            let uuid = group.uuid.clone();
            let is_ours =
                |d: &DmDevice| topology::volume_group_uuid(&d.uuid) == Some(uuid.as_str());
            let ours: Vec<&DmDevice> = list.iter().filter(|d| is_ours(d)).collect();
            learn(group, &ours, list, mark);
            let is_lvmlock = |d: &DmDevice| group.lvmlock.as_deref() == Some(d.uuid.as_str());
            for d in ours.iter().filter(|d| !is_lvmlock(d)) {
                proven &= d.is_error_only();
                self.see_device(at, d, list, current, now);
            }
            for stranger in strangers(list, &uuid, &group.pvs, mark) {
                proven = false;
                self.foreign.push((at, foreign(&stranger, group)));
            }
        }
        let listed: HashSet<&str> = list.iter().map(|d| d.uuid.as_str()).collect();
        for t in &mut self.devices {
            let at_it = matches!(t.state, State::Queued | State::Running(_));
            let gone = t.state == State::Settled(Settled::Gone);
            if current && !at_it && !gone && !listed.contains(&*t.uuid) {
                t.state = State::Settled(Settled::Gone);
                self.epoch += 1;
            }
        }
        (proven && self.all_settled()).then(|| Proof::of(begun))
    }

    /// Takes in what the plan was made from, so that the swap need not wait for a listing. What has changed since is in the next one, without
    /// which nothing is proven.
    pub(super) fn plan(&mut self, group: usize, devices: &[Arc<DmDevice>], now: Monotonic) {
        self.planned = true;
        for d in devices {
            self.see_device(group, d, devices, true, now);
        }
    }

    fn see_device(
        &mut self,
        group: usize,
        d: &DmDevice,
        list: &[impl Borrow<DmDevice>],
        current: bool,
        now: Monotonic,
    ) {
        let place = self.places.get(d.uuid.as_str());
        let Some(t) = place.and_then(|at| self.devices.get_mut(*at)) else {
            self.places.insert(d.uuid.clone(), self.devices.len());
            let found = d.is_error_only();
            self.epoch += u64::from(found);
            self.devices.push(Tracked {
                group,
                dev: d.dev,
                uuid: d.uuid.clone(),
                name: d.name.clone(),
                sectors: d.sectors,
                open_count: d.open_count,
                below: topology::under(d, list),
                state: if found {
                    State::Settled(Settled::Found)
                } else {
                    State::Waiting(now)
                },
                late: self.listed_before() || (self.planned && self.listed()),
                suspended: d.suspended,
                work: None,
                read_back: false,
                note: None,
            });
            return;
        };
        t.below = topology::under(d, list);
        if current {
            t.suspended = d.suspended;
        }
        t.read_back = d.is_error_only();
        t.sectors = d.sectors;
        if matches!(t.state, State::Queued | State::Running(_)) {
            return;
        }
        if matches!(t.state, State::Waiting(_) | State::Elsewhere(..)) && d.is_error_only() {
            // An earlier attempt has got through after all, or somebody else has done it.
            t.dev = d.dev;
            t.state = State::Settled(Settled::Found);
            self.epoch += 1;
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

    /// Devices to go on with now: nothing unsettled is stacked on them. They count as queued from now on.
    ///
    /// But for one that somebody left suspended below a swap that hangs: it may be what that swap waits for, whose I/O is put off there, or which is
    /// suspended with it (dm-thin.c, `pool_presuspend`). As it is in nobody's way once it is resumed, that is done first.
    pub(super) fn start(&mut self, now: Monotonic) -> Vec<Job> {
        let due = |t: &Tracked| match t.state {
            State::Waiting(at) | State::Elsewhere(_, at) => at <= now,
            _ => false,
        };
        if !self.devices.iter().any(due) {
            return Vec::new();
        }
        let unsettled = || self.devices.iter().filter(|t| !t.settled());
        let held: HashSet<DevNo> = unsettled().flat_map(|t| &t.below).copied().collect();
        let waiting: BTreeSet<DevNo> = unsettled().map(|t| t.dev).collect();
        let awaited = if self.devices.iter().any(|t| t.suspended && due(t)) {
            self.below_what_hangs(now)
        } else {
            HashSet::new()
        };
        let mut jobs = Vec::new();
        for (at, t) in self.devices.iter_mut().enumerate().filter(|(_, t)| due(t)) {
            let work = if !held.contains(&t.dev) {
                Work::Swap(t.sectors)
            } else if t.suspended && awaited.contains(&t.dev) {
                Work::Resume
            } else {
                continue;
            };
            t.state = State::Queued;
            t.work = Some(work);
            let below = t.below.iter().filter(|dev| waiting.contains(dev));
            jobs.push(Job {
                at,
                uuid: t.uuid.clone(),
                work,
                below: below.copied().collect(),
            });
        }
        jobs
    }

    /// What is below devices whose swap takes long, through however many others.
    fn below_what_hangs(&self, now: Monotonic) -> HashSet<DevNo> {
        let hangs = |t: &&Tracked| match t.state {
            State::Running(since) | State::Elsewhere(since, _) => now.since(since) >= STUCK,
            _ => false,
        };
        let of_it = |t: &Tracked| t.below.iter().copied().collect::<Vec<_>>();
        let mut next: Vec<DevNo> = self.devices.iter().filter(hangs).flat_map(of_it).collect();
        let mut all = HashSet::new();
        while let Some(dev) = next.pop() {
            if all.insert(dev) {
                next.extend(self.devices.iter().filter(|t| t.dev == dev).flat_map(of_it));
            }
        }
        all
    }

    /// How long they may take, all going well.
    pub(super) fn takes(&self) -> Duration {
        let devices = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        (EACH * devices).min(AT_MOST)
    }

    /// What it is called.
    pub(super) fn name(&self, at: usize) -> &str {
        self.devices.get(at).map_or("", |t| &t.name)
    }

    /// How many threads are of use: enough for the devices that go quickly, one for each that does not, and one for each of which those may wait.
    pub(super) fn threads(&self, now: Monotonic) -> usize {
        let stuck =
            |t: &&Tracked| matches!(t.state, State::Running(since) if now.since(since) >= STUCK);
        let stuck = self.devices.iter().filter(stuck).count();
        let at_it = |t: &&Tracked| matches!(t.state, State::Queued | State::Running(_));
        let resumes = self
            .devices
            .iter()
            .filter(|t| t.work == Some(Work::Resume) && at_it(t));
        (FAST + stuck).min(MOST) + resumes.count()
    }

    /// When to look at [`Self::start`] again though nothing was settled.
    pub(super) fn next_retry(&self, now: Monotonic) -> Option<Monotonic> {
        let at = |t: &Tracked| match t.state {
            State::Waiting(at) | State::Elsewhere(_, at) if at > now => Some(at),
            State::Running(since) if since + STUCK > now => Some(since + STUCK),
            _ => None,
        };
        self.devices.iter().filter_map(at).min()
    }

    /// Takes in what a thread tells.
    pub(super) fn told(&mut self, letter: Letter, now: Monotonic) {
        let (Letter::Began(at, _) | Letter::Ended(at, _)) = &letter;
        let Some(t) = self.devices.get_mut(*at) else {
            return;
        };
        let settled = match (&letter, &t.state) {
            (Letter::Ended(_, Attempt::Swapped(took)), State::Running(since)) => *since + *took,
            (Letter::Ended(_, Attempt::Gone), _) => now,
            _ => Monotonic::default(),
        };
        self.settled_last = self.settled_last.max(settled);
        t.state = match letter {
            Letter::Began(_, since) => State::Running(since),
            Letter::Ended(_, Attempt::Swapped(took)) => State::Settled(Settled::Swapped(took)),
            Letter::Ended(_, Attempt::Gone) => State::Settled(Settled::Gone),
            Letter::Ended(_, Attempt::Resumed) => {
                t.suspended = false;
                // A list that was begun before may show it suspended.
                self.epoch += 1;
                State::Waiting(now)
            }
            Letter::Ended(_, Attempt::Failed(why)) => {
                t.note = Some(why);
                State::Waiting(now + RETRY)
            }
            Letter::Ended(_, Attempt::Elsewhere(since)) => State::Elsewhere(since, now + ELSEWHERE),
        };
        if self.left_out.contains(&t.group) && !matches!(t.state, State::Running(_)) {
            t.state = State::Settled(Settled::Gone);
        }
        self.epoch += u64::from(t.settled());
    }

    /// When a thread had settled the last of those that were settled, as far as its swap tells. Its letter may be taken up much later.
    pub(super) const fn settled_last(&self) -> Monotonic {
        self.settled_last
    }

    /// What stands in the way of proof in a group.
    pub(super) fn shortcomings(&self, group: usize) -> Vec<String> {
        let mut all: Vec<String> = self
            .devices
            .iter()
            .filter(|t| t.group == group && !t.settled())
            .map(|t| t.name.to_string())
            .collect();
        all.extend(
            self.foreign
                .iter()
                .filter(|f| f.0 == group)
                .map(|f| f.1.clone()),
        );
        if self.lists == Lists::NoneYet {
            all.push("the devices could not be listed".into());
        }
        all
    }
}
