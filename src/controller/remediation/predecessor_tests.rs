//! A second remediation for a node while the request of the first is on its way out.

use serde_json::json;

use super::super::judge::{Stand, judge};
use super::super::tests::{NOW, deleted, facts, remediation, timed_out};
use super::*;
use crate::api::ConditionStatus;
use crate::api::remediation::reason;
use crate::api::request::reason as said;
use crate::controller::fixtures::{condition, fenced, request, with};

/// The request of the first, where the agent says this of it.
fn first(status: ConditionStatus, why: &str) -> StorageFenceRequest {
    let mut own = fenced(request(&json!({})), status, why);
    own.labels_mut()
        .insert(REMEDIATION_UID_LABEL.into(), "0123456789".into());
    own
}

fn second_beside(
    first: &StorageFenceRequest,
    remediations: &[StorageFenceRemediation],
) -> (Stand, String) {
    let second = remediation(&json!({ "name": "n1-second", "uid": "second" }));
    let mut facts = facts(Some(request(&json!({}))));
    facts.governed_by = Some(first.clone());
    facts.predecessor = taken_back_by(first, remediations);
    let verdict = judge(&second, &facts, NOW);
    (verdict.stand, verdict.reason)
}

/// A health controller that is told False escalates once more, although nothing speaks against this one.
#[test]
fn the_second_waits_for_a_refused_request_of_the_first_to_go() {
    let refused = first(ConditionStatus::False, said::NOTHING_AFFECTED);
    let started = (Stand::Working, reason::STARTED.to_owned());
    assert_eq!(second_beside(&refused, &[timed_out()]), started);
    assert_eq!(second_beside(&refused, &[deleted(None)]), started);
    // What nobody takes back stays in the way, and that is said at once.
    let other = remediation(
        &json!({ "uid": "other", "annotations": { crate::api::remediation::contract::TIMED_OUT: "x" } }),
    );
    for remediations in [vec![], vec![remediation(&json!({}))], vec![other]] {
        let governed = (Stand::Failed, said::OTHER_REQUEST_GOVERNS.to_owned());
        assert_eq!(second_beside(&refused, &remediations), governed);
    }
    let mut persons = refused;
    persons.metadata.labels = None;
    assert_eq!(second_beside(&persons, &[timed_out()]).0, Stand::Failed);
}

/// It stays: it is what tells of the fence.
#[test]
fn what_the_first_has_fenced_is_an_answer_for_the_second() {
    let proven = first(ConditionStatus::True, said::PROVEN);
    let released = condition("LocksReleased", ConditionStatus::True, said::RELEASED);
    let proven = with(proven, released);
    assert_eq!(taken_back_by(&proven, &[timed_out()]), None);
    let short = first(ConditionStatus::False, said::NOT_PROVEN);
    assert_eq!(second_beside(&short, &[timed_out()]).0, Stand::Failed);
}
