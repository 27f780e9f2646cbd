use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::api::EXCLUDE_LABEL;

fn policy(name: &str, created: i64, spec: &serde_json::Value) -> StorageFencePolicy {
    let mut whole = json!({ "triggers": { "allPathsDown": {} } });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let mut policy = StorageFencePolicy::new(name, serde_json::from_value(whole).unwrap());
    policy.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
    policy
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    owned.collect()
}

#[test]
fn a_policy_without_a_response_only_reports() {
    let spec = policy("p", 0, &json!({})).spec;
    assert_eq!(spec.response, Response::Report);
    assert_eq!(spec.triggers.all_paths_down.unwrap().for_seconds, 10);
    assert_eq!(spec.request.drain_timeout_seconds, 60);
    assert!(!spec.dry_run);
}

#[test]
fn patterns_stand_for_names() {
    for (pattern, name, matches) in [
        ("san", "san", true),
        ("san", "san2", false),
        ("san", "a-san", false),
        ("*", "anything", true),
        ("*", "", true),
        ("san*", "san", true),
        ("san*", "san-7", true),
        ("san*", "nas", false),
        ("*-ssd", "a-ssd", true),
        ("*-ssd", "a-ssd2", false),
        ("a*b*c", "a1b2c", true),
        ("a*b*c", "abc", true),
        ("a*b*c", "acb", false),
        // The same characters may not count twice.
        ("ab*ba", "aba", false),
        ("a*a", "a", false),
    ] {
        assert_eq!(matches_pattern(pattern, name), matches, "{pattern} {name}");
    }
}

#[test]
fn volume_groups_are_selected_by_name_without_the_exceptions() {
    let all = policy("p", 0, &json!({})).spec;
    assert!(selects_volume_group(&all, "any"));
    let some = json!({ "volumeGroups": { "names": ["san*", "x"], "except": ["san-scratch*"] } });
    let some = policy("p", 0, &some).spec;
    for (name, selected) in [
        ("san1", true),
        ("x", true),
        ("xx", false),
        ("san-scratch", false),
        ("san-scratch-2", false),
    ] {
        assert_eq!(selects_volume_group(&some, name), selected, "{name}");
    }
}

#[test]
fn nodes_are_selected_by_label_and_the_exclude_label_wins() {
    let all = policy("p", 0, &json!({})).spec;
    let some = json!({ "nodeSelector": {
        "matchLabels": { "san": "a" },
        "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["1", "2"] }],
    }});
    let some = policy("p", 0, &some).spec;
    let both = labels(&[("san", "a"), ("zone", "2")]);
    assert_eq!(selects_node(&all, &labels(&[])), Ok(true));
    assert_eq!(selects_node(&some, &both), Ok(true));
    assert_eq!(selects_node(&some, &labels(&[("san", "a")])), Ok(false));
    for value in ["true", "false", ""] {
        let mut out = both.clone();
        out.insert(EXCLUDE_LABEL.into(), value.into());
        assert_eq!(selects_node(&some, &out), Ok(false), "{value:?}");
        assert_eq!(selects_node(&all, &out), Ok(false), "{value:?}");
    }
}

#[test]
fn a_selector_that_makes_no_sense_selects_nothing_and_says_so() {
    let bad = json!({ "nodeSelector": {
        "matchExpressions": [{ "key": "zone", "operator": "Sometimes" }],
    }});
    let error = selects_node(&policy("p", 0, &bad).spec, &labels(&[])).unwrap_err();
    assert!(error.contains("nodeSelector"), "{error}");
}

#[test]
fn priority_governs_then_age_then_name_and_the_order_does_not_matter() {
    let name = |p: Option<&StorageFencePolicy>| p.and_then(|p| p.metadata.name.clone());
    let mut all = vec![
        policy("young-high", 30, &json!({ "priority": 5 })),
        policy("b", 10, &json!({})),
        policy("a", 10, &json!({})),
        policy("low", 1, &json!({ "priority": -1 })),
        policy(
            "other-vg",
            0,
            &json!({ "priority": 9, "volumeGroups": { "names": ["x"] } }),
        ),
    ];
    for expected in ["young-high", "a", "b", "low"] {
        for _ in 0..all.len() {
            all.rotate_left(1);
            assert_eq!(name(governing("san", &all)).as_deref(), Some(expected));
        }
        all.retain(|p| p.metadata.name.as_deref() != Some(expected));
    }
    assert_eq!(name(governing("san", &all)), None);
    assert_eq!(name(governing("x", &all)).as_deref(), Some("other-vg"));
    all[0].metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(name(governing("x", &all)), None, "it is on its way out");
}
