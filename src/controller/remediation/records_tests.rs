//! What becomes of the fences that a policy had the node begin, when the health controller deletes the remediation that succeeded by them.

use serde_json::{Value, json};

use super::super::dereference::Facts;
use super::super::plan::{Finalizer, Plan, Request};
use super::super::tests::{deleted, facts, planned, remediation, timed_out};
use super::*;
use crate::api::remediation::{StorageFenceRemediationStatus, contract};
use crate::api::request::reason as said;
use crate::api::{Condition, NodeStorageStatus, UNFENCE_FINALIZER};
use crate::controller::fixtures::{condition, fenced, request, with};

const TRUE: ConditionStatus = ConditionStatus::True;
const FALSE: ConditionStatus = ConditionStatus::False;

/// A record whose fence of `san` stands; `spec` on top.
pub(super) fn record(name: &str, spec: &Value) -> StorageFenceRequest {
    let mut record = fenced(request(spec), TRUE, said::PROVEN);
    record = with(record, condition("LocksReleased", TRUE, said::RELEASED));
    record.metadata.name = Some(name.into());
    record.metadata.uid = Some(format!("uid of {name}"));
    record.metadata.resource_version = Some("7".into());
    record.metadata.labels =
        Some([(annotation::RECORDED_BY.into(), annotation::AGENT.into())].into());
    let status = record.status.as_mut().unwrap();
    status.message = Some(format!("{name} stands"));
    status.node = serde_json::from_value(json!({
        "observedGeneration": 2, "bootId": "boot-1", "agentVersion": "1",
        "volumeGroups": [{ "name": "san", "uuid": "san", "pathsTotal": 2, "pathsActive": 0, "devicesTotal": 2, "devicesProven": 2 }],
    }))
    .unwrap();
    record
}

pub(super) fn auto(spec: &Value) -> StorageFenceRequest {
    record("auto-n1-1", spec)
}

/// Of a remediation whose success rests on this record alone: what is planned, and what is planned once it was deleted.
pub(super) fn succeeded(record: &StorageFenceRequest) -> StorageFenceRemediation {
    let mut asks = remediation(&json!({}));
    let mut facts = facts(Some(request(&json!({}))));
    facts.governed_by = Some(record.clone());
    facts.storage = Some(NodeStorageStatus::default());
    facts.records = rests_on(
        &asks,
        facts.governed_by.as_ref(),
        std::slice::from_ref(record),
    );
    asks.status = planned(&asks, &facts).status;
    asks
}

pub(super) fn goes(mut remediation: StorageFenceRemediation) -> StorageFenceRemediation {
    remediation.metadata.deletion_timestamp = deleted(None).metadata.deletion_timestamp;
    remediation.metadata.finalizers = deleted(None).metadata.finalizers;
    remediation
}

/// What is known once it was deleted, and its own request is gone.
pub(super) fn afterwards(
    remediation: &StorageFenceRemediation,
    record: &StorageFenceRequest,
) -> Facts {
    let mut facts = facts(None);
    facts.records = noted(remediation, std::slice::from_ref(record));
    facts
}

pub(super) fn given_back(plan: &Plan) -> Vec<&str> {
    plan.give_back.iter().map(|g| g.uid.as_str()).collect()
}

fn returning(
    mut record: StorageFenceRequest,
    status: ConditionStatus,
    why: &str,
) -> StorageFenceRequest {
    record.spec.fence_state = FenceState::Unfenced;
    fenced(record, status, why)
}

fn processing(plan: &Plan) -> Condition {
    let conditions = &plan.status.as_ref().unwrap().conditions;
    find(conditions, "Processing").unwrap().clone()
}

#[test]
fn a_success_names_the_records_that_it_rests_on() {
    let done = succeeded(&auto(&json!({})));
    let status = done.status.clone().unwrap();
    assert_eq!(find(&status.conditions, "Succeeded").unwrap().status, TRUE);
    assert_eq!(status.records, references(&[auto(&json!({}))]));
    assert_eq!(status.node_boot_id.as_deref(), Some("boot-1"));
    // It stays said what it rested on, whatever is said later.
    let mut facts = facts(Some(request(&json!({}))));
    facts.governed_by = Some(fenced(auto(&json!({})), FALSE, said::NOT_PROVEN));
    let later = planned(&done, &facts).status.unwrap();
    assert_eq!(find(&later.conditions, "Succeeded").unwrap().status, FALSE);
    assert_eq!(later.records, status.records);
    // Before that, it rests on nothing.
    let working = planned(&remediation(&json!({})), &super::super::tests::facts(None));
    assert_eq!(working.status.unwrap().records, []);
}

#[test]
fn only_records_that_stand_for_what_is_meant_count() {
    let asks = remediation(&json!({}));
    let mut named = remediation(&json!({}));
    named.spec =
        serde_json::from_value(json!({ "volumeGroups": { "mode": "Named", "names": ["other"] } }))
            .unwrap();
    let mut going = auto(&json!({}));
    going.metadata.deletion_timestamp = deleted(None).metadata.deletion_timestamp;
    let mut a_persons = auto(&json!({}));
    a_persons.metadata.labels = None;
    for (what, remediation, governed_by, record, counts) in vec![
        (
            "it governs",
            &asks,
            Some(auto(&json!({}))),
            auto(&json!({})),
            true,
        ),
        (
            "our own request governs, and both stand",
            &asks,
            None,
            auto(&json!({})),
            true,
        ),
        (
            "a person's request governs",
            &asks,
            Some(a_persons.clone()),
            auto(&json!({})),
            false,
        ),
        ("it is a person's", &asks, None, a_persons, false),
        (
            "of another volume group",
            &named,
            None,
            auto(&json!({})),
            false,
        ),
        (
            "it is being given back",
            &asks,
            None,
            auto(&json!({ "fenceState": "Unfenced" })),
            false,
        ),
        (
            "a dry run",
            &asks,
            None,
            auto(&json!({ "dryRun": true })),
            false,
        ),
        (
            "not proven",
            &asks,
            None,
            fenced(auto(&json!({})), FALSE, said::NOT_PROVEN),
            false,
        ),
        ("it is being deleted", &asks, None, going, false),
    ] {
        let rests = rests_on(remediation, governed_by.as_ref(), &[record]);
        assert_eq!(rests.len(), usize::from(counts), "{what}");
    }
}

#[test]
fn deletion_gives_back_what_the_success_rested_on() {
    let record = auto(&json!({}));
    let gone = goes(succeeded(&record));
    let mut facts = afterwards(&gone, &record);
    facts.request = Some(request(&json!({})));
    let plan = planned(&gone, &facts);
    // Both at once: each would keep the node fenced for the other.
    assert!(matches!(&plan.request, Request::Delete { uid, .. } if uid == "request-uid"));
    let back = &plan.give_back[0];
    assert_eq!(
        (back.name.as_str(), back.uid.as_str()),
        ("auto-n1-1", "uid of auto-n1-1")
    );
    assert_eq!((back.version.as_str(), back.after_seconds), ("7", 30));
    assert_eq!(back.whom, "ns/n1 0123456789");
    assert_eq!(plan.finalizer, Finalizer::Keep);
    assert!(plan.look_again.is_some(), "somebody may have been faster");

    let waits = returning(record.clone(), TRUE, said::UNFENCE_WAITING);
    let mut facts = afterwards(&gone, &waits);
    facts.records[0].status.as_mut().unwrap().message =
        Some("process 7 (qemu) holds san-lv0 open".into());
    let plan = planned(&gone, &facts);
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Keep)
    );
    let says = processing(&plan);
    assert_eq!(
        (says.status, says.reason.as_str()),
        (TRUE, said::UNFENCE_WAITING)
    );
    assert!(
        says.message
            .ends_with("Request auto-n1-1: process 7 (qemu) holds san-lv0 open"),
        "{says:?}"
    );

    let back = returning(record, FALSE, said::UNFENCED);
    let plan = planned(&gone, &afterwards(&gone, &back));
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Free)
    );
    assert!(plan.status.is_none());
}

/// Neither gets its storage back sooner than it asks for.
#[test]
fn the_longer_of_both_waits_counts() {
    let record = auto(&json!({ "unfenceAfterSeconds": 50 }));
    for (ours, wanted) in [(0, 50), (60, 60)] {
        let mut gone = goes(succeeded(&record));
        gone.spec.unfence_after_seconds = ours;
        let plan = planned(&gone, &afterwards(&gone, &record));
        assert_eq!(plan.give_back[0].after_seconds, wanted);
    }
}

#[test]
fn what_never_rested_on_a_record_gives_none_back() {
    let record = auto(&json!({}));
    let mut never = goes(remediation(&json!({})));
    never.status = Some(StorageFenceRemediationStatus::default());
    let plan = planned(&never, &afterwards(&never, &record));
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Free)
    );
    // NHC has turned to another remediator: that the node is healthy is not ours.
    let mut escalated = goes(succeeded(&record));
    escalated.metadata.annotations = timed_out().metadata.annotations;
    assert!(escalated.annotations().contains_key(contract::TIMED_OUT));
    let plan = planned(&escalated, &afterwards(&escalated, &record));
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Free)
    );
}

#[test]
fn what_is_to_stay_fenced_stays_and_holds_nobody_up() {
    let policy_keeps = auto(&json!({ "releaseLocks": "Never" }));
    let somebody_keeps = auto(&json!({ "deletionPolicy": "Retain" }));
    let mut again = auto(&json!({}));
    again
        .annotations_mut()
        .insert(annotation::UNFENCED_FOR.into(), "ns/n1 0123456789".into());
    let mut a_persons = auto(&json!({}));
    a_persons.metadata.labels = None;
    let restarted = fenced(auto(&json!({})), FALSE, said::NODE_RESTARTED);
    for (what, record) in [
        ("releaseLocks: Never", policy_keeps),
        ("deletionPolicy: Retain", somebody_keeps),
        ("somebody wants it fenced again", again),
        ("it is somebody's own", a_persons),
        ("the node was restarted", restarted),
    ] {
        let gone = goes(succeeded(&auto(&json!({}))));
        let plan = planned(&gone, &afterwards(&gone, &record));
        assert_eq!(
            (given_back(&plan).len(), plan.finalizer),
            (0, Finalizer::Free),
            "{what}"
        );
    }
    // Another remediation of that name had it given back: that was another time.
    let mut earlier = auto(&json!({}));
    earlier
        .annotations_mut()
        .insert(annotation::UNFENCED_FOR.into(), "ns/n1 9".into());
    let gone = goes(succeeded(&earlier));
    assert_eq!(
        given_back(&planned(&gone, &afterwards(&gone, &earlier))).len(),
        1
    );
}

#[test]
fn a_record_that_somebody_deleted_is_waited_for() {
    let mut record = auto(&json!({}));
    let gone = goes(succeeded(&record));
    record.metadata.deletion_timestamp = gone.metadata.deletion_timestamp.clone();
    let foreign = "example.com/audit".to_owned();
    record.metadata.finalizers = Some(vec![UNFENCE_FINALIZER.to_owned(), foreign.clone()]);
    let plan = planned(&gone, &afterwards(&gone, &record));
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Keep)
    );
    // Ours is off: whoever holds it now, the agent gives nothing back for it.
    record.metadata.finalizers = Some(vec![foreign]);
    let plan = planned(&gone, &afterwards(&gone, &record));
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Free)
    );
    let another = auto(&json!({}));
    let mut facts = afterwards(&gone, &another);
    facts.records.clear();
    assert_eq!(
        planned(&gone, &facts).finalizer,
        Finalizer::Free,
        "it is gone"
    );
}

#[test]
fn a_lost_node_or_boot_ends_the_wait_for_records_too() {
    let record = auto(&json!({}));
    let gone = goes(succeeded(&record));
    let (mut lost, mut rebooted) = (afterwards(&gone, &record), afterwards(&gone, &record));
    lost.node_exists = false;
    rebooted.node_boot_id = Some("boot-2".into());
    for facts in [lost, rebooted] {
        let plan = planned(&gone, &facts);
        assert_eq!(
            (given_back(&plan).len(), plan.finalizer),
            (0, Finalizer::Free)
        );
    }
}

/// The own request or a record of a deleted remediation as the agent has to see it: deleted, and kept by our finalizer.
fn going(mut request: StorageFenceRequest) -> StorageFenceRequest {
    request.metadata.deletion_timestamp = deleted(None).metadata.deletion_timestamp;
    request.metadata.finalizers = Some(vec![UNFENCE_FINALIZER.into()]);
    request
}

/// What is known of a remediation that succeeded by `noted` records, once its own request was deleted; `others` are the node's too.
fn beside(
    noted: &[StorageFenceRequest],
    others: &[StorageFenceRequest],
) -> (StorageFenceRemediation, Facts) {
    let mut gone = goes(remediation(&json!({})));
    let mut status = StorageFenceRemediationStatus {
        node_boot_id: Some("boot-1".into()),
        ..StorageFenceRemediationStatus::default()
    };
    status.records = references(noted);
    gone.status = Some(status);
    let own = going(request(&json!({})));
    let mut facts = facts(Some(own.clone()));
    facts.requests = [&[own], noted, others].concat();
    facts.records = super::noted(&gone, &facts.requests);
    (gone, facts)
}

/// The agent gives nothing back while any other request wants the node fenced: waiting for it would last for as long.
#[test]
fn what_another_request_holds_back_is_not_waited_for() {
    let back = || returning(auto(&json!({})), TRUE, said::UNFENCE_WAITING);
    let never = record("auto-n1-2", &json!({ "releaseLocks": "Never" }));
    let retain = record("auto-n1-2", &json!({ "deletionPolicy": "Retain" }));
    let mut again = record("auto-n1-2", &json!({}));
    again
        .annotations_mut()
        .insert(annotation::UNFENCED_FOR.into(), "ns/n1 0123456789".into());
    let mut a_persons = record("mine", &json!({}));
    a_persons.metadata.labels = None;
    a_persons.metadata.creation_timestamp = None;
    let other = || record("auto-n1-2", &json!({}));
    for (what, noted, others) in [
        ("Never beside AfterProof", vec![back(), never], vec![]),
        ("Retain", vec![back(), retain], vec![]),
        ("set back to Fenced", vec![back(), again], vec![]),
        (
            "of a volume group that is not meant, or of a later outage",
            vec![back()],
            vec![other()],
        ),
        ("it holds back the own request alone", vec![], vec![other()]),
        ("a person's younger request", vec![back()], vec![a_persons]),
    ] {
        let (gone, facts) = beside(&noted, &others);
        let plan = planned(&gone, &facts);
        assert_eq!(
            (given_back(&plan).len(), plan.finalizer),
            (0, Finalizer::Free),
            "{what}"
        );
        let holder = facts.requests.last().unwrap().name_any();
        let notice = plan.notice.unwrap();
        assert!(
            notice.note.contains(&format!("request {holder} keeps")),
            "{what}: {notice:?}"
        );
    }
    // NHC has turned to another remediator: the record stays fenced, and keeps the own request.
    let (mut gone, facts) = beside(&[auto(&json!({}))], &[]);
    gone.metadata.annotations = timed_out().metadata.annotations;
    let plan = planned(&gone, &facts);
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Free)
    );
}

#[test]
fn what_nobody_else_holds_back_is_waited_for() {
    let back = || returning(auto(&json!({})), TRUE, said::UNFENCE_WAITING);
    let second = |spec: &Value| record("auto-n1-2", spec);
    let ended = fenced(second(&json!({})), FALSE, said::NODE_RESTARTED);
    for (what, noted, others) in [
        ("nobody else", vec![back()], vec![]),
        ("it is over", vec![back()], vec![ended]),
        (
            "a dry run",
            vec![back()],
            vec![second(&json!({ "dryRun": true }))],
        ),
        ("it is going", vec![back()], vec![going(second(&json!({})))]),
        (
            "it wants the same",
            vec![back()],
            vec![second(&json!({ "fenceState": "Unfenced" }))],
        ),
        (
            "it is given back now: its spec is not written yet",
            vec![back(), second(&json!({}))],
            vec![],
        ),
    ] {
        let (gone, facts) = beside(&noted, &others);
        let plan = planned(&gone, &facts);
        assert_eq!(plan.finalizer, Finalizer::Keep, "{what}");
        assert!(plan.notice.is_none(), "{what}");
    }
}

/// Later nobody would: what another request holds back is still to be asked for.
#[test]
fn it_does_not_go_before_everything_was_asked_for() {
    let never = || record("auto-n1-2", &json!({ "releaseLocks": "Never" }));
    let (gone, facts) = beside(&[auto(&json!({})), never()], &[]);
    let plan = planned(&gone, &facts);
    assert_eq!(
        (given_back(&plan), plan.finalizer),
        (vec!["uid of auto-n1-1"], Finalizer::Keep)
    );
    let (gone, mut facts) = beside(&[], &[never()]);
    facts.request = Some(request(&json!({})));
    let plan = planned(&gone, &facts);
    assert!(matches!(plan.request, Request::Delete { .. }));
    assert_eq!(plan.finalizer, Finalizer::Keep);
}

/// Its fenceState was Unfenced already when the remediation was deleted: no annotation tells that it was given back once.
#[test]
fn a_record_that_a_person_sets_back_to_fenced_is_not_given_back_again() {
    let back = returning(auto(&json!({})), TRUE, said::UNFENCE_WAITING);
    let (mut gone, facts) = beside(std::slice::from_ref(&back), &[]);
    let plan = planned(&gone, &facts);
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Keep)
    );
    gone.status = plan.status;
    assert!(gone.status.as_ref().unwrap().records[0].returning);
    assert!(planned(&gone, &facts).status.is_none(), "said once");
    let mut facts = afterwards(&gone, &auto(&json!({})));
    facts.requests = facts.records.clone();
    let plan = planned(&gone, &facts);
    assert_eq!(
        (given_back(&plan).len(), plan.finalizer),
        (0, Finalizer::Free)
    );
    // Fenced all the time: nobody has said anything else.
    gone.status.as_mut().unwrap().records[0].returning = false;
    let plan = planned(&gone, &facts);
    assert_eq!(given_back(&plan).len(), 1);
}
