//! The world of the model check: two hosts, a SAN between them, and what becomes of I/O and locks. Plain data, so that it can be copied, compared
//! and counted.
//!
//! Host A is drawn in detail, as the kernel and the daemons behave towards an agent. Host B is the worst peer there can be: it takes every lock over
//! and writes in the very moment in which sanlock lets it, so that it needs no state of its own ([`Group::held`]).

use super::group::Group;

/// How long I/O takes to the array and back.
pub(super) const ROUND_TRIP: u32 = 300;

/// A daemon that may fall silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Daemon {
    Lvmlockd,
    Sanlock,
    Multipathd,
}

/// Everything there is, besides the agent's memory and its files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// Milliseconds.
    pub now: u32,
    pub groups: Vec<Group>,
    pub silent: Option<Daemon>,
    /// The watchdog has fired.
    pub reset: bool,
    /// Something happened that may keep a fence from its end, other than I/O that hangs.
    pub hindered: bool,
    /// What must never happen, but did.
    pub wrong: Option<&'static str>,
}

impl World {
    /// Volume groups with so many volumes each. All paths are gone, the maps queue, and one write waits in each.
    pub(super) fn cut_off(volumes: &[usize]) -> Self {
        Self {
            now: 100_000,
            groups: volumes.iter().map(|n| Group::cut_off(*n)).collect(),
            silent: None,
            reset: false,
            hindered: false,
            wrong: None,
        }
    }

    /// The paths work, and in each volume group a write is on its way.
    pub(super) fn at_work(volumes: &[usize]) -> Self {
        let mut world = Self::cut_off(volumes);
        let now = world.now;
        for group in &mut world.groups {
            group.up = true;
            group.send(0, now);
        }
        world
    }

    /// Whether a swap of the volume waits for I/O.
    pub(super) fn swapping(&self, group: usize, volume: usize) -> bool {
        self.groups[group].volumes[volume].is_some_and(|v| v.swapping.is_some())
    }

    /// When the watchdog resets the host: any lockspace is enough.
    fn resets_at(&self) -> Option<u32> {
        let groups = self.groups.iter().filter(|_| !self.reset);
        groups.filter_map(Group::resets_at).min()
    }

    /// When something happens by itself next.
    pub(super) fn next(&self) -> Option<u32> {
        let timers = self.groups.iter().flat_map(|g| &g.timers).map(|t| t.0);
        timers.chain(self.resets_at()).min()
    }

    /// Moves the clock, and has happen what happens until then.
    pub(super) fn move_to(&mut self, to: u32) {
        loop {
            let next = self.next().filter(|at| *at <= to);
            self.now = self.now.max(next.unwrap_or(to));
            let Some(at) = next else { return };
            if self.resets_at() == Some(at) {
                self.reset = true;
                self.groups.iter_mut().for_each(Group::reset);
                return;
            }
            // Those of another volume group at the same time come in the next turn.
            let _ = self.groups.iter_mut().any(|g| g.happens_at(at));
            self.follow();
        }
    }

    /// The kernel ends swaps that need wait no longer, whoever is there to see it. Then judges.
    pub(super) fn follow(&mut self) {
        self.groups.iter_mut().for_each(Group::follow);
        if self.reset {
            return;
        }
        if let Some(what) = self.groups.iter().find_map(Group::judge) {
            self.blame(what);
        }
    }

    pub(super) fn blame(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    /// The threads of a process are gone.
    pub(super) fn process_ends(&mut self, process: u8) {
        for group in &mut self.groups {
            group.process_ends(process);
        }
    }

    /// What the agent that lives now has seen proven, by volume group.
    pub(super) fn proofs(&self) -> Vec<bool> {
        self.groups.iter().map(|g| g.proof).collect()
    }
}
