//! One life of an agent in the world: the real code on threads of its own, of which one runs at a time, so that the same script always gives
//! the same life.
//!
//! A thread runs until it waits; with [`Script::interleave`] it hands over at each call as well. The clock moves when all of them wait. Each call
//! is a point at which something may happen; the [`Watch`] is shown every one of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::answers::{Answer, Call};
use super::events::Happening;
use super::files::Files;
use super::pool;
use super::world::World;
use crate::host::Bell;

thread_local! {
    /// Number of the thread on its stage.
    static ME: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The agent.
pub(super) const AGENT: u8 = 0;
/// The kill hook.
pub(super) const HOOK: u8 = 1;
/// No life of an agent takes that many points: it turns in circles.
const TOO_LONG: usize = 20_000;

/// What a thread dies of when its process ends.
struct Killed;

/// What comes next in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Next {
    /// A process asks something.
    Call(Call),
    /// Everybody waits, and time passes until then.
    Tick(u32),
}

/// What happens when, in one life.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    /// Point and event, in order.
    pub events: Vec<(usize, Happening)>,
    /// Whether threads hand over at every call.
    pub interleave: bool,
}

/// Sees every point of a life.
pub(super) trait Watch: Send {
    /// Before `next`, at point `at`; `past` stands for everything that the agent has heard so far. Whether the life is worth being watched further.
    fn point(&mut self, at: usize, past: u64, world: &World, files: &Files, next: Next) -> bool;
    /// The files have changed.
    fn written(&mut self, world: &World, files: &Files);
}

#[derive(Default)]
struct Thread {
    process: u8,
    wake: Arc<Condvar>,
    until: Option<u32>,
    bell: Option<(Bell, u64)>,
    /// Volume group and volume whose swap it waits for.
    swap: Option<(usize, usize)>,
    ready: bool,
}

#[expect(clippy::struct_excessive_bools, reason = "what is so or not so")]
struct Play {
    world: World,
    files: Files,
    script: Script,
    watch: Box<dyn Watch>,
    threads: BTreeMap<usize, Thread>,
    next_thread: usize,
    current: Option<usize>,
    points: usize,
    past: u64,
    /// Everybody dies.
    over: bool,
    /// The watch has seen enough.
    enough: bool,
    /// The hook's main thread, once there was one.
    hook: Option<usize>,
    hook_acts: bool,
    hook_ended: bool,
}

struct Inner {
    play: Mutex<Play>,
    ended: Condvar,
    directory: PathBuf,
}

/// The stage of one life.
#[derive(Clone)]
pub(super) struct Stage(Arc<Inner>);

/// What is left when a life has ended.
pub(super) struct Left {
    pub world: World,
    pub files: Files,
    /// It was watched to its end.
    pub whole: bool,
    /// The hook took over.
    pub hooked: bool,
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl Stage {
    pub(super) fn new(
        world: World,
        files: Files,
        directory: &Path,
        script: Script,
        watch: Box<dyn Watch>,
    ) -> Self {
        let past = hash((&world, &files, script.interleave));
        Self(Arc::new(Inner {
            play: Mutex::new(Play {
                world,
                files,
                script,
                watch,
                threads: BTreeMap::new(),
                next_thread: 0,
                current: None,
                points: 0,
                past,
                over: false,
                enough: false,
                hook: None,
                hook_acts: false,
                hook_ended: false,
            }),
            ended: Condvar::new(),
            directory: directory.to_owned(),
        }))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0.directory
    }

    fn lock(&self) -> MutexGuard<'_, Play> {
        self.0.play.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the agent live, until it ends by itself, the watchdog resets the host or the watch has seen enough.
    pub(super) fn live(&self, agent: impl FnOnce(&Self) + Send + 'static) -> Left {
        let me = self.clone();
        let mut play = self.lock();
        play.start(self, AGENT, Box::new(move || agent(&me)));
        play.current = Some(0);
        while !play.threads.is_empty() {
            play = self
                .0
                .ended
                .wait(play)
                .unwrap_or_else(PoisonError::into_inner);
            // Whoever outlives the agent's main thread dies with it.
            if !play.threads.contains_key(&0) {
                play.kill_all();
            }
        }
        play.files.read(&self.0.directory);
        play.world.process_ends(AGENT);
        Left {
            world: play.world.clone(),
            files: play.files.clone(),
            whole: !play.enough,
            hooked: play.hook.is_some(),
        }
    }

    /// The agent's main thread may have written files.
    pub(super) fn files_changed(&self) {
        let mut play = self.lock();
        play.look_at_files(&self.0.directory);
    }

    pub(super) fn now(&self) -> u32 {
        let mut play = self.alive(self.lock());
        if ME.get().is_some_and(|me| play.writes_files(me)) {
            play.look_at_files(&self.0.directory);
        }
        play.world.now
    }

    pub(super) fn world<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.lock().world)
    }

    pub(super) fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
        let mut play = self.alive(self.lock());
        play.look_at_files(&self.0.directory);
        let process = ME.get().map_or(AGENT, |me| play.process(me));
        play.start(self, process, work);
    }

    fn alive<'a>(&self, play: MutexGuard<'a, Play>) -> MutexGuard<'a, Play> {
        let dead = ME.get().is_some_and(|me| play.process(me) == HOOK) && play.hook_ended;
        if play.over || dead {
            drop(play);
            self.die();
        }
        play
    }

    #[expect(clippy::unused_self, reason = "reads as the others do")]
    fn die(&self) -> ! {
        resume_unwind(Box::new(Killed))
    }

    /// Asks the kernel or a daemon.
    pub(super) fn call(&self, call: Call) -> Answer {
        let mut play = self.alive(self.lock());
        let Some(me) = ME.get() else {
            // A thread of a scope whose parent waits for it: part of what the parent asks.
            return play.world.answer(call);
        };
        if play.script.interleave {
            if let Some(t) = play.threads.get_mut(&me) {
                t.ready = true;
            }
            play.pick(Some(me));
            play = self.wait_for_turn(play, me);
        }
        play = self.point(play, me, Next::Call(call));
        loop {
            let behind = matches!(call, Call::Swap(g, v, _) if play.world.swapping(g, v));
            let answer = play.world.answer(call);
            let now = play.world.now;
            play.past = hash((play.past, me, call, &answer, now));
            play.enough |= play.world.wrong.is_some();
            if answer != Answer::Waits {
                return self.finish_call(play, answer);
            }
            let Call::Swap(group, volume, _) = call else {
                return self.finish_call(play, answer);
            };
            if let Some(t) = play.threads.get_mut(&me) {
                t.swap = Some((group, volume));
            }
            play.pick(None);
            play = self.wait_for_turn(play, me);
            if !behind {
                return self.finish_call(play, Answer::Done);
            }
        }
    }

    fn finish_call(&self, mut play: MutexGuard<'_, Play>, answer: Answer) -> Answer {
        if play.enough || play.world.reset {
            play.kill_all();
        }
        drop(self.alive(play));
        answer
    }

    /// Waits for a bell, or a time.
    pub(super) fn wait(&self, bell: Option<(Bell, u64)>, until: Option<u32>) {
        let mut play = self.alive(self.lock());
        let Some(me) = ME.get() else { return };
        play.look_at_files(&self.0.directory);
        if let Some(t) = play.threads.get_mut(&me) {
            (t.bell, t.until) = (bell, until);
        }
        play.pick(None);
        drop(self.wait_for_turn(play, me));
    }

    fn wait_for_turn<'a>(&self, mut play: MutexGuard<'a, Play>, me: usize) -> MutexGuard<'a, Play> {
        let wake = play.threads.get(&me).map(|t| Arc::clone(&t.wake));
        while let Some(wake) = &wake
            && play.current != Some(me)
            && !play.over
        {
            play = wake.wait(play).unwrap_or_else(PoisonError::into_inner);
        }
        play = self.alive(play);
        if let Some(t) = play.threads.get_mut(&me) {
            (t.bell, t.until, t.swap, t.ready) = (None, None, None, false);
        }
        play
    }

    /// A point: shows it to the watch, and has happen what the script says.
    fn point<'a>(
        &'a self,
        mut play: MutexGuard<'a, Play>,
        me: usize,
        next: Next,
    ) -> MutexGuard<'a, Play> {
        let event = play.reach(next);
        if play.over {
            return self.alive(play);
        }
        if event.is_some_and(Happening::is_hook) {
            let stage = self.clone();
            let proofs = play.world.proofs();
            play.hook_acts = true;
            let hook = play.start(
                self,
                HOOK,
                Box::new(move || {
                    super::agent::hook(&stage);
                    let mut play = stage.lock();
                    (play.hook_acts, play.hook_ended) = (false, true);
                    play.world.process_ends(HOOK);
                    for (group, proof) in play.world.groups.iter_mut().zip(proofs) {
                        group.proof = proof;
                    }
                }),
            );
            if let Some(t) = play.threads.get_mut(&me) {
                t.ready = true;
            }
            play.hook = Some(hook);
            play.current = Some(hook);
            play.notify(hook);
            play = self.wait_for_turn(play, me);
        }
        play
    }
}

impl Play {
    fn process(&self, thread: usize) -> u8 {
        self.threads.get(&thread).map_or(AGENT, |t| t.process)
    }

    /// Whether it is the main thread of the agent or of the hook.
    fn writes_files(&self, thread: usize) -> bool {
        thread == 0 || self.hook == Some(thread)
    }

    fn look_at_files(&mut self, directory: &Path) {
        if self.files.read(directory) {
            self.watch.written(&self.world, &self.files);
        }
    }

    fn kill_all(&mut self) {
        self.over = true;
        self.threads.values().for_each(|t| t.wake.notify_all());
    }

    fn notify(&self, thread: usize) {
        if let Some(t) = self.threads.get(&thread) {
            t.wake.notify_all();
        }
    }

    fn start(&mut self, stage: &Stage, process: u8, work: Box<dyn FnOnce() + Send>) -> usize {
        let id = self.next_thread;
        self.next_thread += 1;
        let thread = Thread {
            process,
            ready: true,
            ..Thread::default()
        };
        self.threads.insert(id, thread);
        let stage = stage.clone();
        pool::run(Box::new(move || {
            ME.set(Some(id));
            let _ = catch_unwind(AssertUnwindSafe(|| {
                drop(stage.wait_for_turn(stage.lock(), id));
                work();
            }));
            ME.set(None);
            let mut play = stage.lock();
            play.threads.remove(&id);
            if play.threads.is_empty() || id == 0 {
                stage.0.ended.notify_all();
            }
            if play.current == Some(id) && !play.over && id != 0 {
                play.pick(None);
            }
        }));
        id
    }

    /// One more point. What happens there by the script, for those who have to see to it.
    fn reach(&mut self, next: Next) -> Option<Happening> {
        let at = self.points;
        let due = self.script.events.iter().find(|e| e.0 == at).map(|e| e.1);
        // Several may be due at one point; each is followed by another look.
        let mut last = None;
        for n in 0.. {
            let (past, files) = (hash((self.past, n)), &self.files);
            let goes_on = self.watch.point(at, past, &self.world, files, next);
            if at > TOO_LONG {
                self.world.blame("it turns in circles");
            }
            if !goes_on || at > TOO_LONG {
                self.enough = true;
                self.kill_all();
                return None;
            }
            let events = &self.script.events;
            let Some(event) = events.iter().filter(|e| e.0 == at).nth(n).map(|e| e.1) else {
                break;
            };
            event.happen(&mut self.world);
            last = Some(event);
            if event.is_hook() {
                break;
            }
            if self.world.reset || self.world.wrong.is_some() {
                self.enough |= self.world.wrong.is_some();
                self.kill_all();
                return None;
            }
        }
        self.points += 1;
        due.and(last)
    }

    /// Whether its process runs: the agent is held up while the hook acts, and the hook ends.
    fn acts(&self, t: &Thread) -> bool {
        if t.process == HOOK {
            !self.hook_ended
        } else {
            !self.hook_acts
        }
    }

    fn is_ready(&self, t: &Thread) -> bool {
        if !self.acts(t) {
            return false;
        }
        let swapped = |(group, volume)| !self.world.swapping(group, volume);
        t.ready
            || t.until.is_some_and(|at| self.world.now >= at)
            || t.bell.as_ref().is_some_and(|(b, seen)| b.rings() > *seen)
            || t.swap.is_some_and(swapped)
    }

    /// Whose turn it is: the first that is ready after `after`; when nobody is, time passes.
    fn pick(&mut self, after: Option<usize>) {
        loop {
            let ready: Vec<usize> = self
                .threads
                .iter()
                .filter(|(_, t)| self.is_ready(t))
                .map(|(id, _)| *id)
                .collect();
            let next = ready.iter().find(|id| after.is_some_and(|a| **id > a));
            if let Some(next) = next.or(ready.first()).copied() {
                self.current = Some(next);
                self.notify(next);
                return;
            }
            let acting = self.threads.values().filter(|t| self.acts(t));
            let waits = acting.filter_map(|t| t.until);
            let Some(to) = waits.chain(self.world.next()).min() else {
                self.world.blame("every thread waits for ever");
                self.enough = true;
                self.kill_all();
                return;
            };
            let happened = self.reach(Next::Tick(to)).is_some();
            if self.over {
                return;
            }
            if happened {
                // Somebody may be ready by now.
                continue;
            }
            self.world.move_to(to);
            self.past = hash((self.past, self.world.now));
            self.enough |= self.world.wrong.is_some();
            if self.enough || self.world.reset {
                self.kill_all();
                return;
            }
        }
    }
}

/// The world's clock as a duration.
pub(super) fn at(milliseconds: u32) -> Duration {
    Duration::from_millis(u64::from(milliseconds))
}
