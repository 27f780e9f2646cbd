//! The desk's part in what the node does by itself: fences that no request asked for, and the requests that turn up as their records.

use std::time::Duration;

use super::{Desk, Work};
use crate::agent::observer::Observation;
use crate::agent::sentry::records::{is_local, rename};
use crate::api::StorageFenceRequest;
use crate::fence::Order;

/// So long the node is given to be looked at anew after a fence, before one of its own goes by what was seen before. It looks anew itself, too.
const ANEW: Duration = Duration::from_secs(5);

impl Desk {
    /// Has the sentry look, and begins what is due. Gives when it is worth asking again, and whether something is due that has to wait for the
    /// fence that is going on, or for a look.
    pub(super) fn stand_guard(
        &mut self,
        observation: Option<&Observation>,
        may_begin: bool,
    ) -> (Option<Duration>, bool) {
        let now = self.tools.host.system.monotonic();
        let hangs = self.tools.observer.hangs();
        let inventory = match observation.map(|o| o.as_ref().as_ref()) {
            _ if hangs => Err("a look at it has not ended; the kernel or a daemon hangs"),
            // Not looked at yet: nothing is known, and nothing is said.
            None => return (None, false),
            Some(Ok(inventory)) => Ok(inventory),
            Some(Err(why)) => Err(why.as_str()),
        };
        self.tools.sentry.look(inventory, now);
        let Ok(inventory) = inventory else {
            return (None, false);
        };
        let fencing = self
            .running
            .as_ref()
            .is_some_and(|(r, _)| r.work == Work::Fence);
        // What was seen before the last fence ended may not be so any more: paths of another array may have come back meanwhile.
        let outdated = inventory.taken_at < self.fence_ended && now.since(self.fence_ended) < ANEW;
        // One waits already for the un-fence to be interrupted: there is room for one.
        let busy = fencing || self.after_unfence.is_some() || outdated || !may_begin;
        let hanging = self.hanging().into_iter().flat_map(|h| h.groups);
        self.tools.sentry.in_hand(hanging.collect());
        let due = self.tools.sentry.due(inventory, now, busy);
        for report in &due.reports {
            self.triggered(&report.note, &report.occasion);
        }
        if let Some((order, why)) = due.fence {
            // Why one that begins again came to nothing is an event of its own.
            if !due.again {
                self.triggered(&why, &order.name);
            }
            if self.interrupt_unfence() {
                // It ends at once, and then it is this one's turn.
                self.after_unfence = Some(order);
            } else {
                self.begin_own(&order);
            }
        }
        (due.wait, due.held_up && may_begin)
    }

    /// Begins a fence of our own.
    pub(super) fn begin_own(&mut self, order: &Order) {
        if !self.begin(order.clone()) {
            let now = self.tools.host.system.monotonic();
            self.tools.sentry.not_begun(order, now);
        }
    }

    /// Whether the fence that is going on may be called off because its request is gone. One that has no request yet may not.
    pub(super) fn call_off(&self) {
        if let Some((running, reins)) = &self.running
            && !self.tools.sentry.owns(&running.uid)
        {
            reins.call_off();
        }
    }

    /// A request has turned up. If it is the record of one of our own fences, what is known of that fence is about it from now on.
    pub(super) fn adopt(&mut self, request: &StorageFenceRequest) {
        let Some(local) = self.tools.sentry.adopt(request) else {
            return;
        };
        let uid = request.metadata.uid.clone().unwrap_or_default();
        let generation = request.metadata.generation.unwrap_or_default();
        if let Some(mut known) = self.known.remove(&local) {
            rename(&mut known, &uid, generation);
            self.known.insert(uid.clone(), known);
        }
        if let Some(started) = self.started.remove(&local) {
            self.started.insert(uid.clone(), started);
        }
        if let Some(mut lift) = self.lifts.remove(&local) {
            lift.order.uid.clone_from(&uid);
            lift.order.generation = generation;
            self.lifts.insert(uid.clone(), lift);
        }
        self.queue.rename(&local, &uid);
        if self.tried_out.remove(&local) {
            self.tried_out.insert(uid.clone());
        }
        if let Some((running, _)) = &mut self.running
            && running.uid == local
        {
            running.uid = uid;
        }
    }

    /// Whether a report is about a request that the API server holds.
    pub(super) fn recorded(uid: &str) -> bool {
        !is_local(uid)
    }
}
