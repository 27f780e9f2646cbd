//! What is to be done about the requests for this node. Pure: everything that is known goes in, a decision comes out.

use std::collections::BTreeMap;

use super::hook;
use crate::api::condition::find;
use crate::api::governing;
use crate::api::request::{
    FenceState, ReleaseLocks, VolumeGroupMode, WhenPathsRemain, condition_type, reason,
};
use crate::api::{StorageFenceRequest, StorageFenceRequestSpec};
use crate::fence::Inventory;
use crate::fence::order::{self, Order, Selection};
use crate::fence::report::{FenceReport, Outcome};
use crate::fence::selection::{self, RefusalReason};

/// UID of a request.
pub type Uid = String;

/// The last fence for a request, as far as this agent or the journal knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it was about.
    pub order: Order,
    /// How it went, or how it goes.
    pub report: FenceReport,
}

/// A fence that is going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// UID of its request.
    pub uid: Uid,
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Name of this node.
    pub node_name: &'a str,
    /// Boot ID of the running kernel.
    pub boot_id: &'a str,
    /// The requests for this node, by UID. None until the API server has listed them: a request that is not seen may still be there.
    pub requests: Option<&'a BTreeMap<Uid, StorageFenceRequest>>,
    /// The fence that is going on.
    pub running: Option<&'a Running>,
    /// Earlier fences of this boot.
    pub known: &'a BTreeMap<Uid, Known>,
    /// The latest inventory, for requests that wait for the paths to go.
    pub inventory: Option<&'a Inventory>,
}

/// Where one request stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// The status says what there is to say already: an earlier agent of this boot wrote it.
    Settled,
    /// What the report says. With the generation that it holds for: one that changed nothing about the order is answered by the same fence.
    Report(i64),
    /// Another request governs the node: its name.
    Governed(String),
    /// The spec asks for what this version cannot do.
    NotSupported,
    /// It will be looked at as soon as the fence that is going on has ended.
    Next,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Where each request stands, by UID.
    pub stands: BTreeMap<Uid, Stand>,
    /// Begin with this.
    pub begin: Option<Order>,
    /// Call the fence that is going on off, as far as that is still possible: its request is gone.
    pub call_off: bool,
}

/// Decides.
#[must_use]
pub fn decide(view: View<'_>) -> Decision {
    let Some(requests) = view.requests else {
        return Decision::default();
    };
    let mut decision = Decision {
        call_off: view
            .running
            .is_some_and(|r| !hook::is_ours(&r.uid) && !requests.get(&r.uid).is_some_and(alive)),
        ..Decision::default()
    };
    let mut candidates = Vec::new();
    for (uid, request) in requests {
        if request.spec.node_name != view.node_name {
            continue;
        }
        let running = view.running.is_some_and(|r| r.uid == *uid);
        let stand = match stand(view, uid, request, requests, running) {
            Some(stand) => stand,
            None if !alive(request) => continue,
            None => {
                candidates.push(request);
                Stand::Next
            }
        };
        decision.stands.insert(uid.clone(), stand);
    }
    if view.running.is_none() {
        // A real fence before any dry run; of these the oldest first.
        candidates.sort_by_key(|r| {
            let created = r.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (r.spec.dry_run, created, r.metadata.name.clone())
        });
        decision.begin = candidates.first().map(|r| order(r));
    }
    decision
}

fn alive(request: &StorageFenceRequest) -> bool {
    request.metadata.deletion_timestamp.is_none()
}

/// Where a request stands; None when it is its turn.
fn stand(
    view: View<'_>,
    uid: &str,
    request: &StorageFenceRequest,
    requests: &BTreeMap<Uid, StorageFenceRequest>,
    running: bool,
) -> Option<Stand> {
    let known = view.known.get(uid);
    if running {
        // It goes on with the spec that it began with.
        return known.map(|k| Stand::Report(k.report.generation));
    }
    if request.spec.fence_state == FenceState::Unfenced {
        return Some(Stand::NotSupported);
    }
    let generation = request.metadata.generation.unwrap_or_default();
    let wanted = order(request);
    if let Some(known) = known {
        // An edit that changes nothing about the order is answered by what was done.
        let same_order = Order {
            generation,
            ..known.order.clone()
        } == wanted;
        if same_order && !worth_another_look(view, &wanted, &known.report) {
            return Some(match governed(request, requests) {
                // Refused and outranked: what it waits for is the other request.
                Some(other) if matches!(known.report.outcome, Outcome::Refused(_)) => {
                    Stand::Governed(other)
                }
                _ => Stand::Report(generation),
            });
        }
    } else if settled_in_status(view.boot_id, generation, request) {
        return Some(Stand::Settled);
    }
    governed(request, requests).map(Stand::Governed)
}

fn governed(
    request: &StorageFenceRequest,
    requests: &BTreeMap<Uid, StorageFenceRequest>,
) -> Option<String> {
    governing::outranked_by(request, requests.values())
        .and_then(|other| other.metadata.name.clone())
}

/// Whether a refusal would not be one, or another one, by now.
fn worth_another_look(view: View<'_>, wanted: &Order, report: &FenceReport) -> bool {
    let Outcome::Refused(refused) = report.outcome else {
        return false;
    };
    if !waits(refused) {
        return false;
    }
    let Some(inventory) = view.inventory.filter(|i| i.taken_at > report.started) else {
        return false;
    };
    match selection::select(inventory, wanted) {
        Ok(_) => true,
        Err(refusal) => refusal.reason != refused || refusal.message != report.message,
    }
}

/// Whether a refusal may end without anybody touching the request: because the paths go, or a daemon comes back. A name that is wrong stays
/// wrong until somebody changes it, and must not begin to mean something by surprise.
#[must_use]
pub const fn waits(reason: RefusalReason) -> bool {
    match reason {
        RefusalReason::PathsRemain
        | RefusalReason::NothingAffected
        | RefusalReason::DeviceMapperUnavailable
        | RefusalReason::LvmlockdUnavailable
        | RefusalReason::SanlockUnavailable => true,
        RefusalReason::VolumeGroupUnknown | RefusalReason::VolumeGroupNotShared => false,
    }
}

/// Whether the status tells of a fence of this boot and generation that has ended. Only what was read back counts: a refusal is looked at anew.
fn settled_in_status(boot_id: &str, generation: i64, request: &StorageFenceRequest) -> bool {
    let Some(status) = &request.status else {
        return false;
    };
    let of_this_boot = status.node.as_ref().is_some_and(|n| {
        n.boot_id == boot_id && n.observed_generation == generation && n.finished_at.is_some()
    });
    let final_word = find(&status.conditions, condition_type::FENCED).is_some_and(|c| {
        c.observed_generation == Some(generation)
            && [
                reason::PROVEN,
                reason::NOT_PROVEN,
                reason::DRY_RUN,
                reason::CALLED_OFF,
            ]
            .contains(&c.reason.as_str())
    });
    of_this_boot && final_word
}

/// The order that a request gives.
#[must_use]
pub fn order(request: &StorageFenceRequest) -> Order {
    let spec: &StorageFenceRequestSpec = &request.spec;
    Order {
        name: request.metadata.name.clone().unwrap_or_default(),
        uid: request.metadata.uid.clone().unwrap_or_default(),
        generation: request.metadata.generation.unwrap_or_default(),
        volume_groups: match spec.volume_groups.mode {
            VolumeGroupMode::Affected => Selection::Affected,
            VolumeGroupMode::AllShared => Selection::AllShared,
            VolumeGroupMode::Named => Selection::Named(spec.volume_groups.names.clone()),
        },
        when_paths_remain: match spec.when_paths_remain {
            WhenPathsRemain::Refuse => order::WhenPathsRemain::Refuse,
            WhenPathsRemain::Fence => order::WhenPathsRemain::Fence,
        },
        release_locks: match spec.release_locks {
            ReleaseLocks::AfterProof => order::ReleaseLocks::AfterProof,
            ReleaseLocks::Never => order::ReleaseLocks::Never,
        },
        drain_timeout: std::time::Duration::from_secs(
            u64::try_from(spec.drain_timeout_seconds).unwrap_or_default(),
        ),
        dry_run: spec.dry_run,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
