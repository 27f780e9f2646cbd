//! Gives a node its storage back (S7): looks at what speaks against it, and if nothing does, removes the error devices, gives queueing back and
//! joins the lockspaces again.
//!
//! One call is one attempt: it looks, and either says what it waits for, without having touched anything, or does what is left to be done. Whoever
//! called it calls again. Each step is idempotent and goes by what the kernel and the lock manager say, so that it makes no difference whether an
//! earlier attempt failed, was interrupted or was killed.
//!
//! Nothing here is in the fence's way: an attempt that is interrupted ends at once, and forks only once the SAN works.

mod join;
mod look;
pub mod paths;
mod remove;
pub mod report;
#[cfg(test)]
mod tests;
mod waiting;
mod watch;

pub(in crate::agent) use look::recorded;

use std::time::Duration;

use super::executor::limited::{self, Pending};
use super::journal::{Journal, Lift, Standing as Guarded};
use crate::fence::DmDevice;
use crate::fence::report::StepResult;
use crate::fence::unfence::{
    Blocker, BlockerReason, GroupReport, UnfenceOrder, UnfenceOutcome, UnfenceReport, UnfenceStep,
    UnfenceStepKind, steps,
};
use crate::host::{Bell, Host, Result};
use waiting::{INTERRUPTED, message, unseen, waits};
pub use watch::{let_go, watch_again};

/// How long one question to the kernel or a daemon may take.
const ASK: Duration = Duration::from_secs(3);
/// How often to look again where nobody tells of changes.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Makes one attempt. Blocks; made for a thread of its own.
///
/// `previous` is the report of the attempt before, as long as it was about the same order: it knows how long the paths have been healthy.
/// `interrupt` is asked before whatever leaves a trace, and while something is waited for. `progress` is called whenever the report has changed once
/// something is being done.
pub fn attempt(
    host: &Host,
    journal: &Journal,
    order: &UnfenceOrder,
    previous: Option<&UnfenceReport>,
    interrupt: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&UnfenceReport),
) -> UnfenceReport {
    let mut report = try_once(host, journal, order, previous, interrupt, progress);
    // From its end: others have their turn between two of them, however long one takes.
    report.looked = host.system.monotonic();
    report
}

fn try_once(
    host: &Host,
    journal: &Journal,
    order: &UnfenceOrder,
    previous: Option<&UnfenceReport>,
    interrupt: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&UnfenceReport),
) -> UnfenceReport {
    // Where a volume group was fenced anew since, by whomever, nothing of what was done then is done of that.
    let anew = |p: &UnfenceReport| journal.fenced_since(p).unwrap_or(false);
    let previous = previous.filter(|p| p.order.uid == order.uid && !anew(p));
    let looked = host.system.monotonic();
    let mut report = UnfenceReport {
        order: order.clone(),
        looked,
        ..previous.cloned().unwrap_or_default()
    };
    report.blockers.clear();
    report.notes.clear();
    let found = match look::look(host, journal, order, previous, interrupt) {
        Ok(found) => found,
        Err(obstacle) => {
            // What an earlier agent had begun with is not carried on now.
            watch_again(host, journal);
            return unseen(report, obstacle);
        }
    };
    let same_boot = report.boot_id == found.boot_id;
    report.boot_id = found.boot_id;
    if found.groups.is_empty() && same_boot && report.outcome == UnfenceOutcome::Done {
        // Asked again after it was done: what was done is what there is to say.
        return report;
    }
    report.groups = found.groups;
    if report.groups.is_empty() {
        report.finished_after = report.started.map(|at| looked.since(at));
        report.outcome = UnfenceOutcome::Done;
        report.failures = 0;
        report.message =
            "No volume group that the request is about stands fenced on the node: there is nothing to be given back"
                .into();
        return report;
    }
    let mut lifting = Lifting {
        host,
        journal,
        lifted: found.lifted,
        interrupt,
        progress,
        report,
    };
    if found.blockers.is_empty() {
        let done = lifting.work();
        return lifting.conclude(done);
    }
    // What an earlier attempt had begun with waits again.
    lifting.note_given_up();
    waits(lifting.report, found.blockers)
}

/// What keeps an attempt from its end.
enum Obstacle {
    /// Something speaks against it after all.
    Blocked(Vec<Blocker>),
    /// A step failed.
    Failed(Box<Blocker>),
    /// It was interrupted.
    Interrupted,
}

type Step<T = ()> = std::result::Result<T, Obstacle>;

fn go_on(interrupt: &dyn Fn() -> bool) -> Step {
    if interrupt() {
        return Err(Obstacle::Interrupted);
    }
    Ok(())
}

/// Makes a call that can be left to itself, and waits for its answer for as long as nobody interrupts.
fn wait_for<T: Send + 'static>(
    host: &Host,
    interrupt: &dyn Fn() -> bool,
    what: &'static str,
    limit: Duration,
    call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
) -> Step<Result<T>> {
    go_on(interrupt)?;
    let bell = Bell::default();
    let pending = Pending::start(host, &bell, what, call);
    loop {
        if let Some(answer) = pending.wait_a_while(host, &bell, limit, LOOK_AGAIN) {
            return Ok(answer);
        }
        go_on(interrupt)?;
    }
}

/// An attempt that is at work.
struct Lifting<'a> {
    host: &'a Host,
    journal: &'a Journal,
    /// Fences that were lifted for this, as the guard knew them.
    lifted: Vec<Guarded>,
    interrupt: &'a dyn Fn() -> bool,
    progress: &'a mut dyn FnMut(&UnfenceReport),
    report: UnfenceReport,
}

impl Lifting<'_> {
    fn work(&mut self) -> Step {
        let now = self.host.system.monotonic();
        self.report.started.get_or_insert(now);
        self.report.finished_after = None;
        self.report.outcome = UnfenceOutcome::Working;
        self.report.message = "Giving the node its storage back".into();
        // Another fence may have gone, and one have come, since the attempt before.
        let planned = steps(&self.report.groups);
        let uuids = planned.iter().map(|s| &s.uuid);
        if !uuids.eq(self.report.steps.iter().map(|s| &s.uuid)) {
            self.report.steps = planned;
        }
        self.lift()?;
        self.publish();
        self.remove_devices()?;
        self.drop_lockspaces()?;
        self.restore_queueing()?;
        self.join_lockspaces()?;
        self.confirm()?;
        self.restore_what_is_left();
        Ok(())
    }

    /// Before anything is touched: first it is noted for whoever succeeds a killed agent, and then the guard is told to stop. Without either it is
    /// not begun: unlike a fence, it can wait.
    fn lift(&mut self) -> Step {
        let first = self.report.groups.first().map(|g| g.standing.name.clone());
        let failed = |e: crate::agent::journal::Error| {
            let name = first.clone().unwrap_or_default();
            let message = format!("Not begun, and tried again: {e}");
            let blocker = Blocker::new(BlockerReason::StepFailed, &name, message);
            Obstacle::Failed(Box::new(blocker))
        };
        let standings = self.journal.standings();
        for group in self.groups() {
            let found = standings.of(&group.standing.uuid).map_err(failed)?;
            if let Some(found) = found {
                self.lifted.retain(|s| s.group.uuid != found.group.uuid);
                self.lifted.push(found);
            }
        }
        self.note_lift().map_err(failed)?;
        for group in self.groups() {
            standings.lift(&group.standing.uuid).map_err(failed)?;
        }
        Ok(())
    }

    fn note_lift(&self) -> std::result::Result<(), crate::agent::journal::Error> {
        let mut report = self.report.clone();
        // One that goes on with what another has left, and waits first: it is older than whatever is fenced from now on, and than nothing else.
        report.started.get_or_insert(report.looked);
        self.journal.lifts().put(&Lift {
            lifted: self.lifted.clone(),
            report,
        })
    }

    /// Only its own: what another order has left half-way stays known.
    fn end_lift(&self) -> std::result::Result<(), crate::agent::journal::Error> {
        self.journal.lifts().end(self.uuids())
    }

    fn uuids(&self) -> impl Iterator<Item = &str> {
        let groups = self.report.groups.iter();
        groups.map(|g| g.standing.uuid.as_str())
    }

    /// It is given up for now: what is left of a lifted fence has to be watched over again.
    fn note_given_up(&mut self) {
        if self.lifted.is_empty() {
            return;
        }
        let noted = if self.devices_left() {
            let standings = self.journal.standings();
            let put = self.lifted.iter().try_for_each(|s| standings.put(s));
            put.and_then(|()| self.end_lift())
        } else {
            self.note_lift()
        };
        if let Err(e) = noted {
            self.note(e.to_string());
        }
    }

    fn conclude(mut self, done: Step) -> UnfenceReport {
        let looked = self.host.system.monotonic();
        self.report.looked = looked;
        let obstacle = match done {
            Ok(()) => {
                self.report.outcome = UnfenceOutcome::Done;
                self.report.failures = 0;
                self.report.finished_after = self.report.started.map(|at| looked.since(at));
                let noted = self.journal.given_back().note(self.uuids(), looked);
                // Noted first: a successor would take what is left of an unproven fence for one to be completed.
                for e in [noted, self.end_lift()]
                    .into_iter()
                    .filter_map(std::result::Result::err)
                {
                    self.note(e.to_string());
                }
                self.report.message = self.in_words();
                self.publish();
                return self.report;
            }
            Err(obstacle) => obstacle,
        };
        self.report.outcome = UnfenceOutcome::Waiting;
        match obstacle {
            Obstacle::Blocked(blockers) => {
                self.report.message = message(&blockers);
                self.report.blockers = blockers;
            }
            Obstacle::Failed(blocker) => {
                self.report.failures = self.report.failures.saturating_add(1);
                self.report.message.clone_from(&blocker.message);
                self.report.blockers = vec![*blocker];
            }
            Obstacle::Interrupted => {
                self.report.message = INTERRUPTED.into();
            }
        }
        self.note_given_up();
        self.publish();
        self.report
    }

    fn in_words(&self) -> String {
        let groups: Vec<String> = self
            .report
            .groups
            .iter()
            .map(|g| {
                let generation = g
                    .joined
                    .and_then(|(_, generation)| generation)
                    .map(|n| format!(", generation {n}"))
                    .unwrap_or_default();
                format!(
                    "{} is joined to its lockspace again{generation}",
                    g.in_words()
                )
            })
            .collect();
        let mut words = format!(
            "{}. Volumes are activated by whoever uses them; one that moved to another host meanwhile is locked there",
            groups.join("; ")
        );
        for note in &self.report.notes {
            words.push_str(". Note: ");
            words.push_str(note);
        }
        words
    }

    /// Whether there is still something to be watched over. Not any more once the lockspaces are being joined: what comes into use from then on
    /// may do so. What cannot be told counts.
    fn devices_left(&self) -> bool {
        let joining =
            self.report.steps.iter().any(|s| {
                s.kind == UnfenceStepKind::JoinLockspace && s.result != StepResult::Planned
            });
        !joining && !matches!(self.list().map(|d| self.first_left(&d)), Ok(None))
    }

    /// A device of the groups that is there, the leases' volume aside.
    fn first_left(&self, devices: &[DmDevice]) -> Option<Blocker> {
        self.report.groups.iter().find_map(|g| {
            let standing = &g.standing;
            let left = |d: &&DmDevice| standing.owns(d) && !standing.is_lvmlock(d) && !g.in_use;
            let device = devices.iter().find(left)?;
            let message = format!(
                "{} came up just now, without a lock: deactivate it (dmsetup remove {0})",
                device.name
            );
            Some(Blocker {
                device: Some(device.name.to_string()),
                ..Blocker::new(BlockerReason::DeviceNotFenced, &standing.name, message)
            })
        })
    }

    fn note(&mut self, note: String) {
        if !self.report.notes.contains(&note) {
            self.report.notes.push(note);
        }
    }

    fn publish(&mut self) {
        (self.progress)(&self.report);
    }

    fn elapsed(&self) -> Duration {
        let started = self.report.started.unwrap_or_default();
        self.host.system.monotonic().since(started)
    }

    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        limited::call(self.host, what, ASK, call)
    }

    fn list(&self) -> Result<Vec<DmDevice>> {
        self.ask("listing the devices", |h| h.device_mapper.devices())
    }

    fn wait_for<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Step<Result<T>> {
        wait_for(self.host, self.interrupt, what, limit, call)
    }

    /// An interruption ends the attempt here. Asked before each thing that takes its time or leaves a trace: a fence waits.
    fn go_on(&self) -> Step {
        go_on(self.interrupt)
    }

    /// Waits a little; an interruption ends the attempt.
    fn pause(&self) -> Step {
        self.go_on()?;
        let until = self.host.system.monotonic() + LOOK_AGAIN;
        self.host.system.wait(&Bell::default(), 0, until);
        Ok(())
    }

    fn groups(&self) -> Vec<GroupReport> {
        self.report.groups.clone()
    }

    /// A step of a volume group begins, unless an earlier attempt has ended it.
    fn begin(&mut self, kind: UnfenceStepKind, group: &GroupReport) {
        let at = self.elapsed();
        if let Some(step) = self.step(kind, group)
            && matches!(step.result, StepResult::Planned | StepResult::Failed)
        {
            step.result = StepResult::Running;
            step.at.get_or_insert(at);
            self.publish();
        }
    }

    fn end(
        &mut self,
        kind: UnfenceStepKind,
        group: &GroupReport,
        result: StepResult,
        message: String,
    ) {
        let now = self.elapsed();
        let Some(step) = self.step(kind, group) else {
            return;
        };
        // What an earlier attempt did is what the record is to tell.
        if step.result == StepResult::Done && result != StepResult::Failed {
            return;
        }
        step.result = result;
        step.took = step
            .at
            .filter(|_| result != StepResult::Skipped)
            .map(|at| now.saturating_sub(at));
        step.message = Some(message);
        self.publish();
    }

    fn step(&mut self, kind: UnfenceStepKind, group: &GroupReport) -> Option<&mut UnfenceStep> {
        self.report
            .steps
            .iter_mut()
            .find(|s| s.kind == kind && s.uuid == group.standing.uuid)
    }

    /// A step of a volume group failed: says so in its record, and gives the obstacle.
    fn fail(&mut self, kind: UnfenceStepKind, group: &GroupReport, why: &str) -> Obstacle {
        self.begin(kind, group);
        self.end(kind, group, StepResult::Failed, why.to_owned());
        let name = &group.standing.name;
        let message = format!(
            "{} of {name} failed and is tried again: {why}",
            kind.as_str()
        );
        let blocker = Blocker::new(BlockerReason::StepFailed, name, message);
        Obstacle::Failed(Box::new(blocker))
    }
}
