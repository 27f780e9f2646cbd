//! Watches a life: which states it passes, what is left if it is killed there, and what else may happen in it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::answers::Call;
use super::events::Happening;
use super::files::Files;
use super::group::Group;
use super::stage::{AGENT, HOOK, Next, Watch};
use super::world::World;

/// A loop in which nothing but the clock changes is disturbed in its first rounds only: so many ticks.
const QUIET: u32 = 5;

/// How much may happen on the way to a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    pub events: u8,
    pub crashes: u8,
}

impl Budget {
    fn covers(self, other: Self) -> bool {
        self.events >= other.events && self.crashes >= other.crashes
    }
}

#[derive(Default)]
pub(super) struct Seen(pub HashMap<u64, Vec<Budget>>);

impl Seen {
    /// Whether it is new, or was seen with less of a budget.
    pub(super) fn enter(&mut self, state: u64, budget: Budget) -> bool {
        match self.0.entry(state) {
            Entry::Vacant(slot) => {
                slot.insert(vec![budget]);
                true
            }
            Entry::Occupied(mut slot) => {
                let known = slot.get().iter().any(|b| b.covers(budget));
                if !known {
                    slot.get_mut().push(budget);
                }
                !known
            }
        }
    }
}

pub(super) fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// What a life has shown.
#[derive(Default)]
pub(super) struct Notes {
    /// What is left when it crashes: each once.
    pub crashes: Vec<(World, Files, String)>,
    /// What else may happen in it.
    pub turns: Vec<(usize, Happening, Next)>,
    pub points: usize,
}

pub(super) struct Eye {
    pub seen: Arc<Mutex<Seen>>,
    pub notes: Arc<Mutex<Notes>>,
    pub budget: Budget,
    /// Whether things happen while it lives.
    pub disturbed: bool,
    /// Looks that another life has had already.
    pub old: usize,
    pub looks: usize,
    pub left: HashSet<u64>,
    pub calm: (u64, u32),
    pub hooked: bool,
}

impl Eye {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn crash(&mut self, world: &World, files: &Files, when: impl fmt::Debug) {
        if self.budget.crashes == 0 {
            return;
        }
        let mut world = world.clone();
        world.process_ends(AGENT);
        world.process_ends(HOOK);
        world.follow();
        if self.left.insert(hash((&world, files))) {
            let when = format!("killed at {} ms before {when:?}", world.now);
            self.notes().crashes.push((world, files.clone(), when));
        }
    }

    /// Whether nothing but the clock has changed for a while.
    fn is_calm(&mut self, world: &World, files: &Files, next: Next) -> bool {
        let still = World {
            now: 0,
            ..world.clone()
        };
        let state = hash((still, files));
        if state != self.calm.0 {
            self.calm = (state, 0);
        } else if matches!(next, Next::Tick(_)) {
            self.calm.1 += 1;
        }
        self.calm.1 > QUIET
    }

    fn turns(&self, world: &World, next: Next) -> Vec<Happening> {
        let possible = |w: &World| {
            let hook = !self.hooked && matches!(next, Next::Call(c) if acts(c));
            let w = w.clone();
            let any = Happening::any(&w).into_iter();
            let now = any.filter(move |e| e.possible(&w));
            now.filter(move |e| hook || !e.is_hook())
        };
        let matters = |e: &Happening| {
            if !may_wait(*e, world, next) {
                return true;
            }
            if self.budget.events < 2 {
                return false;
            }
            // What it makes possible may matter at once.
            let mut after = world.clone();
            e.happen(&mut after);
            possible(&after).any(|then| !then.possible(world) && !may_wait(then, &after, next))
        };
        possible(world).filter(matters).collect()
    }
}

/// Whether a process that is held up before this call would come to it too late.
fn acts(call: Call) -> bool {
    matches!(
        call,
        Call::Load(..)
            | Call::Swap(..)
            | Call::FailIfNoPath(_)
            | Call::Kill(_)
            | Call::Drop(_)
            | Call::List
            | Call::Lockspaces
    )
}

/// Whether nobody can tell if the event comes before or after what is next.
fn may_wait(event: Happening, world: &World, next: Next) -> bool {
    if event.is_hook() {
        return false;
    }
    let (mut before, mut after) = (world.clone(), world.clone());
    event.happen(&mut before);
    let same = match next {
        Next::Call(call) => before.answer(call) == after.answer(call),
        Next::Tick(to) => {
            let any = |g: &Group| g.volumes.iter().flatten().any(|v| v.swapping.is_some());
            let swapping = |w: &World| w.groups.iter().any(any);
            let woken = swapping(&before) != swapping(world);
            let sooner = before.next().is_some_and(|at| at < to);
            if !sooner {
                before.move_to(to);
                after.move_to(to);
            }
            !woken && !sooner
        }
    };
    if !same || !event.possible(&after) {
        return false;
    }
    event.happen(&mut after);
    before == after
}

impl Watch for Eye {
    fn point(&mut self, at: usize, past: u64, world: &World, files: &Files, next: Next) -> bool {
        self.looks += 1;
        if self.looks <= self.old {
            return true;
        }
        self.notes().points += 1;
        let state = hash((past, world, files));
        let new = self
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .enter(state, self.budget);
        if !new {
            return false;
        }
        if self.is_calm(world, files, next) {
            return true;
        }
        self.crash(world, files, next);
        if self.budget.events > 0 && self.disturbed {
            let turns = self.turns(world, next);
            let turns = turns.into_iter().map(|e| (at, e, next));
            self.notes().turns.extend(turns);
        }
        true
    }

    fn written(&mut self, world: &World, files: &Files) {
        if self.looks > self.old || self.old == 0 {
            self.crash(world, files, "anything else is done");
        }
    }
}
