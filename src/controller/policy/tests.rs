use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;

fn policy(name: &str, more: &Value) -> StorageFencePolicy {
    let mut spec = json!({ "triggers": { "allPathsDown": {} } });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let mut policy = StorageFencePolicy::new(name, serde_json::from_value(spec).unwrap());
    policy.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1).unwrap()));
    policy.metadata.generation = Some(1);
    policy
}

fn node(name: &str, label: &str, groups: &[&str]) -> Node {
    Node {
        name: name.into(),
        labels: BTreeMap::from([("rack".to_owned(), label.to_owned())]),
        volume_groups: groups.iter().map(|g| (*g).to_owned()).collect(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn nodes() -> Vec<Node> {
    let mut out = node("n4", "a", &["san"]);
    out.labels
        .insert(crate::api::EXCLUDE_LABEL.into(), "x".into());
    vec![
        node("n1", "a", &["san", "scratch"]),
        node("n2", "b", &["san"]),
        node("n3", "b", &[]),
        out,
    ]
}

#[test]
fn the_status_says_who_governs_what_and_who_is_outranked_by_whom() {
    let rack = json!({ "nodeSelector": { "matchLabels": { "rack": "a" } }, "priority": 1 });
    let all = [
        policy("base", &json!({})),
        policy("base-too", &json!({})),
        policy("rack-a", &rack),
        policy(
            "nowhere",
            &json!({ "nodeSelector": { "matchLabels": { "rack": "z" } } }),
        ),
        policy("no-vg", &json!({ "volumeGroups": { "names": ["other"] } })),
        policy(
            "bad",
            &json!({ "nodeSelector": { "matchExpressions": [{ "key": "k", "operator": "?" }] } }),
        ),
    ];
    for (name, holds, why, count, outranked) in [
        (
            "base",
            ConditionStatus::True,
            reason::GOVERNS,
            "1/3",
            vec!["n1/san: rack-a", "n1/scratch: rack-a"],
        ),
        (
            "base-too",
            ConditionStatus::False,
            reason::OUTRANKED,
            "0/3",
            vec!["n1/san: rack-a", "n1/scratch: rack-a", "n2/san: base"],
        ),
        (
            "rack-a",
            ConditionStatus::True,
            reason::GOVERNS,
            "1/1",
            vec![],
        ),
        (
            "nowhere",
            ConditionStatus::False,
            reason::NO_NODE_SELECTED,
            "0/0",
            vec![],
        ),
        (
            "no-vg",
            ConditionStatus::False,
            reason::NO_VOLUME_GROUP_SELECTED,
            "0/3",
            vec![],
        ),
        (
            "bad",
            ConditionStatus::False,
            reason::INVALID,
            "0/0",
            vec![],
        ),
    ] {
        let policy = all.iter().find(|p| p.name_any() == name).unwrap();
        let status = derive(policy, &all, &nodes(), at(100));
        let active = &status.conditions[0];
        assert_eq!(
            (active.status, active.reason.as_str()),
            (holds, why),
            "{name}: {active:?}"
        );
        assert_eq!(status.nodes, count, "{name}");
        assert_eq!(status.outranked, outranked, "{name}");
    }
}

#[test]
fn what_the_api_server_holds_is_not_written_again_and_the_transition_keeps_its_time() {
    let mut policy = policy("p", &json!({}));
    let all = [policy.clone()];
    let first = derive(&policy, &all, &nodes(), at(100));
    assert!(!is_current(&policy, &first));
    policy.status = serde_json::from_value(serde_json::to_value(&first).unwrap()).unwrap();
    assert!(is_current(
        &policy,
        &derive(&policy, &all, &nodes(), at(200))
    ));
    let fewer = derive(&policy, &all, &nodes()[..1], at(200));
    assert!(!is_current(&policy, &fewer));
    assert_eq!(
        fewer.conditions[0].last_transition_time,
        at(100),
        "it still governs"
    );
    let none = derive(&policy, &all, &[], at(300));
    assert_eq!(none.conditions[0].last_transition_time, at(300));
}

#[test]
fn lists_have_an_end() {
    let many: Vec<Node> = (0..100)
        .map(|n| node(&format!("n{n}"), "a", &["san"]))
        .collect();
    let all = [policy("a", &json!({})), policy("b", &json!({}))];
    let status = derive(&all[1], &all, &many, at(1));
    assert_eq!(status.outranked.len(), OUTRANKED);
    assert!(status.conditions[0].message.contains('a'));
}
