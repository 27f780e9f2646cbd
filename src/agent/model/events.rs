//! What may happen to the world at any time, besides what the agent does.

use super::group::{Group, Table, Volume, Write, activated};
use super::world::{Daemon, World};

/// How long nobody lives that fences.
const PAUSE: u32 = 3000;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// The last path fails.
    Cut,
    /// Paths come back.
    Return,
    /// What is sent is swallowed.
    Hole,
    /// What was swallowed comes back: late.
    HoleEnds,
    /// A process writes.
    Write,
    /// multipathd synchronises its maps: queueing is back, unless it was told otherwise.
    Requeue,
    /// `lvchange --refresh`, the three things that it does...
    LoadLinear,
    Suspend,
    Resume,
    /// ...and all of them at once.
    Refresh,
    /// A volume whose lock was got before the locks were frozen comes up.
    Activate,
    /// sanlock renews the lease.
    Renew,
    /// The node is given its storage back by hand.
    Rejoin,
    /// The same by somebody who leaves the fence's devices there.
    RejoinOver,
    /// A daemon answers with errors only.
    Silence(Daemon),
    /// It answers again.
    Answers,
    /// The agent is held up; the kill hook takes its turn and fences; then the agent goes on where it was.
    HookTakesOver,
    /// Only while no agent lives: some seconds pass...
    Pause,
    /// ...the SAN is back, the node is given its storage back by hand, and time passes...
    RejoinAndPause,
    /// ...or so, and the fence's devices are still there...
    RejoinOverAndPause,
    /// ...and one of them is refreshed: open, without a lock...
    RefreshOver,
    /// ...and then the SAN fails again: another outage, of what came into use meanwhile and of what was left there...
    NextOutage,
    /// ...or the journal is lost (what stands fenced is noted in files of their own)...
    JournalLost,
    /// ...or torn in its last line.
    JournalTorn,
}

use Event as E;

/// What may happen at any time, to a volume group...
const ANY: [Event; 14] = [
    E::Cut,
    E::Return,
    E::Hole,
    E::HoleEnds,
    E::Write,
    E::Requeue,
    E::LoadLinear,
    E::Suspend,
    E::Resume,
    E::Refresh,
    E::Activate,
    E::Renew,
    E::Rejoin,
    E::RejoinOver,
];
/// ...and to the node.
const NODE: [Event; 5] = [
    E::Silence(Daemon::Lvmlockd),
    E::Silence(Daemon::Sanlock),
    E::Silence(Daemon::Multipathd),
    E::Answers,
    E::HookTakesOver,
];
/// What may happen only while no agent lives, to a volume group...
const ALONE: [Event; 4] = [
    E::RejoinAndPause,
    E::RejoinOverAndPause,
    E::RefreshOver,
    E::NextOutage,
];
/// ...and to the node.
const NODE_ALONE: [Event; 3] = [E::Pause, E::JournalLost, E::JournalTorn];

/// It happens to a volume group, or (0) to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Happening {
    pub what: Event,
    pub to: usize,
}

impl Happening {
    fn all(world: &World, each: &'static [Event], node: &'static [Event]) -> Vec<Self> {
        let groups = 0..world.groups.len();
        let of = |to: usize| each.iter().map(move |what| Self { what: *what, to });
        let of_node = node.iter().map(|what| Self { what: *what, to: 0 });
        groups.flat_map(of).chain(of_node).collect()
    }

    /// What may happen at any time.
    pub(super) fn any(world: &World) -> Vec<Self> {
        Self::all(world, &ANY, &NODE)
    }

    /// What may happen only while no agent lives.
    pub(super) fn alone(world: &World) -> Vec<Self> {
        Self::all(world, &ALONE, &NODE_ALONE)
    }

    pub(super) fn is_hook(self) -> bool {
        self.what == E::HookTakesOver
    }

    /// Whether it can happen now.
    pub(super) fn possible(self, w: &World) -> bool {
        let of = &w.groups[self.to];
        match self.what {
            _ if w.reset => false,
            E::Silence(_) => w.silent.is_none(),
            E::Answers => w.silent.is_some(),
            E::Renew => of.renewable(w.now) && of.lock.is_some_and(|l| w.now >= l.renewed + 1000),
            what => of.may(what),
        }
    }

    /// Has it happen. What concerns files or processes is done elsewhere.
    pub(super) fn happen(self, w: &mut World) {
        let now = w.now;
        let of = &mut w.groups[self.to];
        match self.what {
            E::Renew => {
                if let Some(l) = &mut of.lock {
                    l.renewed = now;
                }
            }
            E::Rejoin | E::RejoinOver => {
                of.rejoin(self.what == E::RejoinOver, now);
                w.hindered = true;
            }
            E::Silence(daemon) => {
                w.hindered |= daemon != Daemon::Multipathd;
                w.silent = Some(daemon);
            }
            E::Answers => w.silent = None,
            E::RejoinAndPause | E::RejoinOverAndPause | E::RefreshOver | E::NextOutage => {
                of.up = true;
                of.rejoin(self.what != E::RejoinAndPause, now);
                w.hindered = true;
                w.move_to(now + PAUSE);
                let of = &mut w.groups[self.to];
                match self.what {
                    E::NextOutage => of.up = false,
                    E::RefreshOver => of.refresh(E::Refresh),
                    _ => {}
                }
            }
            E::Pause => {
                w.hindered = true;
                w.move_to(now + PAUSE);
            }
            E::HookTakesOver | E::JournalLost | E::JournalTorn => {}
            what => of.happens_to(what, now),
        }
        w.follow();
    }
}

impl Group {
    fn may(&self, what: Event) -> bool {
        let volume = self.volumes[0];
        let free = volume.is_some_and(|v| v.swapping.is_none());
        match what {
            E::Cut => self.up,
            E::Return => !self.up,
            E::Hole => !self.hole,
            E::HoleEnds => self.hole,
            E::Write => {
                let runs = |v: Volume| v.table == Table::Linear && !v.suspended;
                free && volume.is_some_and(runs)
                    && (self.up || self.queueing)
                    && self.writes.len() < 2
            }
            E::Requeue => !self.told && !self.queueing,
            E::LoadLinear => volume.is_some_and(|v| v.inactive != Some(Table::Linear)),
            // The kernel lets one suspend at a time, and waits for I/O.
            E::Suspend => free && volume.is_some_and(|v| !v.suspended) && !self.in_flight(0),
            E::Resume => free && volume.is_some_and(|v| v.suspended),
            E::Refresh => free && volume.is_some_and(|v| v.table == Table::Error),
            E::Activate => self.volumes.last().is_some_and(Option::is_none),
            E::Rejoin => self.lock.is_none() && self.up && self.writes.is_empty(),
            // With the devices gone, it is the other one.
            E::RejoinOver => volume.is_some() && self.may(E::Rejoin),
            // Where everything is closed, an administrator may drop the lockspace himself.
            E::RejoinAndPause => {
                self.writes.is_empty() && (self.lock.is_none() || self.all_closed())
            }
            // What is left is what the fence has left: closed.
            E::RejoinOverAndPause | E::RefreshOver | E::NextOutage => {
                volume.is_some() && self.all_closed() && self.may(E::RejoinAndPause)
            }
            _ => true,
        }
    }

    fn happens_to(&mut self, what: Event, now: u32) {
        match what {
            E::Cut => {
                self.up = false;
                self.fail_queued();
            }
            E::Return => {
                self.up = true;
                self.send_queued(now);
            }
            E::Hole => self.hole = true,
            E::HoleEnds => {
                self.hole = false;
                self.come_back(now);
            }
            E::Write if self.up => self.send(0, now),
            E::Write => self.writes.push(Write {
                volume: 0,
                sent: false,
            }),
            E::Requeue => self.queueing = true,
            E::Activate => {
                // Whoever opens a volume after it was seen closed does so without a lock.
                let new = activated(self.proof || !self.held(), self.generations);
                if let Some(v) = self.volumes.last_mut() {
                    *v = Some(new);
                }
            }
            _ => self.refresh(what),
        }
    }

    fn refresh(&mut self, what: Event) {
        let Some(was) = self.volumes[0] else { return };
        let late = self.proof || !self.covers(was);
        let Some(v) = self.volume(0) else { return };
        match what {
            E::LoadLinear => v.inactive = Some(Table::Linear),
            E::Suspend => v.suspended = true,
            E::Resume => {
                v.suspended = false;
                if let Some(table) = v.inactive.take() {
                    v.table = table;
                }
            }
            _ => {
                v.inactive = None;
                v.suspended = false;
                v.table = Table::Linear;
            }
        }
        // To load a real table is what opens it; who only resumes takes what he finds.
        if matches!(what, E::LoadLinear | E::Refresh) {
            v.late |= late;
        }
    }
}
