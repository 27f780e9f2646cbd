//! What the kernel and the daemons of host A do when they are asked, and what of it must not be.

use super::world::{Daemon, LETS_GO, Lock, State, Table, Timer, Volume, World};

/// What a process asks of the kernel or a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// Everything at once: what a fence begins with.
    Inventory,
    Version,
    BootId,
    List,
    Device(usize),
    Paths,
    /// The map's table.
    Map,
    Load(usize),
    /// By that process.
    Swap(usize, u8),
    FailIfNoPath,
    Disable,
    Kill,
    Drop,
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
    Lock(Option<Lock>),
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

    fn volume(&mut self, at: usize) -> Option<&mut Volume> {
        self.volumes.get_mut(at)?.as_mut()
    }

    fn answer_it(&mut self, call: Call) -> Answer {
        let daemon = match call {
            Call::Disable => Some(Daemon::Multipathd),
            Call::Kill | Call::Drop | Call::Lockspaces => Some(Daemon::Lvmlockd),
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
                self.seen();
                Answer::World(Box::new(self.as_listed()))
            }
            Call::Device(at) => self.volume(at).map_or(Answer::Gone, |v| Answer::Volume(*v)),
            Call::Paths => Answer::Flag(self.up),
            Call::Map => Answer::Flag(self.queueing),
            Call::Load(at) => self.load(at),
            Call::Swap(at, process) => self.swap(at, process),
            Call::FailIfNoPath => {
                self.queueing = false;
                self.fail_queued();
                Answer::Done
            }
            Call::Disable => {
                self.told = true;
                self.queueing = false;
                self.fail_queued();
                Answer::Done
            }
            Call::Kill => self.kill(),
            Call::Drop => self.drop_lockspace(),
            Call::Lockspaces | Call::Sanlock | Call::Wdmd => Answer::Lock(self.lock),
        }
    }

    fn load(&mut self, at: usize) -> Answer {
        let anew = self.in_use_anew();
        let Some(v) = self.volume(at) else {
            return Answer::Gone;
        };
        v.inactive = Some(Table::Error);
        if anew {
            self.blame("a volume that is in use under new locks was fenced");
        }
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

    /// Whether there is another lockspace than the one that may be fenced.
    fn in_use_anew(&self) -> bool {
        self.lock
            .is_some_and(|l| l.state == State::Healthy && l.generation != self.allowed)
    }

    fn kill(&mut self) -> Answer {
        if self.in_use_anew() {
            self.blame("the locks of another generation were frozen");
        }
        match &mut self.lock {
            Some(l) => {
                l.frozen = true;
                Answer::Done
            }
            None => Answer::Refused,
        }
    }

    fn drop_lockspace(&mut self) -> Answer {
        let Some(lock) = self.lock else {
            return Answer::Refused;
        };
        if lock.generation != self.allowed {
            self.blame("a lockspace of another generation was dropped");
        }
        if lock.state == State::Healthy {
            if !self.proof {
                self.blame("locks were released without proof");
            }
            if self.volumes.iter().flatten().any(|v| v.leads()) {
                self.blame("locks were released while a volume was open");
            }
            if !self.timers.iter().any(|t| t.1 == Timer::LetsGo) {
                self.timers.push((self.now + LETS_GO, Timer::LetsGo));
                self.timers.push((self.now + 2 * LETS_GO, Timer::Forgets));
            }
        }
        Answer::Done
    }

    /// Only what a list of the devices shows.
    fn as_listed(&self) -> Self {
        let mut volumes = self.volumes.clone();
        for v in volumes.iter_mut().flatten() {
            (v.late, v.swapping) = (false, None);
        }
        Self {
            volumes,
            queueing: self.queueing,
            ..Self::cut_off(0)
        }
    }

    /// The agent has listed the devices.
    fn seen(&mut self) {
        if self.held() {
            self.proof =
                self.writes.is_empty() && self.volumes.iter().flatten().all(|v| v.closed());
            for v in self.volumes.iter_mut().flatten() {
                v.late = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::model::world::Write;

    #[test]
    fn a_release_without_proof_and_a_writer_without_a_lock_are_seen() {
        let mut world = World::at_work(1);
        world.allowed = 3;
        world.answer(Call::Drop);
        assert_eq!(world.wrong, Some("locks were released without proof"));
        world.wrong = None;
        world.move_to(world.now + LETS_GO);
        let two = "two hosts can write one volume: a table leads to the array without a lock";
        assert_eq!(world.wrong, Some(two));
        world.volumes.fill(None);
        world.wrong = None;
        world.writes.push(Write {
            volume: 0,
            sent: true,
        });
        world.follow();
        let late = "two hosts can write one volume: I/O is in flight without a lock";
        assert_eq!(world.wrong, Some(late));
    }
}
