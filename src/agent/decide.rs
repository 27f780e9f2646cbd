//! What is to be done about the requests for this node. Pure: everything that is known goes in, a decision comes out.

use std::collections::{BTreeMap, BTreeSet};

use super::hook;
use crate::api::condition::find;
use crate::api::governing;
use crate::api::record::ended_by_restart;
use crate::api::request::{
    DeletionPolicy, FenceState, ReleaseLocks, VolumeGroupMode, WhenPathsRemain, condition_type,
    reason,
};
use crate::api::{StorageFenceRequest, StorageFenceRequestSpec, UNFENCE_FINALIZER};
use crate::fence::order::{self, Order, Selection};
use crate::fence::report::{FenceReport, Outcome};
use crate::fence::selection::{self, RefusalReason};
use crate::fence::unfence::{UnfenceOrder, UnfenceReport, left_standing};
use crate::fence::{Inventory, Monotonic};

mod returning;

use returning::{abandoned, overtaken, returning, unfence_order};

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

/// What is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// A fence.
    #[default]
    Fence,
    /// An attempt to give the storage back.
    Unfence,
}

/// Something that is going on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// UID of its request.
    pub uid: Uid,
    /// What it is.
    pub work: Work,
}

/// A fence that is in hand: going on, or not proven in time and waiting for its turn to be tried on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hanging {
    /// UID of its request.
    pub uid: Uid,
    /// UUIDs of its volume groups.
    pub groups: BTreeSet<String>,
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
    /// What is going on.
    pub running: Option<&'a Running>,
    /// Earlier fences of this boot.
    pub known: &'a BTreeMap<Uid, Known>,
    /// Attempts of this boot to give the storage back, the last of each request.
    pub lifts: &'a BTreeMap<Uid, UnfenceReport>,
    /// Where the clock stands.
    pub now: Monotonic,
    /// The latest inventory, for requests that wait for the paths to go.
    pub inventory: Option<&'a Inventory>,
    /// Fences that are in hand.
    pub hanging: &'a [Hanging],
    /// Un-fences that were left half-way, and whose requests are gone: each with what is left of it.
    pub abandoned: &'a [UnfenceOrder],
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
    /// What the report of its un-fence says.
    Unfence,
    /// Nothing was fenced for it.
    NothingFenced,
    /// The node was restarted since, which ended its fence.
    Restarted,
    /// It will be looked at as soon as what is going on has ended.
    Next,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Where each request stands, by UID.
    pub stands: BTreeMap<Uid, Stand>,
    /// Begin with this.
    pub begin: Option<Order>,
    /// Or with this: an attempt to give storage back. Never together with a fence.
    pub begin_unfence: Option<UnfenceOrder>,
    /// Call off what is going on: a fence, as far as that is still possible, when its request is gone or wants the contrary; an un-fence when
    /// somebody wants a fence.
    pub call_off: bool,
    /// A fence waits for what is going on, and would not hang on the same: one that hangs is to give way.
    pub waits: bool,
}

/// Decides.
#[must_use]
pub fn decide(view: View<'_>) -> Decision {
    let Some(requests) = view.requests else {
        return Decision::default();
    };
    let mut decision = Decision::default();
    let mut candidates = Vec::new();
    let mut returns = Vec::new();
    for (uid, request) in requests {
        if request.spec.node_name != view.node_name {
            continue;
        }
        let running = view.running.is_some_and(|r| r.uid == *uid);
        let stand = match stand(view, uid, request, requests, running) {
            Some(stand) => stand,
            None if gives_back(request) => {
                returns.push(request);
                if view.lifts.contains_key(uid) {
                    Stand::Unfence
                } else {
                    Stand::Next
                }
            }
            None if !alive(request) => continue,
            None => {
                candidates.push(request);
                Stand::Next
            }
        };
        decision.stands.insert(uid.clone(), stand);
    }
    let age = |r: &StorageFenceRequest| {
        let created = r.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (created, r.metadata.name.clone())
    };
    // One that means nothing but what is in hand would hang on the same.
    candidates.retain(|r| !in_hand(view, &order(r)));
    match view.running {
        None => {
            // A real fence before any dry run; of these the oldest first. Giving back comes last: it can wait, and a fence cannot.
            candidates.sort_by_key(|r| (r.spec.dry_run, age(r)));
            // Of these the one whose last look is longest ago: a look may take longer than the time until the next, and the oldest may wait for days.
            let looked = |r: &StorageFenceRequest| {
                let uid = r.metadata.uid.as_ref()?;
                view.lifts.get(uid).map(|l| l.looked)
            };
            returns.sort_by_key(|r| (looked(r), age(r)));
            let returns = abandoned(view, requests)
                .into_iter()
                .chain(returns.first().map(|r| unfence_order(r)));
            let looked_at = |o: &UnfenceOrder| view.lifts.get(&o.uid).map(|l| l.looked);
            decision.begin = candidates.first().map(|r| order(r));
            if !view.hanging.is_empty() {
                // What hangs comes before what can wait.
                decision.begin = decision.begin.filter(|order| !order.dry_run);
            } else if decision.begin.is_none() {
                decision.begin_unfence = returns.min_by_key(looked_at);
            }
        }
        Some(running) => {
            decision.waits = candidates.iter().any(|r| !r.spec.dry_run);
            let request = requests.get(&running.uid);
            decision.call_off = match running.work {
                Work::Fence => {
                    let wanted = |r: &StorageFenceRequest| {
                        alive(r) && r.spec.fence_state == FenceState::Fenced
                    };
                    !hook::is_ours(&running.uid) && !request.is_some_and(wanted)
                }
                Work::Unfence => {
                    candidates.iter().any(|r| !r.spec.dry_run)
                        || match request {
                            Some(r) => {
                                !gives_back(r)
                                    || governing::kept_fenced_by(r, requests.values()).is_some()
                            }
                            // One whose request is gone for good goes on: half-way is the worst place to stop at, but for one where the node is to
                            // stay fenced.
                            None => governing::governing(view.node_name, requests.values())
                                .is_some_and(|g| g.spec.fence_state == FenceState::Fenced),
                        }
                }
            };
        }
    }
    decision
}

/// Whether fences are at all that an order means.
fn in_hand(view: View<'_>, order: &Order) -> bool {
    let in_hand = |uuid: &String| view.hanging.iter().any(|h| h.groups.contains(uuid));
    let Some(inventory) = view.inventory.filter(|_| !view.hanging.is_empty()) else {
        return false;
    };
    let meant = selection::select(inventory, order);
    meant.is_ok_and(|groups| !groups.is_empty() && groups.iter().all(|g| in_hand(&g.uuid)))
}

/// Whether a request wants the node to have its storage back: by its spec, or by its deletion.
fn gives_back(request: &StorageFenceRequest) -> bool {
    let spec = &request.spec;
    if spec.dry_run {
        return false;
    }
    if alive(request) {
        return spec.fence_state == FenceState::Unfenced;
    }
    let finalizers = request.metadata.finalizers.iter().flatten();
    let held = finalizers.clone().any(|f| f == UNFENCE_FINALIZER);
    held && spec.deletion_policy == DeletionPolicy::Unfence
}

/// Whether anything was fenced for a request in this boot, as far as is known.
fn touched(view: View<'_>, uid: &str, request: &StorageFenceRequest) -> bool {
    if let Some(known) = view.known.get(uid)
        && (left_standing(&known.report.outcome) || known.report.outcome == Outcome::CalledOff)
    {
        return left_standing(&known.report.outcome);
    }
    // A later spec that was refused does not undo what an earlier one had fenced: that is what the status goes on saying.
    let Some(status) = &request.status else {
        return false;
    };
    let this_boot = status
        .node
        .as_ref()
        .is_some_and(|n| n.boot_id == view.boot_id);
    let said = find(&status.conditions, condition_type::FENCED).is_some_and(|c| {
        c.status == crate::api::ConditionStatus::True
            || [
                reason::NOT_PROVEN,
                reason::IN_PROGRESS,
                reason::UNFENCE_WAITING,
                reason::UNFENCING,
            ]
            .contains(&c.reason.as_str())
    });
    this_boot && said
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
    if !running && view.hanging.iter().any(|h| h.uid == uid) {
        // So does one that waits for its turn to be tried on.
        return Some(known.map_or(Stand::Next, |k| Stand::Report(k.report.generation)));
    }
    if running {
        // It goes on with the spec that it began with.
        return match view.running.map(|r| r.work) {
            Some(Work::Unfence) => Some(if view.lifts.contains_key(uid) {
                Stand::Unfence
            } else {
                Stand::Next
            }),
            _ => Some(known.map_or(Stand::Next, |k| Stand::Report(k.report.generation))),
        };
    }
    if gives_back(request) {
        return returning(view, uid, request, requests);
    }
    let generation = request.metadata.generation.unwrap_or_default();
    if let Some(stand) = overtaken(view, uid, request) {
        return Some(stand);
    }
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
    } else if ended_by_restart(request, view.boot_id) {
        return Some(if request.spec.dry_run {
            Stand::Settled
        } else {
            Stand::Restarted
        });
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
        | RefusalReason::LockspaceNotAdopted
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
