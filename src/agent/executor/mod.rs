//! Carries a fence out: freezes the locks, stops the queueing, swaps the tables, proves it, and only then has the locks released.
//!
//! No API call, no fork, no I/O to the SAN, and no wait without a limit: whatever may hang runs on a thread that is given up when its time is
//! over. A journal that cannot be written does not stop a fence: without it a killed agent's fence is not completed, and the watchdog resets
//! the host, which is what would happen for certain if the fence were refused. The report notes it.

mod expedite;
mod freeze;
mod frozen;
mod giveway;
mod handed_on;
mod incarnation;
pub(in crate::agent) mod limited;
mod noted;
mod nowhere;
mod quiesce;
mod refence;
mod release;
mod reopened;
mod resumed;
mod stands;
mod swap;
mod telling;
#[cfg(test)]
mod tests;
mod track;
mod worker;

pub use expedite::give_back;
pub use refence::{
    FIND_OUT, Strangers, keep_queueing_off, open_devices, own_devices, refence, strangers,
};
pub use stands::with_standings;
pub use telling::telling;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::journal::{GroupRecord, Journal, MapRecord, Record};
use crate::fence::budget::ResetWindow;
use crate::fence::plan::{self, Plan};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::selection::{self, RefusalReason};
use crate::fence::{DmDevice, Inventory, Lockspace, LockspaceState, Order, PvRecord, VolumeGroup};
use crate::host::{Bell, Host, Result};
use release::Next;

/// How long one question to the kernel or a daemon may take.
const ASK: Duration = Duration::from_secs(3);
/// A list of the devices that takes longer is given up and asked for again.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// How often to look again where nobody tells of changes.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Fences what `order` means, from an inventory taken just now. Blocks; made for a thread of its own.
///
/// `cancel` is asked until the locks are frozen, the first thing that leaves a trace, and again where the fence could be left at that: a release
/// that the lock manager keeps waiting. It may block for no time. `progress` is called whenever the report has changed, at least at the end of each
/// step; it may block for no time either.
pub fn run(
    host: &Host,
    journal: &mut Journal,
    order: &Order,
    inventory: Inventory,
    cancel: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&FenceReport),
) -> FenceReport {
    // What cannot be read stands for nobody: then the order is refused as before.
    let standings = journal.standings().all().unwrap_or_default();
    let inventory = with_standings(inventory, &standings);
    let now = host.system.monotonic();
    let refused = |reason, message| FenceReport {
        outcome: Outcome::Refused(reason),
        message,
        ..Plan::new(order, &inventory, &[], now).report
    };
    let groups = match selection::select(&inventory, order) {
        Ok(groups) => groups,
        Err(r) => return untouched(refused(r.reason, r.message), progress),
    };
    if let Err(e) = limited::call(host, "asking device mapper for its version", ASK, |h| {
        h.device_mapper.version()
    }) {
        let message = format!("device mapper cannot be used, so nothing was touched: {e}");
        let report = refused(RefusalReason::DeviceMapperUnavailable, message);
        return untouched(report, progress);
    }
    let plan = Plan::new(order, &inventory, &groups, now);
    if order.dry_run {
        let report = FenceReport {
            outcome: Outcome::DryRun,
            message: "Dry run: the steps are the plan, nothing was touched".into(),
            ..plan.report
        };
        return untouched(report, progress);
    }
    let mut fence = Fence {
        host,
        journal,
        progress,
        order: order.clone(),
        groups: groups
            .iter()
            .map(|g| stands::record(host, g, &standings))
            .collect(),
        planned: groups.iter().map(|g| g.devices.clone()).collect(),
        reset: plan.reset,
        report: plan.report,
        resumed: false,
        gave_way: false,
        releases_again: false,
        leave: &|| false,
        cancel,
        unguarded: BTreeSet::new(),
        handed_on: BTreeSet::new(),
    };
    stands::tell_released(&mut fence.report, &groups, &standings);
    // Of thousands of devices it takes megabytes, and the kernel is about to be asked for more.
    drop((inventory, groups));
    fence.report.message = "Going on".into();
    let begun = fence.as_record(false).begun;
    match fence.journal.begin(begun) {
        Ok(()) => fence.journal.signs().give(),
        Err(e) => fence.note_journal(&e),
    }
    if fence.freeze() {
        fence.cut_off();
    }
    fence.finish()
}

/// Completes a fence whose agent was killed, or that gave way: goes on from what the kernel says. For records that are [`Record::unfinished`].
///
/// One that was reported as not proven stays so until it is: nothing has become better by trying again.
///
/// A volume group that was joined again since (another host id, generation or boot, or a lockspace that is no longer frozen) is in use anew:
/// then the fence is called off.
///
/// `cancel` is asked only where the fence could be left at what it has reached, as by [`run`].
pub fn resume(
    host: &Host,
    journal: &mut Journal,
    record: Record,
    cancel: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&FenceReport),
) -> FenceReport {
    let rewritten = journal.resume(&record);
    let given_up = record.given_up();
    let message = "Completing the fence of an agent that was killed";
    let mut report = giveway::reported(record.finished).unwrap_or(FenceReport {
        message: message.into(),
        ..record.begun.report
    });
    report.steps = record.steps;
    resumed::tell_released(&mut report, &record.begun.order);
    let mut fence = Fence {
        host,
        journal,
        progress,
        order: record.begun.order,
        groups: record.begun.groups,
        planned: Vec::new(),
        reset: record.begun.reset,
        report,
        resumed: true,
        gave_way: false,
        releases_again: false,
        leave: &|| false,
        cancel,
        unguarded: BTreeSet::new(),
        handed_on: BTreeSet::new(),
    };
    if let Err(e) = rewritten {
        fence.note_journal(&e);
    }
    fence.releases_again = given_up && fence.has_begun_to_release();
    fence.hand_on_now();
    let anew = fence.in_use_anew();
    if let Some(why) = anew
        .as_ref()
        .filter(|_| fence.report.outcome == Outcome::Proven)
    {
        // Proven it was, and stands; what is there now is nobody's to drop.
        fence.report.locks_message =
            format!("The locks were not seen released, and are left alone by now: {why}");
    } else if let Some(why) = anew {
        fence.report.outcome = Outcome::CalledOff;
        fence.report.message = format!("The fence of an earlier agent was not completed: {why}");
        fence.keep_locks("the fence was called off");
    } else {
        fence.reset = fence.current_reset().or(fence.reset);
        // What could not be frozen before the release began is frozen with the care that this takes by now.
        if fence.has_begun_to_release() || fence.freeze() {
            fence.cut_off();
        }
    }
    fence.finish()
}

fn untouched(mut report: FenceReport, progress: &mut dyn FnMut(&FenceReport)) -> FenceReport {
    report.locks = LocksOutcome::Kept;
    report.locks_message = "Nothing was touched".into();
    report.finished_after = Some(Duration::ZERO);
    progress(&report);
    report
}

/// What the journal keeps of a volume group. Of each plain disk that it lies on the kernel is asked which it is, for as long as it can be.
#[must_use]
pub fn record(host: &Host, vg: &VolumeGroup) -> GroupRecord {
    let map = |m: &crate::fence::MultipathMap| MapRecord {
        uuid: m.uuid.clone(),
        name: m.name.clone(),
    };
    GroupRecord {
        name: vg.name.clone(),
        called: None,
        uuid: vg.uuid.clone(),
        lvmlock: vg.lvmlock.as_ref().map(|d| d.uuid.to_string()),
        pvs: PvRecord::all(&vg.pvs, &|dev| host.system.mark(dev)),
        maps: plan::maps(vg).into_iter().map(map).collect(),
    }
}

/// A fence that is going on.
struct Fence<'a> {
    host: &'a Host,
    journal: &'a mut Journal,
    progress: &'a mut dyn FnMut(&FenceReport),
    order: Order,
    groups: Vec<GroupRecord>,
    /// Of each volume group the devices that the plan was made from; the first swap takes them.
    planned: Vec<Arc<[Arc<DmDevice>]>>,
    reset: Option<ResetWindow>,
    report: FenceReport,
    resumed: bool,
    /// It left its place to another, to be resumed later.
    gave_way: bool,
    /// Its release had begun in an earlier turn, which was given away.
    releases_again: bool,
    /// Whether to leave it where it is.
    leave: &'a dyn Fn() -> bool,
    /// Whether it is not wanted any more by whoever asked for it.
    cancel: &'a dyn Fn() -> bool,
    /// Volume groups, by their place, whose locks nobody holds any more, and that are not known to be closed since: no watchdog stands behind them.
    unguarded: BTreeSet<usize>,
    /// Those that were released, and are in use under other locks since.
    handed_on: BTreeSet<usize>,
}

impl Fence<'_> {
    /// Everything after the freeze, which is also what a successor does again.
    fn cut_off(&mut self) {
        let guard = self.quiesce();
        let mut proof = self.swap(guard);
        if proof.is_some() && self.freeze_missing(self.has_begun_to_release()) {
            // Until just now a volume could come into use: look again.
            let guard = self.quiesce();
            proof = self.swap(guard);
        }
        let mut release = None;
        while let Some(fresh) = proof.take() {
            self.report.outcome = Outcome::Proven;
            self.report.message = "No device of the volume groups leads to the SAN any more: \
                read back from the kernel for every one of them"
                .into();
            self.publish();
            self.stand();
            let release = release.get_or_insert_with(|| self.begin_release());
            if self.release(release, fresh) == Next::ProveAgain {
                self.freeze_missing(true);
                let guard = self.quiesce();
                proof = self.swap(guard);
            }
        }
        if self.report.outcome == Outcome::Proven {
            self.stand_released();
        }
    }

    /// Whether to stop: another process has taken this fence over, or it is not wanted any more. It ends then: whatever it would do may be about another life of the volume group.
    fn taken_away(&mut self) -> bool {
        let taken = self.journal.taken_by();
        if let Some(by) = &taken
            && self.report.outcome != Outcome::Proven
        {
            self.report.outcome = Outcome::NotProven;
            self.report.message = format!("Not completed here: {by}");
            self.keep_locks("another process goes on with it");
        }
        taken.is_some() || (self.leave)()
    }

    fn finish(mut self) -> FenceReport {
        // What a killed fence has raised, if nothing was swapped since.
        give_back(self.host, self.journal);
        self.report.finished_after = (!self.gave_way).then(|| self.elapsed());
        let finished = self.journal.finish(&self.report);
        if let Err(e) = finished {
            self.note_journal(&e);
        }
        if self.gave_way {
            self.put_aside();
        }
        self.publish();
        self.report
    }

    fn elapsed(&self) -> Duration {
        self.host.system.monotonic().since(self.report.started)
    }

    fn publish(&mut self) {
        (self.progress)(&self.report);
    }

    fn note(&mut self, note: String) {
        if !self.report.notes.contains(&note) {
            self.report.notes.push(note);
        }
    }

    fn note_journal(&mut self, error: &crate::agent::journal::Error) {
        self.note(format!(
            "{error}. If the agent is killed now, its successor will not complete this fence"
        ));
    }

    /// Waits a little, for what nobody rings a bell for.
    fn pause(&self) {
        let until = self.host.system.monotonic() + LOOK_AGAIN;
        self.host.system.wait(&Bell::default(), 0, until);
    }

    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        limited::call(self.host, what, ASK, call)
    }

    /// Index of a step of a volume group, of which each has one; not for [`StepKind::Quiesce`]. By its place: of two volume groups that have one name
    /// by now, none is to pass for the other.
    fn step(&self, kind: StepKind, group: usize) -> Option<usize> {
        let steps = self.report.steps.iter().enumerate();
        let mut of_kind = steps.filter(|(_, s)| s.kind == kind);
        of_kind.nth(group).map(|(index, _)| index)
    }

    fn result(&self, kind: StepKind, group: usize) -> Option<StepResult> {
        let step = self.report.steps.get(self.step(kind, group)?)?;
        Some(step.result)
    }

    /// A step begins. One that an earlier agent ended keeps its record: that is when it was done.
    fn begin(&mut self, index: Option<usize>) {
        let at = self.elapsed();
        let Some(step) = index.and_then(|i| self.report.steps.get_mut(i)) else {
            return;
        };
        if matches!(step.result, StepResult::Planned | StepResult::Failed) {
            // It is asked first, about which lockspace is meant.
            let first = step.result == StepResult::Planned;
            step.untold |= first && step.kind == StepKind::FreezeLocks;
            step.result = StepResult::Running;
            step.at.get_or_insert(at);
            self.write(index);
        }
    }

    /// A step ends, or its record is corrected.
    fn end(&mut self, index: Option<usize>, result: StepResult, message: String) {
        let now = self.elapsed();
        let Some(step) = index.and_then(|i| self.report.steps.get_mut(i)) else {
            return;
        };
        let again = step.result == StepResult::Done && result == StepResult::Done;
        if again || (step.result == StepResult::Skipped && result == StepResult::Skipped) {
            return;
        }
        step.result = result;
        if result == StepResult::Skipped {
            step.took = None;
        } else {
            step.took = step.at.map(|at| now.saturating_sub(at));
        }
        step.message = Some(message);
        self.write(index);
    }

    fn write(&mut self, index: Option<usize>) {
        let Some((index, step)) = index.and_then(|i| Some((i, self.report.steps.get(i)?))) else {
            return;
        };
        let written = self.journal.step(index, step);
        if let Err(e) = written {
            self.note_journal(&e);
        }
        self.publish();
    }

    /// When the watchdog may reset the host, asked anew: a renewal that succeeded meanwhile has moved it.
    fn current_reset(&self) -> Option<ResetWindow> {
        let sanlock = self
            .ask("asking sanlock for its status", |h| h.sanlock.status())
            .ok()?;
        let watchdog = self
            .ask("asking wdmd for its status", |h| Ok(h.wdmd.status()))
            .ok()?;
        let ours = |name: &str| {
            let is = |l: &Option<String>| l.as_deref() == Some(name);
            self.report.volume_groups.iter().any(|g| is(&g.lockspace))
        };
        let lockspaces: Vec<Lockspace> = sanlock
            .lockspaces
            .into_iter()
            .filter(|l| ours(&l.name) && l.state != LockspaceState::Removing)
            .map(|l| Lockspace {
                io_timeout: l.io_timeout,
                last_renewal: l.last_renewal,
                ..Lockspace::default()
            })
            .collect();
        ResetWindow::of(&lockspaces, &watchdog)
    }

    fn keep_locks(&mut self, why: &str) {
        let groups = self.report.volume_groups.iter();
        let gone: Vec<&str> = groups
            .filter(|g| g.released_after.is_some())
            .map(|g| g.name.as_str())
            .collect();
        self.report.locks = LocksOutcome::Kept;
        self.report.locks_message = if gone.is_empty() {
            format!("Nothing was released: {why}")
        } else {
            // By an earlier turn of this fence.
            format!(
                "Nothing more was released: {why}. The locks of {} had been before",
                gone.join(", ")
            )
        };
    }
}
