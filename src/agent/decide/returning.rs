//! Whose turn it is to be given the storage back.

use std::collections::BTreeMap;

use super::{Stand, Uid, View, alive, order, touched};
use crate::api::condition::find;
use crate::api::request::{FenceState, condition_type, reason};
use crate::api::{StorageFenceRequest, governing};
use crate::fence::order::Order;
use crate::fence::unfence::{UnfenceOrder, UnfenceOutcome, UnfenceReport};

/// Un-fences that nobody asks for any more, and that go on since half-way is the worst place to stop at: those whose turn it is. Not while somebody
/// wants the node fenced.
pub(super) fn abandoned(
    view: View<'_>,
    requests: &BTreeMap<Uid, StorageFenceRequest>,
) -> Vec<UnfenceOrder> {
    let governing = governing::governing(view.node_name, requests.values());
    if governing.is_some_and(|r| r.spec.fence_state == FenceState::Fenced) {
        return Vec::new();
    }
    let due = |order: &&UnfenceOrder| {
        let again = view.lifts.get(&order.uid).and_then(UnfenceReport::again_at);
        again.is_none_or(|at| at <= view.now)
    };
    view.abandoned.iter().filter(due).cloned().collect()
}

/// Where a request stands that wants the storage given back; None when it is its turn to be tried.
pub(super) fn returning(
    view: View<'_>,
    uid: &str,
    request: &StorageFenceRequest,
    requests: &BTreeMap<Uid, StorageFenceRequest>,
) -> Option<Stand> {
    let lift = view.lifts.get(uid);
    let generation = request.metadata.generation.unwrap_or_default();
    // What was given back was given back, whatever another has fenced since: it waits for nobody, and does not begin once more when that one goes.
    match lift {
        Some(l) if l.outcome == UnfenceOutcome::Done && l.order.generation == generation => {
            return Some(Stand::Unfence);
        }
        None if returned_in_status(view.boot_id, generation, request) => {
            return Some(Stand::Settled);
        }
        _ => {}
    }
    // Deleted: what counts is what was fenced for it, and was not given back before. A fence of its own since then has ended what is known of that.
    let owes = match lift {
        Some(l) if l.outcome == UnfenceOutcome::Done => false,
        Some(l) if l.started.is_some() => true,
        _ => touched(view, uid, request),
    };
    if !alive(request) && !owes {
        return Some(Stand::NothingFenced);
    }
    if let Some(other) = governing::kept_fenced_by(request, requests.values()) {
        return Some(Stand::Governed(
            other.metadata.name.clone().unwrap_or_default(),
        ));
    }
    lift.and_then(UnfenceReport::again_at)
        .is_some_and(|at| at > view.now)
        .then_some(Stand::Unfence)
}

/// Whether the status tells that the storage was given back, in this boot and for this generation.
fn returned_in_status(boot_id: &str, generation: i64, request: &StorageFenceRequest) -> bool {
    let Some(status) = &request.status else {
        return false;
    };
    let of_this_boot = status.node.as_ref().is_some_and(|n| n.boot_id == boot_id);
    let said = find(&status.conditions, condition_type::FENCED)
        .is_some_and(|c| c.observed_generation == Some(generation) && c.reason == reason::UNFENCED);
    of_this_boot && said
}

/// Where a record stands whose fence another request's un-fence had lifted before the API server had it: it wants a fence by its spec, which is of
/// before, and is no order to fence what is in use again. An edit of it is one.
pub(super) fn overtaken(view: View<'_>, uid: &str, request: &StorageFenceRequest) -> Option<Stand> {
    let generation = request.metadata.generation.unwrap_or_default();
    let done =
        |l: &UnfenceReport| l.outcome == UnfenceOutcome::Done && l.order.generation == generation;
    if view.lifts.get(uid).is_some_and(done) {
        return Some(Stand::Unfence);
    }
    let said =
        !view.known.contains_key(uid) && returned_in_status(view.boot_id, generation, request);
    said.then_some(Stand::Settled)
}

/// The order that a request gives to give storage back.
pub(super) fn unfence_order(request: &StorageFenceRequest) -> UnfenceOrder {
    let Order {
        name,
        uid,
        generation,
        volume_groups,
        ..
    } = order(request);
    let healthy = u64::try_from(request.spec.unfence_after_seconds).unwrap_or_default();
    UnfenceOrder {
        name,
        uid,
        generation,
        volume_groups,
        healthy_for: std::time::Duration::from_secs(healthy),
    }
}
