//! What the kernel and the daemons of host A do when they are asked, and what of it must not be.

use super::group::{Group, LETS_GO, Lock, State, Table, Timer, Volume};
use super::world::{Daemon, World};

/// What a process asks of the kernel or a daemon. The first number is the volume group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// Everything at once: what a fence begins with.
    Inventory,
    Version,
    BootId,
    List,
    Device(usize, usize),
    Paths(usize),
    /// The map's table.
    Map(usize),
    Load(usize, usize),
    /// By that process.
    Swap(usize, usize, u8),
    FailIfNoPath(usize),
    Disable(usize),
    Kill(usize),
    Drop(usize),
    Lockspaces,
    Sanlock,
    Wdmd,
}

/// What it hears.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Done,
    Gone,
    Silent,
    Refused,
    World(Box<World>),
    Volume(Volume),
    Flag(bool),
    /// By volume group.
    Locks(Vec<Option<Lock>>),
    /// Not yet: the kernel waits for I/O.
    Waits,
}

impl World {
    /// Answers a call, with whatever it does.
    pub(super) fn answer(&mut self, call: Call) -> Answer {
        let answer = self.answer_it(call);
        self.follow();
        answer
    }

    fn answer_it(&mut self, call: Call) -> Answer {
        let daemon = match call {
            Call::Disable(_) => Some(Daemon::Multipathd),
            Call::Kill(_) | Call::Drop(_) | Call::Lockspaces => Some(Daemon::Lvmlockd),
            Call::Sanlock => Some(Daemon::Sanlock),
            _ => None,
        };
        if daemon.is_some() && daemon == self.silent {
            return Answer::Silent;
        }
        match call {
            Call::Version | Call::BootId => Answer::Done,
            Call::Inventory => Answer::World(Box::new(self.clone())),
            Call::List => {
                self.groups.iter_mut().for_each(Group::seen);
                Answer::World(Box::new(self.as_listed()))
            }
            Call::Device(group, at) => self.groups[group]
                .volume(at)
                .map_or(Answer::Gone, |v| Answer::Volume(*v)),
            Call::Paths(group) => Answer::Flag(self.groups[group].up),
            Call::Map(group) => Answer::Flag(self.groups[group].queueing),
            Call::Load(group, at) => self.load(group, at),
            Call::Swap(group, at, process) => self.groups[group].swap(at, process),
            Call::FailIfNoPath(group) => self.groups[group].stop_queueing(),
            Call::Disable(group) => {
                self.groups[group].told = true;
                self.groups[group].stop_queueing()
            }
            Call::Kill(group) => self.kill(group),
            Call::Drop(group) => self.drop_lockspace(group),
            Call::Lockspaces | Call::Sanlock | Call::Wdmd => {
                Answer::Locks(self.groups.iter().map(|g| g.lock).collect())
            }
        }
    }

    fn load(&mut self, group: usize, at: usize) -> Answer {
        let of = &mut self.groups[group];
        let anew = of.in_use_anew();
        let Some(v) = of.volume(at) else {
            return Answer::Gone;
        };
        v.inactive = Some(Table::Error);
        let v = *v;
        if anew && of.is_of_this_life(v) {
            self.blame("a volume that is in use under new locks was fenced");
        }
        Answer::Done
    }

    fn kill(&mut self, group: usize) -> Answer {
        if self.groups[group].in_use_anew() {
            self.blame("the locks of another generation were frozen");
        }
        match &mut self.groups[group].lock {
            Some(l) => {
                l.frozen = true;
                Answer::Done
            }
            None => Answer::Refused,
        }
    }

    fn drop_lockspace(&mut self, group: usize) -> Answer {
        let now = self.now;
        // All or nothing: one volume group that falls short keeps the locks of all that are fenced together.
        let short = |g: &Group| g.held() && !g.in_use_anew() && !g.proof;
        let unproven = self.groups.iter().any(short);
        let of = &mut self.groups[group];
        let Some(lock) = of.lock else {
            return Answer::Refused;
        };
        let mut wrong = Vec::new();
        if lock.generation != of.allowed {
            wrong.push("a lockspace of another generation was dropped");
        }
        if lock.state == State::Healthy {
            if !of.proof {
                wrong.push("locks were released without proof");
            }
            if unproven {
                wrong.push("locks were released while another volume group was not proven");
            }
            if of.volumes.iter().flatten().any(|v| v.leads()) {
                wrong.push("locks were released while a volume was open");
            }
            if !of.timers.iter().any(|t| t.1 == Timer::LetsGo) {
                of.timers.push((now + LETS_GO, Timer::LetsGo));
                of.timers.push((now + 2 * LETS_GO, Timer::Forgets));
            }
        }
        for what in wrong {
            self.blame(what);
        }
        Answer::Done
    }

    /// Only what a list of the devices shows.
    fn as_listed(&self) -> Self {
        let listed = |group: &Group| {
            let mut volumes = group.volumes.clone();
            for v in volumes.iter_mut().flatten() {
                (v.late, v.swapping) = (false, None);
            }
            Group {
                volumes,
                queueing: group.queueing,
                ..Group::cut_off(0)
            }
        };
        Self {
            groups: self.groups.iter().map(listed).collect(),
            ..Self::cut_off(&[])
        }
    }
}

impl Group {
    fn stop_queueing(&mut self) -> Answer {
        self.queueing = false;
        self.fail_queued();
        Answer::Done
    }

    fn swap(&mut self, at: usize, process: u8) -> Answer {
        let waits = self.in_flight(at);
        let Some(v) = self.volume(at) else {
            return Answer::Gone;
        };
        if v.swapping.is_some() {
            return Answer::Waits;
        }
        match v.inactive.take() {
            // Whatever waits there is made live: an ioctl cannot choose.
            Some(Table::Error) if waits && !v.suspended => {
                v.swapping = Some(process);
                return Answer::Waits;
            }
            Some(table) => v.table = table,
            None => {}
        }
        v.suspended = false;
        Answer::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::model::group::{Write, activated};

    const TWO: &str = "two hosts can write one volume: a table leads to the array without a lock";

    #[test]
    fn a_release_without_proof_and_a_writer_without_a_lock_are_seen() {
        let mut world = World::at_work(&[1]);
        world.groups[0].allowed = 3;
        world.answer(Call::Drop(0));
        assert_eq!(world.wrong, Some("locks were released without proof"));
        world.wrong = None;
        world.move_to(world.now + LETS_GO);
        assert_eq!(world.wrong, Some(TWO));
        world.groups[0].volumes.fill(None);
        world.wrong = None;
        world.groups[0].writes.push(Write {
            volume: 0,
            sent: true,
        });
        world.follow();
        let late = "two hosts can write one volume: I/O is in flight without a lock";
        assert_eq!(world.wrong, Some(late));
    }

    #[test]
    fn a_release_beside_a_volume_group_that_is_not_proven_is_seen() {
        let mut world = World::at_work(&[1, 1]);
        for group in &mut world.groups {
            group.allowed = 3;
        }
        let volume = world.groups[0].volume(0).expect("it is active");
        volume.table = Table::Error;
        world.groups[0].writes.clear();
        world.answer(Call::List);
        assert_eq!(world.proofs(), [true, false]);
        world.answer(Call::Drop(0));
        let other = "locks were released while another volume group was not proven";
        assert_eq!(world.wrong, Some(other));
    }

    #[test]
    fn what_a_fence_left_behind_has_no_lock_of_the_next_generation() {
        let mut world = World::cut_off(&[1]);
        let group = &mut world.groups[0];
        (group.lock, group.up, group.allowed) = (None, true, 3);
        group.writes.clear();
        group.volume(0).expect("it is active").table = Table::Error;
        group.rejoin(true, world.now);
        world.move_to(world.now + 5000);
        let made: Vec<_> = world.groups[0].volumes.iter().flatten().collect();
        assert_eq!(made.iter().map(|v| v.made).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(world.wrong, None, "the new one has its lock");
        let mut fenced = world.clone();
        fenced.answer(Call::Load(0, 0));
        assert_eq!(fenced.wrong, None, "what is left may be closed");
        fenced.answer(Call::Load(0, 1));
        let anew = "a volume that is in use under new locks was fenced";
        assert_eq!(fenced.wrong, Some(anew));
        world.groups[0].volumes[0] = Some(activated(false, 3));
        world.follow();
        assert_eq!(world.wrong, Some(TWO), "the old one is open without a lock");
    }
}
