//! Which of several requests for one node is the one that counts.
//!
//! The agent acts without asking the controller, so both must come to the same answer by themselves: this is the one place that
//! says it.

use super::condition::find;
use super::request::{FenceState, condition_type, reason};
use super::{ConditionStatus, StorageFenceRequest};

/// Whether a request takes part in the question at all. One that is being deleted no longer wants anything; a dry run touches nothing,
/// so it neither keeps a real fence waiting nor has to wait for one; and one that nothing will become of any more, as long as its spec is what it
/// is, keeps no other waiting either.
#[must_use]
pub fn competes(request: &StorageFenceRequest) -> bool {
    request.metadata.deletion_timestamp.is_none() && !request.spec.dry_run && !is_over(request)
}

/// Whether the agent has said that nothing was fenced for this spec, or that nothing of it stands any more, and that it will not look again.
fn is_over(request: &StorageFenceRequest) -> bool {
    let status = request.status.as_ref();
    let fenced = status.and_then(|s| find(&s.conditions, condition_type::FENCED));
    fenced.is_some_and(|fenced| {
        fenced.status == ConditionStatus::False
            && fenced.observed_generation.is_some()
            && fenced.observed_generation == request.metadata.generation
            && (is_late(request, &fenced.reason)
                || [
                    reason::VOLUME_GROUP_UNKNOWN,
                    reason::VOLUME_GROUP_NOT_SHARED,
                    reason::NOT_SUPPORTED,
                    reason::CALLED_OFF,
                    reason::NODE_RESTARTED,
                ]
                .contains(&fenced.reason.as_str()))
    })
}

/// Whether `said` is what the agent says of a record whose fence was given back before the record was there: it wants the node fenced by its spec, and
/// is no order to. What was given back since the spec asked for that says so of another generation once the spec asks for a fence again.
fn is_late(request: &StorageFenceRequest, said: &str) -> bool {
    request.spec.fence_state == FenceState::Fenced && said == reason::UNFENCED
}

/// The request that governs a node: one that wants it fenced before one that does not, of these the oldest by creation, then the first by name.
/// None when no request competes for the node.
///
/// The oldest and not the newest, so that a second request cannot redirect a fence that is under way. One that wants the node un-fenced may stay
/// for as long as it likes, so it must not keep a later outage from being answered.
#[must_use]
pub fn governing<'a>(
    node_name: &str,
    requests: impl IntoIterator<Item = &'a StorageFenceRequest>,
) -> Option<&'a StorageFenceRequest> {
    requests
        .into_iter()
        .filter(|request| request.spec.node_name == node_name && competes(request))
        .min_by(|a, b| rank(a).cmp(&rank(b)))
}

/// The other request that keeps this one from being acted upon, if there is one. Who wants the storage back waits only for who wants it fenced: what
/// was fenced for the one may be something else than what was for the other.
#[must_use]
pub fn outranked_by<'a>(
    request: &StorageFenceRequest,
    requests: impl IntoIterator<Item = &'a StorageFenceRequest>,
) -> Option<&'a StorageFenceRequest> {
    if !competes(request) {
        return None;
    }
    governing(&request.spec.node_name, requests)
        .filter(|other| other.spec.fence_state == FenceState::Fenced && rank(other) < rank(request))
}

/// Another request that wants the node of this one fenced: until it is gone, or wants the contrary, the node is not given its storage back.
#[must_use]
pub fn kept_fenced_by<'a>(
    request: &StorageFenceRequest,
    requests: impl IntoIterator<Item = &'a StorageFenceRequest>,
) -> Option<&'a StorageFenceRequest> {
    governing(&request.spec.node_name, requests).filter(|other| {
        other.spec.fence_state == FenceState::Fenced && other.metadata.uid != request.metadata.uid
    })
}

/// Creation times have whole seconds: the name decides among requests of the same second. An object that the API server has not
/// stored yet is younger than all that it has.
fn rank(request: &StorageFenceRequest) -> (bool, bool, Option<jiff::Timestamp>, Option<&str>) {
    let created = request.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let name = request.metadata.name.as_deref();
    let unfenced = request.spec.fence_state == FenceState::Unfenced;
    (unfenced, created.is_none(), created, name)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn request(name: &str, node: &str, created: i64) -> StorageFenceRequest {
        let spec = serde_json::from_value(serde_json::json!({ "nodeName": node })).unwrap();
        let mut request = StorageFenceRequest::new(name, spec);
        request.metadata.creation_timestamp =
            Some(Time(jiff::Timestamp::from_second(created).unwrap()));
        request
    }

    fn name_of(request: Option<&StorageFenceRequest>) -> Option<&str> {
        request.and_then(|r| r.metadata.name.as_deref())
    }

    #[test]
    fn the_oldest_governs_then_the_first_name() {
        let all = [
            request("c", "n1", 20),
            request("b", "n1", 10),
            request("a", "n1", 10),
            request("0", "n2", 1),
        ];
        assert_eq!(name_of(governing("n1", &all)), Some("a"));
        assert_eq!(name_of(governing("n2", &all)), Some("0"));
        assert_eq!(name_of(governing("n3", &all)), None);
        assert_eq!(name_of(outranked_by(&all[0], &all)), Some("a"));
        assert_eq!(name_of(outranked_by(&all[1], &all)), Some("a"));
        assert_eq!(name_of(outranked_by(&all[2], &all)), None);
        assert_eq!(name_of(outranked_by(&all[3], &all)), None);
    }

    #[test]
    fn the_order_in_which_they_are_listed_does_not_matter() {
        let mut all = vec![
            request("a", "n1", 10),
            request("b", "n1", 10),
            request("c", "n1", 5),
        ];
        for _ in 0..all.len() {
            all.rotate_left(1);
            assert_eq!(name_of(governing("n1", &all)), Some("c"));
        }
    }

    #[test]
    fn one_that_wants_the_node_unfenced_keeps_no_fence_waiting() {
        let mut all = [request("a", "n1", 1), request("b", "n1", 2)];
        for (r, uid) in all.iter_mut().zip(["ua", "ub"]) {
            r.metadata.uid = Some(uid.into());
        }
        assert_eq!(name_of(kept_fenced_by(&all[1], &all)), Some("a"));
        assert_eq!(name_of(kept_fenced_by(&all[0], &all)), None);
        all[0].spec.fence_state = FenceState::Unfenced;
        assert_eq!(name_of(governing("n1", &all)), Some("b"));
        assert_eq!(name_of(outranked_by(&all[1], &all)), None);
        assert_eq!(name_of(kept_fenced_by(&all[0], &all)), Some("b"));
        assert_eq!(name_of(outranked_by(&all[0], &all)), Some("b"));
        all[1].spec.fence_state = FenceState::Unfenced;
        assert_eq!(name_of(kept_fenced_by(&all[0], &all)), None);
        assert_eq!(name_of(outranked_by(&all[1], &all)), None);
        // Deleting one says nothing about the other.
        all[1].spec.fence_state = FenceState::Fenced;
        all[1].metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(name_of(kept_fenced_by(&all[0], &all)), None);
    }

    #[test]
    fn one_being_deleted_steps_aside() {
        let mut all = [request("a", "n1", 1), request("b", "n1", 2)];
        all[0].metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(name_of(governing("n1", &all)), Some("b"));
        assert_eq!(name_of(outranked_by(&all[1], &all)), None);
    }

    #[test]
    fn a_dry_run_neither_blocks_nor_waits() {
        let mut all = [
            request("a", "n1", 1),
            request("b", "n1", 2),
            request("c", "n1", 3),
        ];
        all[0].spec.dry_run = true;
        all[2].spec.dry_run = true;
        assert_eq!(name_of(governing("n1", &all)), Some("b"));
        assert_eq!(name_of(outranked_by(&all[2], &all)), None);
        assert_eq!(name_of(outranked_by(&all[0], &all)), None);
    }

    #[test]
    fn one_that_nothing_will_become_of_keeps_no_other_waiting() {
        let mut all = [request("a", "n1", 1), request("b", "n1", 2)];
        for (r, uid) in all.iter_mut().zip(["ua", "ub"]) {
            r.metadata.uid = Some(uid.into());
            r.metadata.generation = Some(1);
        }
        let said = |reason: &str, generation: i64| {
            serde_json::from_value(serde_json::json!({ "conditions": [{
                "type": "Fenced", "status": "False", "reason": reason, "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]}))
            .unwrap()
        };
        for (reason, generation, governs) in [
            ("VolumeGroupUnknown", 1, "b"),
            ("CalledOff", 1, "b"),
            ("NodeRestarted", 1, "b"),
            // A record that was late.
            ("Unfenced", 1, "b"),
            // It was given back, and is wanted fenced again.
            ("Unfenced", 0, "a"),
            // The spec was edited since: it deserves another look.
            ("VolumeGroupUnknown", 0, "a"),
            // It may still act by itself, or has left something.
            ("PathsRemain", 1, "a"),
            ("NotProven", 1, "a"),
        ] {
            all[0].status = Some(said(reason, generation));
            assert_eq!(name_of(governing("n1", &all)), Some(governs), "{reason}");
            let kept = name_of(kept_fenced_by(&all[1], &all));
            assert_eq!(kept, (governs == "a").then_some("a"), "{reason}");
        }
    }

    /// What the agent said of one spec says nothing about the next.
    #[test]
    fn one_that_is_wanted_fenced_again_is_not_over() {
        let mut all = [request("a", "n1", 1), request("b", "n1", 2)];
        let said = |status: &str, reason: &str, generation: i64| {
            serde_json::from_value(serde_json::json!({ "conditions": [{
                "type": "Fenced", "status": status, "reason": reason, "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]}))
            .unwrap()
        };
        let (fenced, unfenced) = (FenceState::Fenced, FenceState::Unfenced);
        for (generation, state, status, governs) in [
            (1, fenced, ("True", "Proven", 1), "a"),
            (2, unfenced, ("True", "Proven", 1), "b"),
            (2, unfenced, ("False", "Unfenced", 2), "b"),
            (3, fenced, ("False", "Unfenced", 2), "a"),
            (3, fenced, ("Unknown", "InProgress", 3), "a"),
            (3, fenced, ("True", "Proven", 3), "a"),
            // Not even one that stands, whatever else is said.
            (3, fenced, ("True", "Unfenced", 3), "a"),
        ] {
            all[0].metadata.generation = Some(generation);
            all[0].spec.fence_state = state;
            all[0].status = Some(said(status.0, status.1, status.2));
            let says = format!("{generation} {status:?}");
            assert_eq!(name_of(governing("n1", &all)), Some(governs), "{says}");
        }
        // One that has its storage back counts as before among those that want none fenced.
        all[0].spec.fence_state = unfenced;
        all[0].status = Some(said("False", "Unfenced", 3));
        assert!(competes(&all[0]));
    }

    #[test]
    fn one_that_is_not_stored_yet_is_the_youngest() {
        let mut all = [request("a", "n1", 1), request("b", "n1", 2)];
        all[0].metadata.creation_timestamp = None;
        assert_eq!(name_of(governing("n1", &all)), Some("b"));
    }
}
