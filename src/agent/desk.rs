//! Where everything comes together: requests, what the fences say, and inventories come in; orders, statuses and events go out.

mod alone;
mod ends;
mod hanging;
mod publishing;
mod seeing;
mod telling;
mod unfence;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::ends::Ends;
use self::hanging::Queue;
use super::act::{Actor, Reins, Said};
use super::affected::Subject;
use super::decide::{Decision, Known, Running, Uid, View, Work, decide, waits};
use super::executor::with_standings;
use super::hook;
use super::hook::server::Call;
use super::hook::waiting::Waiting;
use super::journal::Record;
use super::metrics::Metrics;
use super::observer::Observer;
use super::publish::Board;
use super::report::{AgentPart, Happened, happened};
use super::sentry::Sentry;
use super::sentry::in_force::Learned;
use super::sentry::records::worth_a_record;
use crate::api::StorageFenceRequest;
use crate::fence::report::Outcome;
use crate::fence::unfence::{UnfenceReport, left_standing};
use crate::fence::{Monotonic, Order};
use crate::host::Host;
use crate::kubernetes::events::Events;
use crate::kubernetes::watch::Seen;

/// Between two looks while a request waits for its paths to go.
const LOOK_CLOSELY: Duration = Duration::from_secs(1);
/// Everything is decided anew after this time without any reason: for a thread that the system did not give. Longer than the usual time between two
/// looks, each of which is a reason: an idle node need not be thought of twice.
const AGAIN: Duration = Duration::from_secs(6);

/// What the desk works with.
pub struct Tools {
    /// Name of this node.
    pub node_name: String,
    /// Boot ID of the running kernel.
    pub boot_id: String,
    /// For the clock.
    pub host: Host,
    /// Hands.
    pub actor: Actor,
    /// Eyes.
    pub observer: Observer,
    /// What the node does by itself.
    pub sentry: Sentry,
    /// What the API server tells of policies and the Node.
    pub news: mpsc::UnboundedReceiver<Learned>,
    /// Between two looks otherwise.
    pub pause: Duration,
    /// Statuses.
    pub board: Board,
    /// Counters.
    pub metrics: Metrics,
    /// Whether the requests were listed.
    pub listed: Arc<AtomicBool>,
}

/// The state.
pub struct Desk {
    tools: Tools,
    events: Option<Events>,
    requests: BTreeMap<Uid, StorageFenceRequest>,
    listing: Option<BTreeMap<Uid, StorageFenceRequest>>,
    listed: bool,
    known: BTreeMap<Uid, Known>,
    started: BTreeMap<Uid, (Monotonic, Timestamp)>,
    lifts: BTreeMap<Uid, UnfenceReport>,
    lifts_started: BTreeMap<Uid, (Monotonic, Timestamp)>,
    /// Requests that went with `deletionPolicy: Retain`, and when what they may have left half-way is to be let go of.
    retained: BTreeMap<Uid, Monotonic>,
    /// A fence of our own that waits for an un-fence to be interrupted.
    after_unfence: Option<Order>,
    /// When a fence ended last. While it got on with its swaps the node may not have been looked at.
    fence_ended: Monotonic,
    running: Option<(Running, Arc<Reins>)>,
    queue: Queue,
    /// Fences that this process has tried to their end without proof: not worth another turn.
    tried_out: BTreeSet<Uid>,
    hooks: Waiting,
    subjects: watch::Sender<Vec<Subject>>,
    /// Volume groups without a lock that were told of.
    unlocked: Vec<String>,
}

impl Desk {
    /// With what the journal of an earlier agent tells: a fence that it did not end is completed at once, whatever the API server does.
    ///
    /// # Errors
    /// When the system has no thread for that.
    pub fn new(tools: Tools, left: Option<Record>) -> std::io::Result<Self> {
        let mut desk = Self {
            tools,
            events: None,
            requests: BTreeMap::new(),
            listing: None,
            listed: false,
            known: BTreeMap::new(),
            started: BTreeMap::new(),
            lifts: BTreeMap::new(),
            lifts_started: BTreeMap::new(),
            retained: BTreeMap::new(),
            after_unfence: None,
            fence_ended: Monotonic::default(),
            running: None,
            queue: Queue::default(),
            tried_out: BTreeSet::new(),
            hooks: Waiting::default(),
            subjects: watch::Sender::default(),
            unlocked: Vec::new(),
        };
        let Tools { sentry, actor, .. } = &mut desk.tools;
        for known in sentry.resume(left.as_ref(), &|r| actor.lifted(r)) {
            // One whose record turns up later must not be taken for an order that nothing was done about.
            if !Self::recorded(&known.order.uid) || !actor.lifted(&known.report) {
                desk.known.insert(known.order.uid.clone(), known);
            }
        }
        desk.overtake();
        let (unfinished, ended) = match left {
            Some(record) if record.unfinished() => (Some(record), None),
            ended => (None, ended),
        };
        if let Some(Record {
            begun, finished, ..
        }) = ended
            && let Some(report) = finished
            && Self::recorded(&begun.order.uid)
            && !desk.tools.actor.lifted(&report)
        {
            let (uid, order) = (begun.order.uid.clone(), begun.order);
            desk.known.insert(uid, Known { order, report });
        }
        // The journal's own is newer than what was put aside of it.
        if let Some(record) = unfinished {
            desk.keep(record);
        }
        desk.look_aside();
        desk.lift_on()?;
        if !desk.queue.is_empty() {
            tracing::warn!("completing the fence of an earlier agent");
            desk.go_on();
        }
        Ok(desk)
    }

    /// Has events sent from now on.
    pub fn send_events(&mut self, events: Events) {
        self.events = Some(events);
    }

    /// Works until `stop`, and then until the fence that is going on has ended.
    ///
    /// # Errors
    /// When a fence's thread died, or another process has taken its place.
    pub async fn work(
        &mut self,
        watch: impl Stream<Item = Seen<StorageFenceRequest>>,
        mut said: mpsc::UnboundedReceiver<Said>,
        mut calls: mpsc::UnboundedReceiver<Call>,
        stop: CancellationToken,
    ) -> Result<(), Ends> {
        let mut watch = std::pin::pin!(watch);
        let mut inventory = self.tools.observer.latest();
        // The first time at once: something may have been left by an agent before.
        let mut wait = Duration::ZERO;
        loop {
            let due = tokio::time::sleep(wait);
            tokio::select! {
                // What a fence says comes first: it frees the hands for the next.
                biased;
                Some(said) = said.recv() => self.hear(said)?,
                Some(call) = calls.recv() => self.called(call),
                Some(seen) = watch.next() => self.see(seen),
                Ok(()) = inventory.changed() => {}
                Some(news) = self.tools.news.recv() => {
                    let now = self.tools.host.system.monotonic();
                    self.tools.sentry.hear(news, now);
                }
                () = due => {}
                () = stop.cancelled(), if self.running.is_none() => return Ok(()),
            }
            if stop.is_cancelled() {
                // The next agent goes on with it, and finds out at once where it was.
                self.interrupt_unfence();
            }
            let sooner = self.settle(!stop.is_cancelled());
            wait = sooner.map_or(AGAIN, |wait| wait.min(AGAIN));
        }
    }

    fn runs(&self, uid: &str) -> bool {
        self.running.as_ref().is_some_and(|(r, _)| r.uid == uid)
    }

    fn hear(&mut self, said: Said) -> Result<(), Ends> {
        let (mut known, ended, gave_way) = match said {
            Said::Progress(known) => (*known, false, None),
            Said::Ended(known) => (*known, true, None),
            Said::GaveWay(known, record) => (*known, false, Some(*record)),
            Said::Noticed(news) => {
                self.noticed(&news);
                return Ok(());
            }
            Said::Paths(seen) => {
                self.hear_paths(seen);
                return Ok(());
            }
            Said::Unfence(report) => {
                self.hear_unfence(*report, false);
                return Ok(());
            }
            Said::UnfenceEnded(report) => {
                self.hear_unfence(*report, true);
                return Ok(());
            }
            Said::Died => return Err(Ends::Died),
            Said::TakenOver(by) => return Err(Ends::TakenOver(by)),
        };
        let now = self.tools.host.system.monotonic();
        self.tools.sentry.goes(&mut known, ended, now);
        let uid = known.order.uid.clone();
        let before = self
            .known
            .get(&uid)
            .filter(|b| b.report.started == known.report.started);
        for happened in happened(before.map(|b| &b.report), &known.report) {
            tracing::info!(
                request = known.order.name,
                reason = happened.reason,
                happened.note,
                "fence"
            );
            self.tell(&known.order.name, &uid, "Fence", &happened);
        }
        if let Some(record) = gave_way {
            tracing::info!(order = known.order.name, "a fence that hangs gives way");
            if self.runs(&uid) {
                self.running = None;
            }
            self.keep(record);
        }
        if ended {
            self.ended(&known);
        }
        if ended && hook::is_ours(&uid) {
            // No request asks for it; what stands is in NodeStorage.
            self.known.remove(&uid);
            return Ok(());
        }
        self.begun(&known);
        // One of our own that came to nothing is not recorded, so there is nothing to remember.
        if Self::recorded(&uid) || !ended || worth_a_record(&known.report) {
            self.known.insert(uid, known);
        } else {
            self.known.remove(&uid);
            self.started.remove(&uid);
        }
        Ok(())
    }

    fn ended(&mut self, known: &Known) {
        let uid = &known.order.uid;
        self.tools.metrics.ended(&known.report);
        self.running = None;
        // It lies aside again, or will when another one begins.
        self.tried_out.insert(uid.clone());
        self.look_aside();
        self.tools.metrics.fencing(!self.queue.is_empty());
        self.hooks.ended(known);
        // What was seen of the volume groups is no longer so.
        self.fence_ended = self.tools.host.system.monotonic();
        self.tools.observer.look();
        if !left_standing(&known.report.outcome) {
            // It has touched nothing, so what was half-way before still is.
            self.remember_half_way();
        }
        let fenced = matches!(known.report.outcome, Outcome::Proven | Outcome::NotProven);
        let asked_for = Self::recorded(uid) && !hook::is_ours(uid);
        let alive = |r: &StorageFenceRequest| r.metadata.deletion_timestamp.is_none();
        let deleted = !self.requests.get(uid).is_some_and(alive);
        if fenced && asked_for && self.listed && deleted {
            let note = format!(
                "Request {} was deleted when its fence could no longer be called off: it was completed. {}",
                known.order.name, known.report.message
            );
            let happened = Happened {
                warning: true,
                reason: "RequestDeletedDuringFence",
                note,
            };
            self.tell(&known.order.name, uid, "Fence", &happened);
        }
    }

    /// Fixes when the fence began by the wall clock: once, so that the status does not change with every reading of two clocks.
    fn begun(&mut self, known: &Known) {
        let uid = &known.order.uid;
        let monotonic = known.report.started;
        if self.started.get(uid).is_some_and(|(m, _)| *m == monotonic) {
            return;
        }
        // An earlier agent's reading, if it is one of the same moment.
        let node = self
            .requests
            .get(uid)
            .and_then(|r| r.status.as_ref()?.node.as_ref());
        let read = node
            .filter(|n| n.boot_id == known.report.boot_id)
            .and_then(|n| n.started_at);
        let started = self.wall_clock(monotonic, read);
        self.started.insert(uid.clone(), (monotonic, started));
    }

    /// A kill hook's turn comes before a request's: its lease has run out already.
    ///
    /// Whether one waits for what is going on.
    fn settle_hooks(&mut self) -> bool {
        let in_hand = self.in_hand();
        let Some(vg) = self.hooks.first(&in_hand) else {
            return false;
        };
        if self.running.is_some() {
            self.interrupt_unfence();
            return true;
        }
        let now = self.tools.host.system.monotonic().0.as_millis();
        let order = hook::order(vg, now.try_into().unwrap_or(u64::MAX));
        self.begin(order);
        false
    }

    /// Begins a fence. Whether the system had a thread for it.
    fn begin(&mut self, order: Order) -> bool {
        let uid = order.uid.clone();
        tracing::info!(
            order = order.name,
            generation = order.generation,
            "an order's turn"
        );
        match self.tools.actor.begin(order) {
            Ok(reins) => {
                // Whatever was given back or tried before: this is another story.
                self.lifts.remove(&uid);
                self.tried_out.remove(&uid);
                let work = Work::Fence;
                self.running = Some((Running { uid, work }, reins));
                self.tools.metrics.fencing(true);
            }
            Err(error) => {
                tracing::error!(%error, "no thread for a fence; trying again");
                return false;
            }
        }
        true
    }

    /// Decides, and does what was decided. Gives when it is worth doing again, if nothing else happens.
    fn settle(&mut self, may_begin: bool) -> Option<Duration> {
        let hook_waits = may_begin && self.settle_hooks();
        let observation = self.tools.observer.latest().borrow().clone();
        let inventory = observation.as_ref().and_then(|o| o.as_ref().as_ref().ok());
        // First: it may be that a watchdog is running.
        let (wait, policy_waits) = self.stand_guard(observation.as_ref(), may_begin);
        self.tell_unlocked(inventory);
        // What a refused order would be answered by now, it is asked as a fence would ask it.
        let refused = |k: &Known| matches!(k.report.outcome, Outcome::Refused(why) if waits(why));
        let waiting = self.known.values().any(refused);
        let standings = waiting.then(|| self.tools.actor.standings().all().unwrap_or_default());
        let standings = standings.filter(|all| !all.is_empty());
        let with_standings = standings
            .zip(inventory)
            .map(|(standings, inventory)| with_standings(inventory.clone(), &standings));
        let inventory = with_standings.as_ref().or(inventory);
        let hanging = self.hanging();
        let abandoned = self.abandoned();
        let Decision {
            stands,
            begin,
            begin_unfence,
            call_off,
            waits: request_waits,
        } = decide(View {
            node_name: &self.tools.node_name,
            boot_id: &self.tools.boot_id,
            requests: self.listed.then_some(&self.requests),
            running: self.running.as_ref().map(|(r, _)| r),
            known: &self.known,
            lifts: &self.lifts,
            now: self.tools.host.system.monotonic(),
            inventory,
            hanging: &hanging,
            abandoned: &abandoned,
        });
        if call_off {
            self.call_off();
        }
        // One that only waits for a look has it before anything else begins.
        let may_begin = may_begin && (self.running.is_some() || !policy_waits);
        if let Some(order) = begin.filter(|_| may_begin) {
            self.begin(order);
        }
        if may_begin {
            self.go_on();
            self.tell_who_waits(hook_waits || policy_waits || request_waits);
        }
        if let Some(order) = begin_unfence.filter(|_| may_begin && self.running.is_none()) {
            self.begin_unfence(order);
        }
        for (uid, stand) in &stands {
            self.publish(uid, stand);
        }
        self.tell_subjects();
        let waiting =
            self.known.values().any(refused) || self.lifts.values().any(|l| l.again_at().is_some());
        let pause = if waiting || self.tools.sentry.alarmed() {
            LOOK_CLOSELY.min(self.tools.pause)
        } else {
            self.tools.pause
        };
        self.tools.observer.every(pause);
        wait
    }
}

fn stored(request: &StorageFenceRequest) -> AgentPart {
    request
        .status
        .as_ref()
        .map(AgentPart::of)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
