//! Fences that hang, and let others go first: none is lost, and each has its turn again for as long as the host lives.

use std::collections::BTreeSet;

use super::{Desk, Running, Work};
use crate::agent::decide::{Hanging, Known, Uid};
use crate::agent::hook::server::Call;
use crate::agent::journal::{Record, Waits};
use crate::fence::report::FenceReport;

/// Fences of this node that are not done and not going on, each by the UID of its request: the next one first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Vec<(Uid, Record)>,
    /// A kill hook waits for the next one.
    hurried: bool,
}

impl Queue {
    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn has(&self, uid: &str) -> bool {
        self.waiting.iter().any(|(u, _)| u == uid)
    }

    /// One more, in place of what is known of it. One that was never given up comes before those that were: what it hangs on is not known yet.
    fn push(&mut self, uid: Uid, record: Record) {
        self.waiting.retain(|(u, _)| *u != uid);
        self.waiting.push((uid, record));
        self.waiting.sort_by_key(|(_, r)| r.given_up());
    }

    fn take(&mut self) -> Option<(Uid, Record)> {
        self.hurried = false;
        (!self.is_empty()).then(|| self.waiting.remove(0))
    }

    /// The one of that volume group is the next, of those that were given up: once, since two that hang would chase each other otherwise.
    pub(super) fn hurry(&mut self, vg: &str) {
        let is = |r: &Record| r.given_up() && groups(&r.begun.report).any(|(name, _)| name == vg);
        let Some(at) = self.waiting.iter().position(|(_, r)| is(r)) else {
            return;
        };
        let first = self.waiting.partition_point(|(_, r)| !r.given_up());
        let one = self.waiting.remove(at);
        self.waiting.insert(first, one);
        self.hurried = true;
    }

    /// The API server has given a fence of the node's own a UID.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        for (uid, _) in &mut self.waiting {
            if uid == from {
                to.clone_into(uid);
            }
        }
    }
}

/// Names and UUIDs of the volume groups of a fence.
fn groups(report: &FenceReport) -> impl Iterator<Item = (&str, &str)> {
    let all = report.volume_groups.iter();
    all.map(|g| (g.name.as_str(), g.uuid.as_str()))
}

impl Desk {
    /// A fence that waits for its turn: what is known of it goes on to be told.
    pub(super) fn keep(&mut self, record: Record) {
        let order = record.begun.order.clone();
        let report = record.finished.clone();
        let report = report.unwrap_or_else(|| record.begun.report.clone());
        let mut known = Known { order, report };
        let now = self.tools.host.system.monotonic();
        self.tools.sentry.goes(&mut known, false, now);
        let uid = known.order.uid.clone();
        self.queue.push(uid.clone(), record);
        self.known.entry(uid).or_insert(known);
        self.tools.metrics.fencing(true);
    }

    /// What this process or others have put aside. Not what this process has tried to its end: without a watchdog that resets the host, two of these
    /// would bring each other back for ever.
    pub(super) fn look_aside(&mut self) {
        for record in self.tools.actor.set_aside() {
            let uid = self.tools.sentry.uid_now(&record.begun.order.uid);
            if !self.queue.has(&uid) && !self.tried_out.contains(&uid) {
                self.keep(record);
            }
        }
    }

    /// Goes on with the next one, when nothing else is to be begun.
    pub(super) fn go_on(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some((uid, record)) = self.queue.take() else {
            return;
        };
        tracing::info!(order = record.begun.order.name, "a fence is tried on");
        match self.tools.actor.resume(record.clone()) {
            Ok(reins) => {
                let work = Work::Fence;
                self.running = Some((Running { uid, work }, reins));
                self.tools.metrics.fencing(true);
            }
            Err(error) => {
                tracing::error!(%error, "no thread for a fence; trying again");
                self.queue.push(uid, record);
            }
        }
    }

    /// Fences that are in hand: those that wait, and the one that is going on.
    pub(super) fn hanging(&self) -> Vec<Hanging> {
        let of = |uid: &Uid, report: &FenceReport| Hanging {
            uid: uid.clone(),
            groups: groups(report).map(|(_, uuid)| uuid.to_owned()).collect(),
        };
        let waiting = self
            .queue
            .waiting
            .iter()
            .map(|(uid, r)| of(uid, &r.begun.report));
        let going_on = self.going_on().map(|k| of(&k.order.uid, &k.report));
        waiting.chain(going_on).collect()
    }

    fn going_on(&self) -> Option<&Known> {
        let (running, _) = self.running.as_ref()?;
        let known = self.known.get(&running.uid);
        known.filter(|_| running.work == Work::Fence)
    }

    /// Names of the volume groups that a fence is at: a kill hook of one waits for the end of that.
    pub(super) fn in_hand(&self) -> BTreeSet<String> {
        let waiting = self.queue.waiting.iter().map(|(_, r)| &r.begun.report);
        let going_on = self.going_on().map(|known| &known.report);
        let all = waiting.chain(going_on).flat_map(groups);
        all.map(|(name, _)| name.to_owned()).collect()
    }

    /// A kill hook calls. The lease of its volume group has run out: a fence of that which waits for its turn has it next.
    pub(super) fn called(&mut self, call: Call) {
        self.queue.hurry(&call.vg);
        self.hooks.push(call);
    }

    /// Tells the fence that is going on who waits for it. `first`: an order does that has not had its turn.
    pub(super) fn tell_who_waits(&self, first: bool) {
        if let Some((_, reins)) = &self.running {
            let never_tried = self.queue.waiting.iter().any(|(_, r)| !r.given_up());
            reins.wanted(match self.queue.is_empty() {
                _ if first || never_tried || self.queue.hurried => Waits::First,
                false => Waits::Another,
                true => Waits::Nobody,
            });
        }
    }
}
