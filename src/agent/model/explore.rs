//! Goes everywhere: every event at every point of every life, every crash at every point, and on from there, within a budget.
//!
//! A state in which no agent lives is a [`Node`]: the world and the files, to be copied and to be gone on from. A life cannot be copied, so another
//! turn of it is played anew from its node by a [`Script`]. An event that could as well happen one point later, since nothing that
//! happens between tells the difference, is left for later; a life that comes to a state that was seen before is not watched further.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::agent::{Ended, agent};
use super::events::{Event, Happening};
use super::eye::{Budget, Eye, Notes, Seen, hash};
use super::files::Files;
use super::group::Volume;
use super::host::HOOKED;
use super::stage::{Left, Script, Stage};
use super::world::World;
use crate::fence::Order;
use crate::fence::report::{LocksOutcome, Outcome};

/// Where the search begins, and how far it goes.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub world: World,
    pub order: Order,
    pub budget: Budget,
    /// Whether things happen only while no agent lives.
    pub alone: bool,
    pub interleave: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// States in which an agent lives: what it has heard so far, and the world.
    pub alive: usize,
    /// States in which none does.
    pub alone: usize,
    /// Lives that were played.
    pub lives: usize,
    /// Points in them.
    pub points: usize,
    pub proven: usize,
    pub resets: usize,
    pub hooks: usize,
    pub took: Duration,
}

impl Count {
    /// All states.
    pub(super) fn states(&self) -> usize {
        self.alive + self.alone
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} states ({} with an agent, {} without) in {} lives of {} points; {} lives ended proven, {} in a reset, {} with the hook; {:.1} s",
            self.states(),
            self.alive,
            self.alone,
            self.lives,
            self.points,
            self.proven,
            self.resets,
            self.hooks,
            self.took.as_secs_f32()
        )
    }
}

struct Node {
    world: World,
    files: Files,
    budget: Budget,
    /// An agent lives, but has nothing left to do by itself.
    idle: bool,
    story: Vec<String>,
}

/// The search.
pub(super) struct Search {
    bounds: Bounds,
    alive: Arc<Mutex<Seen>>,
    alone: Seen,
    todo: VecDeque<Node>,
    count: Count,
    violations: Violations,
}

/// What must never happen, and the first way that was found to it.
pub(super) type Violations = BTreeMap<String, Vec<String>>;

impl Search {
    /// Visits every state within the bounds.
    pub(super) fn run(bounds: Bounds) -> (Count, Violations) {
        let began = Instant::now();
        let mut me = Self {
            alive: Arc::default(),
            alone: Seen::default(),
            todo: VecDeque::new(),
            count: Count::default(),
            violations: Violations::new(),
            bounds,
        };
        me.visit(Node {
            world: me.bounds.world.clone(),
            files: Files::default(),
            budget: me.bounds.budget,
            idle: false,
            story: Vec::new(),
        });
        while let Some(node) = me.todo.pop_front() {
            me.alone(&node);
            if !node.idle {
                me.lives(&node);
            }
        }
        let alive = me.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let count = Count {
            alive: alive.0.len(),
            alone: me.alone.0.len(),
            took: began.elapsed(),
            ..me.count
        };
        (count, me.violations)
    }

    fn visit(&mut self, node: Node) {
        let state = hash((&node.world, &node.files, node.idle));
        if self.alone.enter(state, node.budget) {
            self.todo.push_back(node);
        }
    }

    /// What may happen while no agent lives.
    fn alone(&mut self, node: &Node) {
        if node.budget.events == 0 || node.world.reset {
            return;
        }
        let alone = self.bounds.alone;
        let any = Happening::any(&node.world).into_iter().filter(|_| !alone);
        for event in any.chain(Happening::alone(&node.world)) {
            if event.is_hook() || !event.possible(&node.world) {
                continue;
            }
            let mut story = node.story.clone();
            story.push(format!("{event:?} while no agent lives"));
            let mut world = node.world.clone();
            event.happen(&mut world);
            if let Some(what) = world.wrong {
                self.violations.entry(what.into()).or_insert(story);
                continue;
            }
            let files = match event.what {
                Event::JournalLost => node.files.without_journal(),
                Event::JournalTorn => node.files.torn(),
                _ => node.files.clone(),
            };
            self.visit(Node {
                world,
                files,
                budget: Budget {
                    events: node.budget.events - 1,
                    ..node.budget
                },
                idle: false,
                story,
            });
        }
    }

    /// Every life that may begin here.
    fn lives(&mut self, node: &Node) {
        let mut scripts = vec![(Vec::new(), Vec::new())];
        while let Some((events, story)) = scripts.pop() {
            let used = u8::try_from(events.len()).unwrap_or(u8::MAX);
            let budget = Budget {
                events: node.budget.events - used,
                ..node.budget
            };
            let story: Vec<String> = node.story.iter().cloned().chain(story).collect();
            let (left, ended, notes) = self.live(node, events.clone(), budget);
            self.count.lives += 1;
            self.count.points += notes.points;
            if let Some(what) = self.judge(&left, ended.as_ref()) {
                self.violations.entry(what).or_insert(story);
                continue;
            }
            for (world, files, when) in notes.crashes {
                let story = story.iter().cloned().chain([when]).collect();
                self.visit(Node {
                    world,
                    files,
                    budget: Budget {
                        crashes: budget.crashes - 1,
                        ..budget
                    },
                    idle: false,
                    story,
                });
            }
            for (at, event, next) in notes.turns {
                let mut events: Vec<(usize, Happening)> = events.clone();
                events.push((at, event));
                let what = format!("{event:?} at point {at}, before {next:?}");
                let own = story.iter().skip(node.story.len()).cloned();
                scripts.push((events, own.chain([what]).collect()));
            }
            if left.whole && !left.world.reset {
                let story = story.into_iter().chain([format!("ended: {ended:?}")]);
                self.visit(Node {
                    world: left.world,
                    files: left.files,
                    budget,
                    idle: true,
                    story: story.collect(),
                });
            }
        }
    }

    fn live(
        &self,
        node: &Node,
        events: Vec<(usize, Happening)>,
        budget: Budget,
    ) -> (Left, Option<Ended>, Notes) {
        let notes = Arc::new(Mutex::new(Notes::default()));
        let hooks = events.iter().filter(|e| e.1.is_hook()).count();
        let last_is_hook = events.last().is_some_and(|e| e.1.is_hook());
        let eye = Eye {
            seen: Arc::clone(&self.alive),
            notes: Arc::clone(&notes),
            budget,
            disturbed: !self.bounds.alone,
            // One look a point, and one after each event; the hook's has none of its own.
            old: events.last().map_or(0, |e| e.0 + events.len()) - hooks
                + usize::from(last_is_hook),
            looks: 0,
            left: HashSet::new(),
            calm: (0, 0),
            hooked: hooks > 0,
        };
        let directory = directory();
        node.files.write(directory.path());
        let script = Script {
            events,
            interleave: self.bounds.interleave,
        };
        let (world, files) = (node.world.clone(), node.files.clone());
        let stage = Stage::new(world, files, directory.path(), script, Box::new(eye));
        let ended = Arc::new(Mutex::new(None));
        let (tell, order) = (Arc::clone(&ended), self.bounds.order.clone());
        let left = stage.live(move |stage| {
            let end = agent(stage, &order);
            *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        });
        let take = |n: &Arc<Mutex<Notes>>| {
            std::mem::take(&mut *n.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        (left, ended, take(&notes))
    }

    /// What must not be so at the end of a life.
    fn judge(&mut self, left: &Left, ended: Option<&Ended>) -> Option<String> {
        let world = &left.world;
        if let Some(what) = world.wrong {
            return Some(what.to_owned());
        }
        if !left.whole {
            return None;
        }
        self.count.hooks += usize::from(left.hooked);
        // What the hook did instead, the agent need not know.
        let hole = world.groups.iter().any(|g| g.hole);
        let explained = world.hindered || hole || (left.hooked && !world.groups[HOOKED].held());
        if world.reset {
            self.count.resets += 1;
            return (!explained)
                .then(|| "the watchdog reset a host whose fence nothing kept from its end".into());
        }
        let Some(ended) = ended else {
            return Some("the agent died by itself".into());
        };
        if let Some(what) = left_open(left) {
            return Some(what.into());
        }
        let Ended::Fenced(outcome, locks) = ended else {
            return None;
        };
        self.count.proven += usize::from(*outcome == Outcome::Proven);
        let groups = || world.groups.iter().enumerate();
        let noted = groups().all(|(n, _)| left.files.stands(n).is_some());
        if *outcome == Outcome::Proven && !noted && !world.hindered {
            return Some("a proven fence was not noted as standing".into());
        }
        let held = groups().any(|(_, g)| g.held() && !g.in_use_anew());
        if *locks == LocksOutcome::Released && held {
            return Some("locks were called released that are held".into());
        }
        let completed = *outcome == Outcome::Proven && *locks == LocksOutcome::Released;
        let refused = matches!(outcome, Outcome::Refused(_));
        (!completed && !refused && !explained)
            .then(|| format!("the fence ended as {ended:?}, and nothing kept it from its end"))
    }
}

/// Of a fence that stands, everything is closed, but for what came into use under new locks.
fn left_open(left: &Left) -> Option<&'static str> {
    for (n, group) in left.world.groups.iter().enumerate() {
        let Some(of) = left.files.stands(n).filter(|_| group.writes.is_empty()) else {
            continue;
        };
        let anew = group.lock.is_some_and(|l| l.generation > of);
        let ours = |v: &&Volume| !(anew && group.is_of_this_life(**v));
        let volumes = || group.volumes.iter().flatten().filter(ours);
        if volumes().any(|v| v.suspended) {
            return Some("a volume of a fence that stands was left suspended");
        }
        if volumes().any(|v| !v.closed()) {
            return Some("a volume of a fence that stands was left open");
        }
    }
    None
}

/// A state directory, in memory where that can be had.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}
