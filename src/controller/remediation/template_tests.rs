use serde_json::json;

use super::*;
use crate::api::remediation::StorageFenceRemediationTemplateSpec;
use crate::api::{NodeStorageStatus, StorageFenceRemediationTemplate};
use crate::controller::fixtures::{facts, pod, storage as report_of};

const TRUE: ConditionStatus = ConditionStatus::True;
const FALSE: ConditionStatus = ConditionStatus::False;
const UNKNOWN: ConditionStatus = ConditionStatus::Unknown;

fn storage(name: &str, status: &str, reason: &str) -> NodeStorage {
    serde_json::from_value(json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "NodeStorage", "metadata": { "name": name }, "spec": {},
        "status": {
            "bootId": "b", "agentVersion": "v", "sharedVolumeGroups": 0, "activeLogicalVolumes": 0, "paths": "0/0",
            "conditions": [{
                "type": "Ready", "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    }))
    .unwrap()
}

/// `nodes`, `Ready` and its reason, and those that are listed with theirs.
fn said(
    reports: &[(&NodeStorage, bool)],
    mode: AgentMode,
) -> (String, ConditionStatus, String, Vec<String>) {
    let template =
        StorageFenceRemediationTemplate::new("t", StorageFenceRemediationTemplateSpec::default());
    let reports = reports
        .iter()
        .map(|&(storage, current)| Report { storage, current });
    let status = status(&template, reports, mode, Timestamp::UNIX_EPOCH);
    let ready = find(&status.conditions, "Ready").unwrap();
    let listed = status.not_ready.iter();
    let listed = listed.map(|n| format!("{}: {}", n.name, n.reason));
    (
        status.nodes.clone(),
        ready.status,
        ready.reason.clone(),
        listed.collect(),
    )
}

#[test]
fn a_template_says_which_nodes_could_be_served() {
    let (good, bad) = (
        storage("a", "True", "AllAnswer"),
        storage("b", "False", "SanlockUnavailable"),
    );
    let resident = |reports: &[(&NodeStorage, bool)]| said(reports, AgentMode::Resident);
    assert_eq!(
        resident(&[]),
        ("0/0".into(), UNKNOWN, "NoNodeReported".into(), Vec::new())
    );
    assert_eq!(
        resident(&[(&good, true)]),
        ("1/1".into(), TRUE, "AllNodesReady".into(), Vec::new())
    );
    let listed = vec!["b: SanlockUnavailable".to_owned()];
    assert_eq!(
        resident(&[(&bad, true), (&good, true)]),
        ("1/2".into(), TRUE, "SomeNodesReady".into(), listed)
    );
    assert_eq!(resident(&[(&bad, true)]).1, FALSE);
}

#[test]
fn what_an_agent_left_behind_counts_for_nothing() {
    let (here, gone) = (
        storage("a", "True", "AllAnswer"),
        storage("b", "True", "AllAnswer"),
    );
    let listed = vec!["b: NoAgent".to_owned()];
    assert_eq!(
        said(&[(&here, true), (&gone, false)], AgentMode::Resident),
        ("1/2".into(), TRUE, "SomeNodesReady".into(), listed)
    );
    assert_eq!(said(&[(&gone, false)], AgentMode::Resident).1, FALSE);
    // It comes when it is needed: nobody knows what it will say then.
    assert_eq!(
        said(&[(&gone, false)], AgentMode::OnDemand),
        ("0/0".into(), UNKNOWN, "NoNodeReported".into(), Vec::new())
    );
}

/// The same judgement as a request's.
#[test]
fn a_report_is_its_agents_word_about_its_node_or_hearsay() {
    type Otherwise = fn(&mut AgentPod, &mut NodeStorageStatus);
    let otherwise: [(Otherwise, bool); 4] = [
        (|_, _| {}, true),
        (|pod, _| pod.ready = false, false),
        (|_, storage| storage.node_uid = Some("former".into()), false),
        (
            |_, storage| storage.agent_pod = Some("agent-x0 (former)".into()),
            false,
        ),
    ];
    for (number, (change, speaks)) in otherwise.into_iter().enumerate() {
        let (mut pod, mut storage) = (pod(true), report_of());
        change(&mut pod, &mut storage);
        assert_eq!(pod.speaks_for("node-uid", &storage), speaks, "{number}");
        let mut facts = facts();
        (facts.agent_pods, facts.storage) = (vec![pod], Some(storage));
        assert_eq!(facts.current_agent().is_some(), speaks, "{number}");
    }
}
