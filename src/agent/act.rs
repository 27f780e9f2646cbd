//! Fences and un-fences on threads of their own: neither a kernel that hangs nor an API server that hangs holds the other up.

mod half_way;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::decide::Known;
use super::executor::{self, limited};
use super::guard::News;
use super::hook::keeping;
use super::journal::{Journal, Record, Standings, Turn, Waits, Wanted};
use super::observe::observe_to_fence;
use super::restore;
use super::restore::paths::{Paths, Waiting};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome};
use crate::fence::selection::RefusalReason;
use crate::fence::unfence::{UnfenceOrder, UnfenceReport};
use crate::fence::{Inventory, Order};
use crate::host::Host;

/// What a fence's thread says.
#[derive(Clone, Debug)]
pub enum Said {
    /// The report has changed.
    Progress(Box<Known>),
    /// It has ended; the report is the last one.
    Ended(Box<Known>),
    /// It has given way: not proven, and to be resumed from that record.
    GaveWay(Box<Known>, Box<Record>),
    /// The report of an attempt to give storage back has changed.
    Unfence(Box<UnfenceReport>),
    /// The paths of those that wait for their turn were looked at meanwhile.
    Paths(Vec<Waiting>),
    /// The attempt has ended, with that report.
    UnfenceEnded(Box<UnfenceReport>),
    /// The guard of standing fences has seen something.
    Noticed(News),
    /// A thread died. The journal knows how far it came.
    Died,
    /// Another process fences on this node now, and this one no longer: who, and how that came.
    TakenOver(String),
}

/// How long a kill hook that fences by itself may get nothing done.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// How long a fence may look at the node before it begins, as long as the kill hook: it holds journal and turn meanwhile, and others wait for these.
const LOOK: Duration = Duration::from_secs(8);

/// What a fence or an un-fence that is going on is told.
#[derive(Debug, Default)]
pub struct Reins {
    called_off: AtomicBool,
    wanted: Arc<Wanted>,
}

impl Reins {
    /// Calls a fence off while that is possible, and interrupts an un-fence.
    pub fn call_off(&self) {
        self.called_off.store(true, Ordering::Release);
    }

    /// Who waits: a fence that hangs gives way.
    pub fn wanted(&self, waits: Waits) {
        self.wanted.tell(waits);
    }

    fn called_off(&self) -> bool {
        self.called_off.load(Ordering::Acquire)
    }
}

/// Carries fences out, one at a time.
#[derive(Clone)]
pub struct Actor {
    host: Host,
    journal: Arc<Mutex<Journal>>,
    standings: Standings,
    said: mpsc::UnboundedSender<Said>,
}

/// Says that a thread died, unless it was told that it did not.
struct Obituary(Option<mpsc::UnboundedSender<Said>>);

impl Drop for Obituary {
    fn drop(&mut self) {
        if let Some(said) = self.0.take() {
            let _ = said.send(Said::Died);
        }
    }
}

impl Actor {
    /// What is said comes out of the receiver.
    #[must_use]
    pub fn new(host: Host, journal: Journal) -> (Self, mpsc::UnboundedReceiver<Said>) {
        let (said, hear) = mpsc::unbounded_channel();
        let standings = journal.standings();
        let journal = Arc::new(Mutex::new(journal));
        (
            Self {
                host,
                journal,
                standings,
                said,
            },
            hear,
        )
    }

    /// What stands fenced; without waiting for the fence that has the journal.
    #[must_use]
    pub fn standings(&self) -> &Standings {
        &self.standings
    }

    /// Where others who have something to say to the desk may say it.
    #[must_use]
    pub fn said(&self) -> mpsc::UnboundedSender<Said> {
        self.said.clone()
    }

    /// Begins to fence.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn begin(&self, order: Order) -> std::io::Result<Arc<Reins>> {
        let reins = Arc::new(Reins::default());
        let told = Arc::clone(&reins);
        self.thread(
            order.clone(),
            &reins,
            move |host, journal, progress| match look(host, journal) {
                Ok(inventory) => {
                    let order = keeping(&order, &inventory, &journal.standings());
                    executor::run(
                        host,
                        journal,
                        &order,
                        inventory,
                        &|| told.called_off(),
                        progress,
                    )
                }
                Err(error) => no_inventory(host, &order, &error.to_string()),
            },
        )?;
        Ok(reins)
    }

    /// Completes the fence of an agent that was killed, or one that gave way.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn resume(&self, record: Record) -> std::io::Result<Arc<Reins>> {
        let reins = Arc::new(Reins::default());
        let told = Arc::clone(&reins);
        self.thread(
            record.begun.order.clone(),
            &reins,
            move |host, journal, progress| {
                executor::resume(host, journal, record, &|| told.called_off(), progress)
            },
        )?;
        Ok(reins)
    }

    /// Fences that another went before, by this process or another: each is to be resumed. Not while one is going on.
    #[must_use]
    pub fn set_aside(&self) -> Vec<Record> {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.set_aside().unwrap_or_else(|error| {
            tracing::error!(%error, "fences that wait for their turn are not known");
            Vec::new()
        })
    }

    /// Whether a fence was proven and lifted since. Unknown is no.
    #[must_use]
    pub fn lifted(&self, report: &FenceReport) -> bool {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = |uuid: &String| report.volume_groups.iter().any(|g| g.uuid == *uuid);
        let gone = |all: Vec<super::journal::Standing>| !all.iter().any(|s| of_it(&s.group.uuid));
        report.outcome == Outcome::Proven && journal.standings().all().is_ok_and(gone)
    }

    /// Begins an attempt to give storage back. Called off, it is interrupted. `previous` is the report of the attempt before; the paths of the `others`
    /// are looked at meanwhile.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn begin_unfence(
        &self,
        order: UnfenceOrder,
        previous: Option<UnfenceReport>,
        others: Paths,
    ) -> std::io::Result<Arc<Reins>> {
        let reins = Arc::new(Reins::default());
        let told = Arc::clone(&reins);
        let me = self.clone();
        let others = RefCell::new(others);
        self.host.system.spawn(
            "unfence",
            Box::new(move || {
                let mut obituary = Obituary(Some(me.said.clone()));
                // Not the turn: a kill hook that has to fence another volume group must not wait for a lockspace to be joined.
                let journal = me.journal.lock().unwrap_or_else(PoisonError::into_inner);
                // Asked all along.
                let interrupted = || {
                    if let Some(seen) = others.borrow_mut().look(&me.host) {
                        let _ = me.said.send(Said::Paths(seen));
                    }
                    told.called_off()
                };
                let report = restore::attempt(
                    &me.host,
                    &journal,
                    &order,
                    previous.as_ref(),
                    &interrupted,
                    &mut |report| {
                        let _ = me.said.send(Said::Unfence(Box::new(report.clone())));
                    },
                );
                // What came late.
                interrupted();
                drop(journal);
                let _ = me.said.send(Said::UnfenceEnded(Box::new(report)));
                obituary.0 = None;
            }),
        )?;
        Ok(reins)
    }

    fn thread(
        &self,
        order: Order,
        reins: &Reins,
        work: impl FnOnce(&Host, &mut Journal, &mut dyn FnMut(&FenceReport)) -> FenceReport
        + Send
        + 'static,
    ) -> std::io::Result<()> {
        let me = self.clone();
        let wanted = Arc::clone(&reins.wanted);
        self.host.system.spawn(
            "fence",
            Box::new(move || {
                let mut obituary = Obituary(Some(me.said.clone()));
                let known = |order: &Order, report: &FenceReport| {
                    Box::new(Known {
                        order: order.clone(),
                        report: report.clone(),
                    })
                };
                // Nobody listens any more only when the process ends.
                let progress = |order: &Order, report: &FenceReport| {
                    let _ = me.said.send(Said::Progress(known(order, report)));
                };
                let mut journal = me.journal.lock().unwrap_or_else(PoisonError::into_inner);
                match Turn::take(journal.directory(), "agent", TURN_LIMIT) {
                    Ok(turn) => journal.hold(turn),
                    Err(error) => {
                        tracing::warn!(%error, "fencing without a turn: a kill hook may fence too");
                    }
                }
                // A kill hook that was killed: its fence comes first, since nobody knows yet what it hangs on; once that is known it gives way. One that
                // was reported as not proven is put aside when this one begins. A dry run writes nothing, and touches nothing, whoever's it is.
                let left = journal.left().ok().flatten();
                let others = |r: &Record| {
                    let other = r.unfinished() && r.begun.order.uid != order.uid;
                    other && !order.dry_run && !r.given_up()
                };
                if let Some(record) = left.filter(others) {
                    let of = record.begun.order.clone();
                    tracing::warn!(order = of.name, "completing the fence of another process");
                    let this_one = Wanted::default();
                    this_one.tell(Waits::First);
                    journal.ask(Arc::new(this_one));
                    let report =
                        executor::resume(&me.host, &mut journal, record, &|| false, &mut |r| {
                            progress(&of, r);
                        });
                    if let Some(record) = journal.gave_way() {
                        let _ = me
                            .said
                            .send(Said::GaveWay(known(&of, &report), Box::new(record)));
                    }
                }
                journal.ask(wanted);
                let report = work(&me.host, &mut journal, &mut |r| progress(&order, r));
                let taken_by = journal.taken_by();
                let gave_way = journal.gave_way();
                journal.give_back();
                drop(journal);
                if let Some(by) = taken_by {
                    let _ = me.said.send(Said::TakenOver(by));
                    obituary.0 = None;
                    return;
                }
                let known = known(&order, &report);
                let _ = me.said.send(match gave_way {
                    Some(record) => Said::GaveWay(known, Box::new(record)),
                    None => Said::Ended(known),
                });
                obituary.0 = None;
            }),
        )
    }
}

/// The look before a fence. Whoever waits for the turn sees that it moves.
fn look(host: &Host, journal: &Journal) -> crate::host::Result<Inventory> {
    let signs = journal.signs();
    limited::call(host, "looking at the node", LOOK, move |h| {
        observe_to_fence(&executor::telling(h, &signs))
    })
}

/// Nothing is known of the node, so nothing is touched.
fn no_inventory(host: &Host, order: &Order, why: &str) -> FenceReport {
    FenceReport {
        request: order.name.clone(),
        uid: order.uid.clone(),
        generation: order.generation,
        boot_id: host.system.boot_id().unwrap_or_default(),
        started: host.system.monotonic(),
        finished_after: Some(Duration::ZERO),
        outcome: Outcome::Refused(RefusalReason::DeviceMapperUnavailable),
        message: format!("device mapper cannot be used, so nothing was touched: {why}"),
        locks: LocksOutcome::Kept,
        locks_message: "Nothing was touched".into(),
        ..FenceReport::default()
    }
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
