//! A remediation that is deleted before the controller has noted what its success rests on.

use serde_json::json;

use super::super::dereference::Facts;
use super::super::judge::Stand;
use super::super::plan::{Finalizer, Plan, Request};
use super::super::tests::{facts, planned, remediation, timed_out};
use super::tests::{auto, given_back, goes, succeeded};
use super::*;
use crate::api::NodeStorageStatus;
use crate::api::request::reason as said;
use crate::controller::fixtures::{condition, fenced, request, with};

const TRUE: ConditionStatus = ConditionStatus::True;

/// Its own request, proven and released.
fn own() -> StorageFenceRequest {
    let own = fenced(request(&json!({})), TRUE, said::PROVEN);
    with(own, condition("LocksReleased", TRUE, said::RELEASED))
}

/// What is known of a node where these stand beside the remediation's own request.
fn known(
    remediation: &StorageFenceRemediation,
    own: &StorageFenceRequest,
    record: &StorageFenceRequest,
) -> Facts {
    let mut known = facts(Some(own.clone()));
    known.storage = Some(NodeStorageStatus::default());
    let all = [own.clone(), record.clone()];
    known.records = noted(remediation, &all);
    if is_news(remediation, Some(own)) {
        known.unnoted = unnoted(remediation, rests_on(remediation, None, &all));
    }
    known.requests = all.to_vec();
    known
}

/// Deleted after it has succeeded by its own request, and before anybody had noted a record.
fn deleted_at_once() -> StorageFenceRemediation {
    let mut done = remediation(&json!({}));
    done.status = planned(&done, &facts(Some(own()))).status;
    let noted = &done.status.as_ref().unwrap().records;
    assert_eq!(noted.len(), 0);
    goes(done)
}

fn does_nothing_else(plan: &Plan) {
    assert!(matches!(plan.request, Request::Keep), "{plan:?}");
    assert_eq!(
        (given_back(plan).len(), plan.finalizer),
        (0, Finalizer::Keep)
    );
}

#[test]
fn what_stood_at_its_deletion_is_given_back_although_nobody_had_noted_it() {
    let record = auto(&json!({}));
    let mut gone = deleted_at_once();
    // First it is written down: once the own request goes, nobody could tell it from what came later.
    let plan = planned(&gone, &known(&gone, &own(), &record));
    does_nothing_else(&plan);
    let status = plan.status.unwrap();
    assert_eq!(status.records, references(std::slice::from_ref(&record)));
    let conditions = |r: &StorageFenceRemediation| r.status.as_ref().unwrap().conditions.clone();
    assert_eq!(status.conditions, conditions(&gone));
    gone.status = Some(status);
    // Then both go at once.
    let plan = planned(&gone, &known(&gone, &own(), &record));
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
    assert_eq!(given_back(&plan), ["uid of auto-n1-1"]);
}

/// The controller did not even come to say that it has succeeded.
#[test]
fn what_is_a_success_when_it_is_deleted_counts_as_one() {
    let record = auto(&json!({}));
    let mut gone = deleted_at_once();
    gone.status.as_mut().unwrap().conditions.clear();
    let plan = planned(&gone, &known(&gone, &own(), &record));
    assert_eq!(
        plan.status.unwrap().records,
        references(std::slice::from_ref(&record))
    );
    // It never was one.
    let nothing = fenced(
        request(&json!({})),
        ConditionStatus::False,
        said::PATHS_REMAIN,
    );
    let plan = planned(&gone, &known(&gone, &nothing, &record));
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
    assert_eq!((given_back(&plan).len(), plan.status.is_none()), (0, true));
}

/// The own request goes already: what stands since is about another outage, or somebody wants it.
#[test]
fn what_came_to_stand_after_its_deletion_stays() {
    let record = auto(&json!({}));
    let gone = deleted_at_once();
    let mut going = own();
    going.metadata.deletion_timestamp = gone.metadata.deletion_timestamp.clone();
    let plan = planned(&gone, &known(&gone, &going, &record));
    assert_eq!(given_back(&plan).len(), 0);
    let noted = plan.status.map(|s| s.records).unwrap_or_default();
    assert_eq!(noted.len(), 0);
}

#[test]
fn nothing_is_noted_twice_nor_of_one_that_timed_out() {
    let record = auto(&json!({}));
    // Noted as it should be.
    let gone = goes(succeeded(&record));
    let plan = planned(&gone, &known(&gone, &own(), &record));
    assert_eq!(given_back(&plan).len(), 1);
    // NHC has turned to another remediator.
    let mut late = deleted_at_once();
    late.metadata.annotations = timed_out().metadata.annotations;
    let plan = planned(&late, &known(&late, &own(), &record));
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
    assert_eq!((given_back(&plan).len(), plan.status.is_none()), (0, true));
    // The node is no more.
    let mut facts = known(&deleted_at_once(), &own(), &record);
    facts.node_exists = false;
    let plan = planned(&deleted_at_once(), &facts);
    assert_eq!(plan.finalizer, Finalizer::Free);
    let verdict = super::super::judge::judge(&deleted_at_once(), &facts, super::super::tests::NOW);
    assert_eq!(verdict.stand, Stand::Failed);
}

/// More than there is room for: none pushes another out, and it does not go round for ever.
#[test]
fn as_many_are_noted_as_there_is_room_for() {
    let mut gone = deleted_at_once();
    let records: Vec<StorageFenceRequest> = (0..20)
        .map(|n| super::tests::record(&format!("auto-n1-{n:02}"), &json!({})))
        .collect();
    let mut facts = known(&gone, &own(), &records[0]);
    facts.unnoted = unnoted(&gone, records.clone());
    let status = planned(&gone, &facts).status.unwrap();
    assert_eq!(status.records.len(), MOST);
    gone.status = Some(status);
    facts.unnoted = unnoted(&gone, records);
    let plan = planned(&gone, &facts);
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
}
