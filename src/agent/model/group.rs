//! One volume group of the world: volumes on a multipath map of its own, what they write, and the lock on them.

use super::world::ROUND_TRIP;
use crate::fence::budget::{ResetWindow, lease_lifetime};
use crate::fence::{LockspaceState, Monotonic};

/// Seconds of sanlock's I/O time-out: everything goes ten times as fast as by default.
pub(super) const IO_TIMEOUT: u32 = 1;
/// Seconds of the watchdog.
pub(super) const FIRE_TIMEOUT: u32 = 5;
/// sanlock lets go so long after a drop, and has forgotten the lockspace after as long again.
pub(super) const LETS_GO: u32 = 200;
/// How long it takes to join a lockspace.
const JOIN: u32 = 2000;

/// The generation that the world begins with.
const FIRST: u64 = 3;

/// What a table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Table {
    /// Leads to the map.
    Linear,
    /// Leads nowhere.
    Error,
}

/// A volume on host A. All of a volume group lie on one multipath map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Volume {
    /// The live table.
    pub table: Table,
    /// What waits in the inactive slot.
    pub inactive: Option<Table>,
    /// Suspended by somebody else.
    pub suspended: bool,
    /// The error table that a swap of this process (0: the agent, 1: the hook) brings in as soon as nothing is in flight.
    pub swapping: Option<u8>,
    /// Somebody opened it, without any lock, after everything had been seen closed: what no fence can foresee, and what the guard is for.
    pub late: bool,
    /// The highest generation of the lockspace when it was made.
    pub made: u64,
}

impl Volume {
    const NEW: Self = Self {
        table: Table::Linear,
        inactive: None,
        suspended: false,
        swapping: None,
        late: false,
        made: FIRST,
    };

    /// Whether nothing gets through it, now or by a mere resume.
    pub(super) fn closed(self) -> bool {
        self.table == Table::Error
            && self.inactive.is_none()
            && !self.suspended
            && self.swapping.is_none()
    }

    /// Whether it has a way to the array, or a resume gives it one, and nobody opened it behind everybody's back.
    pub(super) fn leads(self) -> bool {
        let linear = self.table == Table::Linear || self.inactive == Some(Table::Linear);
        linear && !self.late
    }
}

/// A write that host A has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Write {
    /// By which volume.
    pub volume: usize,
    /// Whether it is on its way to the array; otherwise it queues in the map.
    pub sent: bool,
}

/// The lockspace of a volume group on host A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lock {
    pub generation: u64,
    pub frozen: bool,
    pub state: State,
    /// When its lease was renewed last.
    pub renewed: u32,
}

/// Where a lockspace is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Adding,
    Healthy,
    Removing,
}

/// What happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Timer {
    /// What was sent comes back.
    ComesBack,
    /// sanlock stops holding the lockspace, and the watchdog for it.
    LetsGo,
    /// sanlock has forgotten it.
    Forgets,
    /// The lockspace was joined.
    Joined,
}

/// A volume group: everything that is not shared with another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "what is so or not so")]
pub(super) struct Group {
    /// Whether the map has a path to the array.
    pub up: bool,
    /// Whether what is sent is swallowed: it neither ends nor fails.
    pub hole: bool,
    /// `queue_if_no_path`.
    pub queueing: bool,
    /// multipathd was told to keep it off.
    pub told: bool,
    /// Volumes by number; None: not active.
    pub volumes: Vec<Option<Volume>>,
    pub writes: Vec<Write>,
    pub lock: Option<Lock>,
    pub timers: Vec<(u32, Timer)>,
    /// The agent that lives now has listed the devices and found all closed and nothing in flight.
    pub proof: bool,
    /// The generation that may be fenced: that which was there when the fence began.
    pub allowed: u64,
    /// The highest generation so far.
    pub generations: u64,
}

impl Group {
    /// All paths are gone, the map queues, and one write waits in it. `volumes` are active, and there is room for one more.
    pub(super) fn cut_off(volumes: usize) -> Self {
        let mut all = vec![Some(Volume::NEW); volumes];
        all.push(None);
        Self {
            up: false,
            hole: false,
            queueing: true,
            told: false,
            volumes: all,
            writes: vec![Write {
                volume: 0,
                sent: false,
            }],
            lock: Some(Lock {
                generation: FIRST,
                frozen: false,
                state: State::Healthy,
                renewed: 98_000,
            }),
            timers: Vec::new(),
            proof: false,
            allowed: 0,
            generations: FIRST,
        }
    }

    /// Whether sanlock keeps host B from taking the locks over, and the watchdog waits for the lockspace.
    pub(super) fn held(&self) -> bool {
        self.lock.is_some_and(|l| l.state == State::Healthy)
    }

    /// Whether there is another lockspace than the one that may be fenced.
    pub(super) fn in_use_anew(&self) -> bool {
        self.held() && self.lock.is_some_and(|l| l.generation != self.allowed)
    }

    /// Whether a volume was made under the lockspace that is there, or is being joined: what was made before has no lock of it.
    pub(super) fn is_of_this_life(&self, v: Volume) -> bool {
        let there = |l: Lock| l.state != State::Removing && v.made >= l.generation;
        self.lock.is_some_and(there)
    }

    /// Whether host B is kept from a volume.
    pub(super) fn covers(&self, v: Volume) -> bool {
        self.held() && self.is_of_this_life(v)
    }

    pub(super) fn volume(&mut self, at: usize) -> Option<&mut Volume> {
        self.volumes.get_mut(at)?.as_mut()
    }

    pub(super) fn all_closed(&self) -> bool {
        self.volumes.iter().flatten().all(|v| v.closed())
    }

    /// When the watchdog resets the host for its sake.
    pub(super) fn resets_at(&self) -> Option<u32> {
        let lock = self.lock.filter(|_| self.held())?;
        let renewed = Monotonic::from_secs(u64::from(lock.renewed / 1000));
        let latest = ResetWindow::new(renewed, IO_TIMEOUT, FIRE_TIMEOUT).latest;
        u32::try_from(latest.0.as_millis()).ok()
    }

    /// Has the first thing happen that is due then. Whether there was one.
    pub(super) fn happens_at(&mut self, now: u32) -> bool {
        self.timers.sort_unstable();
        let due = self.timers.iter().position(|t| t.0 == now);
        if let Some(due) = due {
            let (_, what) = self.timers.remove(due);
            self.happens(what, now);
        }
        due.is_some()
    }

    fn happens(&mut self, what: Timer, now: u32) {
        match what {
            Timer::ComesBack if self.hole => {}
            Timer::ComesBack => self.come_back(now),
            Timer::LetsGo => {
                if let Some(l) = &mut self.lock {
                    l.state = State::Removing;
                }
            }
            Timer::Forgets => self.lock = None,
            Timer::Joined => {
                if let Some(l) = self.lock.as_mut().filter(|l| l.state == State::Adding) {
                    l.state = State::Healthy;
                    l.renewed = now;
                    // A volume comes into use, under a new lock.
                    let made = self.generations;
                    if let Some(free) = self.volumes.iter_mut().find(|v| v.is_none()) {
                        *free = Some(activated(false, made));
                    }
                }
            }
        }
    }

    /// Nothing of host A's memory is left, nor of what its adapters held.
    pub(super) fn reset(&mut self) {
        self.volumes.fill(None);
        self.writes.clear();
        self.timers.clear();
        self.lock = None;
    }

    /// What was sent ends, or comes back to the map if there is no path any more.
    pub(super) fn come_back(&mut self, now: u32) {
        let again = !self.up && self.queueing;
        self.writes.retain(|w| !w.sent || again);
        self.writes.iter_mut().for_each(|w| w.sent = false);
        if self.up {
            self.send_queued(now);
        }
    }

    pub(super) fn send(&mut self, volume: usize, now: u32) {
        self.writes.push(Write { volume, sent: true });
        self.timers.push((now + ROUND_TRIP, Timer::ComesBack));
    }

    pub(super) fn send_queued(&mut self, now: u32) {
        if self.writes.iter().any(|w| !w.sent) {
            self.writes.iter_mut().for_each(|w| w.sent = true);
            self.timers.push((now + ROUND_TRIP, Timer::ComesBack));
        }
    }

    /// A path failed and the map does not queue: what waits in it ends with an error.
    pub(super) fn fail_queued(&mut self) {
        if !self.queueing && !self.up {
            self.writes.retain(|w| w.sent);
        }
    }

    /// Whether a swap of the volume has to wait.
    pub(super) fn in_flight(&self, volume: usize) -> bool {
        self.writes.iter().any(|w| w.volume == volume)
    }

    /// The kernel ends swaps that need wait no longer, whoever is there to see it.
    pub(super) fn follow(&mut self) {
        for at in 0..self.volumes.len() {
            let waits = self.in_flight(at);
            if let Some(v) = self.volumes[at].as_mut().filter(|_| !waits)
                && v.swapping.take().is_some()
            {
                v.table = Table::Error;
                v.suspended = false;
            }
        }
    }

    /// Two hosts never write one volume: while host B may have the lock, nothing of host A leads to the array, and nothing is on its way. A volume
    /// that a fence left behind has no lock under the next generation either.
    pub(super) fn judge(&self) -> Option<&'static str> {
        let uncovered = |v: &Volume| !self.covers(*v);
        let volumes = || self.volumes.iter().flatten();
        if volumes().any(|v| uncovered(v) && v.leads()) {
            return Some(
                "two hosts can write one volume: a table leads to the array without a lock",
            );
        }
        let free = |w: &Write| match self.volumes[w.volume] {
            Some(v) => uncovered(&v) && !v.late,
            None => !self.held(),
        };
        let late = "two hosts can write one volume: I/O is in flight without a lock";
        self.writes.iter().any(free).then_some(late)
    }

    /// The agent has listed the devices.
    pub(super) fn seen(&mut self) {
        if !self.held() {
            return;
        }
        self.proof = self.writes.is_empty() && self.all_closed();
        for at in 0..self.volumes.len() {
            // Whoever opened it has a lock still. What was left behind has none, whenever it is opened.
            if self.volumes[at].is_some_and(|v| self.covers(v))
                && let Some(v) = self.volume(at)
            {
                v.late = false;
            }
        }
    }

    /// The agent's threads (or the hook's) are gone: a swap that waited is undone, and what was known is forgotten.
    pub(super) fn process_ends(&mut self, process: u8) {
        for v in self.volumes.iter_mut().flatten() {
            if v.swapping == Some(process) {
                v.swapping = None;
                v.inactive.get_or_insert(Table::Error);
            }
        }
        self.proof = false;
    }

    /// Somebody gives the node its storage back: the lockspace is joined anew, and the devices go first; or, `over` them, they do not.
    pub(super) fn rejoin(&mut self, over: bool, now: u32) {
        if !over {
            self.volumes.fill(None);
        }
        self.timers
            .retain(|t| !matches!(t.1, Timer::LetsGo | Timer::Forgets));
        self.generations += 1;
        self.lock = Some(Lock {
            generation: self.generations,
            frozen: false,
            state: State::Adding,
            renewed: now,
        });
        self.told = false;
        self.queueing = true;
        self.timers.push((now + JOIN, Timer::Joined));
    }

    /// Whether sanlock would still renew the lease: once it has run out, it does not.
    pub(super) fn renewable(&self, now: u32) -> bool {
        let lifetime = u32::try_from(lease_lifetime(IO_TIMEOUT).as_millis()).unwrap_or(u32::MAX);
        let lives = |l: Lock| l.state == State::Healthy && now < l.renewed + lifetime;
        self.up && !self.hole && self.lock.is_some_and(lives)
    }
}

impl From<State> for LockspaceState {
    fn from(state: State) -> Self {
        match state {
            State::Adding => Self::Adding,
            State::Healthy => Self::Healthy,
            State::Removing => Self::Removing,
        }
    }
}

/// Volume that somebody activates.
pub(super) fn activated(late: bool, made: u64) -> Volume {
    Volume {
        late,
        made,
        ..Volume::NEW
    }
}
