use jiff::Timestamp;
use serde_json::{Value, json};

use super::dereference::{Facts, Source, source};
use super::judge::{Stand, judge};
use super::plan::{Finalizer, Plan, Request, plan, request_name};
use crate::api::condition::find;
use crate::api::remediation::{
    FINALIZER, REMEDIATION_UID_LABEL, StorageFenceRemediationStatus, contract, reason,
};
use crate::api::request::reason as said;
use crate::api::{
    ConditionStatus, NodeStorageStatus, StorageFenceRemediation, StorageFenceRequest,
};
use crate::controller::fixtures::{condition, fenced, request, with};

const TRUE: ConditionStatus = ConditionStatus::True;
const FALSE: ConditionStatus = ConditionStatus::False;
const UNKNOWN: ConditionStatus = ConditionStatus::Unknown;

pub const NOW: Timestamp = Timestamp::constant(2000, 0);

pub fn remediation(metadata: &Value) -> StorageFenceRemediation {
    let mut object = json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRemediation",
        "metadata": { "name": "n1", "namespace": "ns", "uid": "0123456789", "generation": 1 }, "spec": {},
    });
    for (key, value) in metadata.as_object().unwrap() {
        object["metadata"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

pub fn facts(request: Option<StorageFenceRequest>) -> Facts {
    Facts {
        node: Ok("n1".into()),
        node_exists: true,
        node_boot_id: None,
        request,
        governed_by: None,
        predecessor: None,
        storage: None,
        policies: Vec::new(),
        name_taken: false,
        records: Vec::new(),
        is_news: false,
        unnoted: Vec::new(),
        requests: Vec::new(),
    }
}

pub fn planned(remediation: &StorageFenceRemediation, facts: &Facts) -> Plan {
    let now = NOW;
    plan(remediation, facts, &judge(remediation, facts, now), now)
}

/// Processing and Succeeded, as a health controller reads them.
fn conditions(plan: &Plan) -> (ConditionStatus, ConditionStatus, String) {
    let conditions = &plan.status.as_ref().unwrap().conditions;
    let succeeded = find(conditions, "Succeeded").unwrap();
    let processing = find(conditions, "Processing").unwrap();
    (
        processing.status,
        succeeded.status,
        succeeded.reason.clone(),
    )
}

pub fn timed_out() -> StorageFenceRemediation {
    remediation(&json!({ "annotations": { contract::TIMED_OUT: "2026-01-01T00:00:00Z" } }))
}

#[test]
fn the_node_is_found_in_the_order_of_the_contract() {
    let name = |name: &str| Source::Name(name.into());
    let machine = json!([
        { "apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Machine", "name": "m1", "uid": "u" },
    ]);
    let nhc = json!([
        { "apiVersion": "remediation.medik8s.io/v1alpha1", "kind": "NodeHealthCheck", "name": "nhc", "uid": "u" },
    ]);
    let annotated = json!({ contract::NODE_NAME: "n7" });
    assert_eq!(source(&remediation(&json!({}))), name("n1"));
    assert_eq!(
        source(&remediation(&json!({ "ownerReferences": nhc }))),
        name("n1")
    );
    assert_eq!(
        source(&remediation(&json!({ "annotations": annotated }))),
        name("n7")
    );
    let both = json!({ "annotations": annotated, "ownerReferences": machine });
    assert_eq!(source(&remediation(&both)), name("n7"));
    let empty = json!({ "annotations": { contract::NODE_NAME: "" }, "ownerReferences": machine });
    assert!(matches!(source(&remediation(&empty)), Source::Machine(owner) if owner.name == "m1"));
    // Versions of NHC that check Machines write the Machine's name there, and a node of that name may be another Machine's.
    let wrong = json!({ contract::NODE_NAME: "m1" });
    let misled = json!({ "name": "m1", "annotations": wrong, "ownerReferences": machine });
    assert!(
        matches!(source(&remediation(&misled)), Source::Machine(owner) if owner.name == "m1" && owner.uid == "u")
    );
    let check = json!([
        { "apiVersion": "machine.openshift.io/v1beta1", "kind": "MachineHealthCheck", "name": "mhc", "uid": "u" },
    ]);
    for annotations in [
        json!({}),
        json!({ contract::NODE_NAME: "" }),
        json!({ contract::NODE_NAME: "m2" }),
    ] {
        let checked = json!({ "name": "m2", "annotations": annotations, "ownerReferences": check });
        assert!(
            matches!(source(&remediation(&checked)), Source::Machine(owner)
                if owner.name == "m2" && owner.api_version == "machine.openshift.io/v1beta1"),
            "{annotations}"
        );
    }
    let newer = json!({ "name": "m2", "annotations": annotated, "ownerReferences": check });
    assert_eq!(source(&remediation(&newer)), name("n7"));
    // One that checks nodes means what it says, whatever the Machine is called.
    let mut owners = nhc.as_array().unwrap().clone();
    owners.extend(machine.as_array().unwrap().clone());
    let called = json!({ "name": "m1-xyz", "annotations": wrong, "ownerReferences": owners });
    assert_eq!(source(&remediation(&called)), name("m1"));
    assert_eq!(
        source(&remediation(&json!({ "ownerReferences": owners }))),
        name("n1")
    );
    // Nobody turns it to another node later.
    let mut found = remediation(&both);
    found.status = Some(StorageFenceRemediationStatus::default());
    found.status.as_mut().unwrap().node_name = Some("n3".into());
    assert_eq!(source(&found), name("n3"));
}

#[test]
fn it_begins_with_finalizer_and_request() {
    let new = remediation(&json!({}));
    let plan = planned(&new, &facts(None));
    assert_eq!(plan.finalizer, Finalizer::Put);
    let Request::Make(made) = &plan.request else {
        panic!("no request: {plan:?}")
    };
    assert_eq!(made.metadata.name.as_deref(), Some("n1-01234567"));
    assert_eq!(made.spec.node_name, "n1");
    let labels = made.metadata.labels.as_ref().unwrap();
    assert_eq!(labels[REMEDIATION_UID_LABEL], "0123456789");
    assert_eq!(conditions(&plan), (TRUE, UNKNOWN, reason::STARTED.into()));
    assert_eq!(plan.notice.unwrap().reason, "RemediationStarted");
}

#[test]
fn a_request_has_the_whole_spec_of_its_remediation() {
    let mut asks = remediation(&json!({}));
    asks.spec = serde_json::from_value(json!({
        "volumeGroups": { "mode": "Named", "names": ["a"] }, "whenPathsRemain": "Fence", "releaseLocks": "Never",
        "takeover": "Expedite", "workloads": "Evict", "drainTimeoutSeconds": 7,
    }))
    .unwrap();
    let plan = planned(&asks, &facts(None));
    let Request::Make(made) = &plan.request else {
        panic!("no request: {plan:?}")
    };
    let (wanted, is) = (json!(asks.spec), json!(made.spec));
    for (field, value) in wanted.as_object().unwrap() {
        assert_eq!(&is[field], value, "{field}");
    }
}

#[test]
fn what_a_request_says_is_what_the_health_controller_reads() {
    let asked = || request(&json!({}));
    let with_locks = |status, why| {
        let proven = fenced(asked(), TRUE, said::PROVEN);
        with(proven, condition("LocksReleased", status, why))
    };
    for (request, processing, succeeded, why) in [
        (asked(), TRUE, UNKNOWN, reason::STARTED),
        (
            fenced(asked(), UNKNOWN, said::IN_PROGRESS),
            TRUE,
            UNKNOWN,
            reason::STARTED,
        ),
        (
            fenced(asked(), TRUE, said::PROVEN),
            TRUE,
            UNKNOWN,
            reason::STARTED,
        ),
        (
            with_locks(UNKNOWN, said::IN_PROGRESS),
            TRUE,
            UNKNOWN,
            reason::STARTED,
        ),
        (
            with_locks(TRUE, said::RELEASED),
            FALSE,
            TRUE,
            reason::FINISHED,
        ),
        (
            with_locks(FALSE, said::LOCKS_KEPT),
            FALSE,
            TRUE,
            reason::FINISHED,
        ),
        // It may be reset: that is no success.
        (
            with_locks(FALSE, said::RELEASE_NOT_CONFIRMED),
            FALSE,
            FALSE,
            reason::LOCKS_HELD,
        ),
        (
            fenced(asked(), FALSE, said::NOT_PROVEN),
            FALSE,
            FALSE,
            reason::NOT_PROVEN,
        ),
        (
            fenced(asked(), FALSE, said::PATHS_REMAIN),
            FALSE,
            FALSE,
            said::PATHS_REMAIN,
        ),
        (
            fenced(asked(), FALSE, said::NOTHING_AFFECTED),
            FALSE,
            FALSE,
            said::NOTHING_AFFECTED,
        ),
        (
            fenced(asked(), FALSE, said::SANLOCK_UNAVAILABLE),
            FALSE,
            FALSE,
            said::SANLOCK_UNAVAILABLE,
        ),
        (
            fenced(asked(), FALSE, said::CALLED_OFF),
            TRUE,
            UNKNOWN,
            reason::CALLED_OFF,
        ),
        (
            with(asked(), condition("AgentReady", FALSE, said::NO_AGENT)),
            FALSE,
            FALSE,
            said::NO_AGENT,
        ),
        (
            with(
                asked(),
                condition("AgentReady", FALSE, said::WAITING_FOR_AGENT),
            ),
            TRUE,
            UNKNOWN,
            reason::STARTED,
        ),
    ] {
        let text = format!("{:?}", request.status);
        let plan = planned(&remediation(&json!({})), &facts(Some(request)));
        assert_eq!(
            conditions(&plan),
            (processing, succeeded, why.into()),
            "{text}"
        );
        assert!(matches!(plan.request, Request::Keep), "{text}");
    }
}

#[test]
fn a_refusal_of_an_older_spec_is_not_the_last_word() {
    let mut old = condition("Fenced", FALSE, said::PATHS_REMAIN);
    old.observed_generation = Some(1);
    let refused = with(request(&json!({})), old);
    let plan = planned(&remediation(&json!({})), &facts(Some(refused)));
    assert_eq!(conditions(&plan).1, UNKNOWN);
}

#[test]
fn a_request_that_governs_instead_counts() {
    let mut facts = facts(Some(request(&json!({}))));
    // Nothing is affected that it has not fenced.
    facts.storage = Some(NodeStorageStatus::default());
    let proven = fenced(request(&json!({})), TRUE, said::PROVEN);
    for (other, succeeded, why) in [
        (
            with(proven, condition("LocksReleased", TRUE, said::RELEASED)),
            TRUE,
            reason::FINISHED,
        ),
        (
            fenced(request(&json!({})), UNKNOWN, said::IN_PROGRESS),
            UNKNOWN,
            reason::STARTED,
        ),
        (
            fenced(request(&json!({})), FALSE, said::PATHS_REMAIN),
            FALSE,
            said::OTHER_REQUEST_GOVERNS,
        ),
    ] {
        facts.governed_by = Some(other);
        let plan = planned(&remediation(&json!({})), &facts);
        assert_eq!(
            (conditions(&plan).1, conditions(&plan).2),
            (succeeded, why.to_owned())
        );
    }
}

#[test]
fn nothing_is_made_without_a_node_or_with_a_name_that_is_taken() {
    let (mut nowhere, mut gone, mut taken) = (facts(None), facts(None), facts(None));
    nowhere.node = Err("Machine ns/m1 names no node".into());
    gone.node_exists = false;
    taken.name_taken = true;
    for (facts, why) in [
        (nowhere, reason::NODE_NOT_FOUND),
        (gone, reason::NODE_NOT_FOUND),
        (taken, reason::NAME_TAKEN),
    ] {
        let plan = planned(&remediation(&json!({})), &facts);
        assert!(matches!(plan.request, Request::Keep), "{plan:?}");
        assert_eq!(plan.finalizer, Finalizer::Keep);
        assert_eq!(conditions(&plan), (FALSE, FALSE, why.into()));
        assert_eq!(plan.notice.unwrap().reason, "RemediationCannotStart");
    }
}

/// Before anything was done it is taken back; what is under way cannot be stopped, and what was proven stays.
#[test]
fn a_time_out_stops_what_can_be_stopped() {
    let plan = planned(&timed_out(), &facts(None));
    assert!(matches!(plan.request, Request::Keep), "{plan:?}");
    assert_eq!(conditions(&plan), (FALSE, FALSE, reason::TIMED_OUT.into()));
    assert_eq!(plan.notice.unwrap().reason, "RemediationStopped");
    for (request, withdrawn) in [
        (request(&json!({})), true),
        (
            fenced(request(&json!({})), FALSE, said::NOTHING_AFFECTED),
            true,
        ),
        (
            fenced(request(&json!({})), UNKNOWN, said::IN_PROGRESS),
            false,
        ),
        (fenced(request(&json!({})), FALSE, said::NOT_PROVEN), false),
        (fenced(request(&json!({})), TRUE, said::PROVEN), false),
    ] {
        let text = format!("{:?}", request.status);
        let plan = planned(&timed_out(), &facts(Some(request)));
        assert_eq!(
            matches!(plan.request, Request::Delete { .. }),
            withdrawn,
            "{text}"
        );
        assert_eq!(
            conditions(&plan),
            (FALSE, FALSE, reason::TIMED_OUT.into()),
            "{text}"
        );
    }
    // What has succeeded before has succeeded.
    let proven = fenced(request(&json!({})), TRUE, said::PROVEN);
    let proven = with(proven, condition("LocksReleased", TRUE, said::RELEASED));
    let before = planned(&remediation(&json!({})), &facts(Some(proven.clone()))).status;
    let mut late = timed_out();
    late.status = before.clone();
    assert_eq!(
        judge(&late, &facts(Some(proven.clone())), NOW).stand,
        Stand::Succeeded
    );
    let plan = planned(&late, &facts(Some(proven)));
    assert!(
        plan.status.is_none() && plan.notice.is_none(),
        "written already: {plan:?}"
    );
}

pub fn deleted(boot_id: Option<&str>) -> StorageFenceRemediation {
    let mut deleted = remediation(&json!({
        "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER],
    }));
    deleted.status = Some(StorageFenceRemediationStatus::default());
    deleted.status.as_mut().unwrap().node_boot_id = boot_id.map(Into::into);
    deleted
}

#[test]
fn deletion_takes_the_request_back_and_waits_for_it() {
    let mut facts = facts(Some(request(&json!({}))));
    let plan = planned(&deleted(None), &facts);
    assert!(matches!(&plan.request, Request::Delete { uid, .. } if uid == "request-uid"));
    assert_eq!(plan.finalizer, Finalizer::Keep);
    let going = &mut facts.request.as_mut().unwrap().metadata;
    going.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    let plan = planned(&deleted(None), &facts);
    assert!(matches!(plan.request, Request::Keep));
    assert_eq!(plan.finalizer, Finalizer::Keep);
    facts.request = None;
    assert_eq!(planned(&deleted(None), &facts).finalizer, Finalizer::Free);
}

/// The health controller reads that the fence succeeded; people read who keeps the node from getting its storage back.
#[test]
fn a_deleted_remediation_says_what_it_waits_for() {
    let proven = fenced(request(&json!({})), TRUE, said::PROVEN);
    let proven = with(proven, condition("LocksReleased", TRUE, said::RELEASED));
    let mut gone = deleted(Some("boot-1"));
    gone.status = planned(&remediation(&json!({})), &facts(Some(proven.clone()))).status;
    let succeeded = conditions(&planned(
        &remediation(&json!({})),
        &facts(Some(proven.clone())),
    ));
    assert_eq!(succeeded, (FALSE, TRUE, reason::FINISHED.into()));
    let mut facts = facts(Some(fenced(proven, TRUE, said::UNFENCE_WAITING)));
    assert!(
        planned(&gone, &facts).status.is_none(),
        "it speaks of the fence yet"
    );
    let going = facts.request.as_mut().unwrap();
    going.metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    going.status.as_mut().unwrap().message = Some("process 7 (qemu) holds vg1-disk3 open".into());
    let plan = planned(&gone, &facts);
    assert_eq!(conditions(&plan), (TRUE, TRUE, reason::FINISHED.into()));
    let status = plan.status.unwrap();
    let processing = find(&status.conditions, "Processing").unwrap();
    assert_eq!(processing.reason, said::UNFENCE_WAITING);
    assert!(
        processing
            .message
            .ends_with("Request r: process 7 (qemu) holds vg1-disk3 open"),
        "{processing:?}"
    );
    assert_eq!(
        find(&status.conditions, "Succeeded"),
        find(&gone.status.as_ref().unwrap().conditions, "Succeeded")
    );
    // Said once, and then asked for no sooner than something changes.
    gone.status = Some(status);
    let plan = planned(&gone, &facts);
    assert!(
        plan.status.is_none() && plan.look_again.is_none(),
        "{plan:?}"
    );
    facts.request = None;
    assert!(planned(&gone, &facts).status.is_none(), "it goes");
}

/// A finalizer that never goes would block the health controller.
#[test]
fn the_finalizer_goes_with_the_node_and_with_its_boot() {
    let there = || facts(Some(request(&json!({}))));
    let (mut gone, mut rebooted, mut same) = (there(), there(), there());
    gone.node_exists = false;
    rebooted.node_boot_id = Some("boot-2".into());
    same.node_boot_id = Some("boot-1".into());
    assert_eq!(
        planned(&deleted(Some("boot-1")), &gone).finalizer,
        Finalizer::Free
    );
    assert_eq!(
        planned(&deleted(Some("boot-1")), &rebooted).finalizer,
        Finalizer::Free
    );
    assert_eq!(
        planned(&deleted(Some("boot-1")), &same).finalizer,
        Finalizer::Keep
    );
    // Never fenced: no boot to compare with.
    assert_eq!(
        planned(&deleted(None), &rebooted).finalizer,
        Finalizer::Keep
    );
}

#[test]
fn names_of_requests_fit_and_are_names() {
    let long = "n".repeat(253);
    let name = request_name(&remediation(&json!({})), &long);
    assert!(name.len() <= 253 && name.ends_with("-01234567"), "{name}");
    let dotted = format!("{}.{}", "n".repeat(239), "m".repeat(13));
    assert!(!request_name(&remediation(&json!({})), &dotted).contains(".-"));
}
