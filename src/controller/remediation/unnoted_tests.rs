//! A remediation that is deleted before the controller has noted what its success rests on, and one whose own request a person deleted before.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
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
    look(remediation, &mut known, &all);
    known
}

/// What is made of the node's requests, as it is when they are gathered.
fn look(
    remediation: &StorageFenceRemediation,
    known: &mut Facts,
    requests: &[StorageFenceRequest],
) {
    known.is_news = is_news(remediation);
    known.records = noted(remediation, requests);
    known.unnoted.clear();
    if known.is_news {
        let instead = governs_instead(known.request.as_ref(), "n1", requests);
        known.unnoted = unnoted(
            remediation,
            rests_on(remediation, instead.as_ref(), requests),
        );
    }
    known.requests = requests.to_vec();
}

/// The same remediation once it is written down that it was deleted.
fn taken_up(gone: &StorageFenceRemediation, known: &Facts) -> StorageFenceRemediation {
    let plan = planned(gone, known);
    does_nothing_else(&plan);
    let mut gone = gone.clone();
    gone.status = Some(plan.status.expect("it is written down"));
    gone
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
    let before = deleted_at_once();
    // First it is written down: once the own request goes, nobody could tell it from what came later.
    let gone = taken_up(&before, &known(&before, &own(), &record));
    let status = gone.status.as_ref().unwrap();
    assert_eq!(status.records, references(std::slice::from_ref(&record)));
    let succeeded = |r: &StorageFenceRemediation| {
        let conditions = &r.status.as_ref().unwrap().conditions;
        find(conditions, "Succeeded").unwrap().clone()
    };
    assert_eq!(succeeded(&gone), succeeded(&before));
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
    let gone = taken_up(&gone, &known(&gone, &nothing, &record));
    assert_eq!(gone.status.as_ref().unwrap().records, []);
    let plan = planned(&gone, &known(&gone, &nothing, &record));
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
    assert_eq!((given_back(&plan).len(), plan.status.is_none()), (0, true));
}

/// The own request goes already: what stands since is about another outage, or somebody wants it.
#[test]
fn what_came_to_stand_after_its_deletion_stays() {
    let record = auto(&json!({}));
    let gone = deleted_at_once();
    let mut aside = record.clone();
    aside.spec.fence_state = FenceState::Unfenced;
    let gone = taken_up(&gone, &known(&gone, &own(), &aside));
    // By the next leader, that is, when the first one has got no further.
    let plan = planned(&gone, &known(&gone, &own(), &record));
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
    assert_eq!(given_back(&plan).len(), 0);
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
    let gone = taken_up(&gone, &known(&gone, &own(), &record));
    let records = &gone.status.as_ref().unwrap().records;
    assert_eq!(records, &references(std::slice::from_ref(&record)));
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
    look(&gone, &mut facts, &records);
    let plan = planned(&gone, &facts);
    assert!(matches!(plan.request, Request::Delete { .. }), "{plan:?}");
    assert_eq!(given_back(&plan).len(), MOST);
}

/// A person's deletion of the own request, before the remediation's, takes nothing away from what that gives back.
#[test]
fn what_stood_is_given_back_although_a_person_had_deleted_the_own_request() {
    let record = auto(&json!({}));
    let gone = deleted_at_once();
    let mut waits = own();
    waits.metadata.deletion_timestamp = gone.metadata.deletion_timestamp.clone();
    // The deletion may be a day older, or of the same second; whatever is said of it meanwhile.
    let said = [
        (TRUE, said::PROVEN),
        (TRUE, said::UNFENCE_WAITING),
        (ConditionStatus::Unknown, said::UNFENCING),
    ];
    let going = said.map(|(status, why)| Some(fenced(waits.clone(), status, why)));
    for own in going.into_iter().chain([None]) {
        let case = format!("{:?}", own.as_ref().map(|o| &o.status));
        for has_succeeded in [true, false] {
            let mut gone = gone.clone();
            let unfencing = own.as_ref().is_some_and(|o| {
                let conditions = &o.status.as_ref().unwrap().conditions;
                find(conditions, "Fenced").unwrap().status != TRUE
            });
            if !has_succeeded && (own.is_none() || !unfencing) {
                continue;
            }
            if !has_succeeded {
                // What is said while the request is being un-fenced.
                let mut alive = gone.clone();
                alive.metadata.deletion_timestamp = None;
                gone.status = planned(&alive, &facts(own.clone())).status;
                assert!(!super::super::judge::has_succeeded(&gone), "{case}");
            }
            let all: Vec<_> = own.iter().cloned().chain([record.clone()]).collect();
            let mut known = facts(own.clone());
            known.storage = Some(NodeStorageStatus::default());
            look(&gone, &mut known, &all);
            let gone = taken_up(&gone, &known);
            look(&gone, &mut known, &all);
            let plan = planned(&gone, &known);
            assert_eq!(given_back(&plan), ["uid of auto-n1-1"], "{case}");
            assert!(matches!(plan.request, Request::Keep), "{plan:?}");
            assert_eq!(plan.finalizer, Finalizer::Keep, "{case}");
        }
    }
}

/// The own request had nothing of its own: an older one of a person governed. That it is deleted does not make a record what the success rested on.
#[test]
fn what_a_person_asked_for_keeps_what_it_kept_although_the_own_request_goes() {
    let record = auto(&json!({}));
    let gone = deleted_at_once();
    let mut persons = own();
    persons.metadata.name = Some("mine".into());
    persons.metadata.uid = Some("mine".into());
    let time = |second| {
        let time = Timestamp::from_second(second).unwrap();
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time))
    };
    persons.metadata.creation_timestamp = time(1);
    let mut going = own();
    going.metadata.deletion_timestamp = gone.metadata.deletion_timestamp.clone();
    going.metadata.creation_timestamp = time(2);
    let mut later = record;
    later.metadata.creation_timestamp = time(3);
    for own in [Some(going), None] {
        let all: Vec<_> = own
            .iter()
            .cloned()
            .chain([persons.clone(), later.clone()])
            .collect();
        let mut known = facts(own);
        look(&gone, &mut known, &all);
        assert_eq!(known.unnoted.len(), 0);
    }
    // Younger than the own request, it governed nothing while that was there.
    let mut going = super::super::tests::facts(Some(self::own()));
    let mut own = self::own();
    own.metadata.creation_timestamp = time(1);
    own.metadata.deletion_timestamp = gone.metadata.deletion_timestamp.clone();
    persons.metadata.creation_timestamp = time(2);
    going.request = Some(own.clone());
    look(&gone, &mut going, &[own, persons, later]);
    assert_eq!(going.unnoted.len(), 1);
}

/// Nothing is to be waited for: it goes at once, as before.
#[test]
fn one_that_has_nothing_goes_at_once() {
    let gone = deleted_at_once();
    let mut known = facts(None);
    look(&gone, &mut known, &[]);
    assert!(known.is_news);
    let plan = planned(&gone, &known);
    assert_eq!((plan.finalizer, plan.status), (Finalizer::Free, None));
}

/// A person's request governs; the remediation's own was deleted, and the agent has answered that: it had nothing fenced.
#[test]
fn what_the_agent_says_of_a_deleted_request_does_not_change_who_governed() {
    let mut own = fenced(request(&json!({})), ConditionStatus::False, said::UNFENCED);
    own.metadata.deletion_timestamp = own.metadata.creation_timestamp.clone();
    let mut older = fenced(request(&json!({})), TRUE, said::PROVEN);
    older.metadata.name = Some("a-persons".into());
    older.metadata.uid = Some("uid of a person's".into());
    older.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let requests = [own.clone(), older.clone()];
    let governs = governs_instead(Some(&own), "n1", &requests);
    assert_eq!(governs.and_then(|r| r.uid()), older.uid());
}
