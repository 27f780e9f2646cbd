use serde_json::{Value, json};

use super::*;
use crate::controller::fixtures::{request, storage};

fn spec(more: &Value) -> StorageFencePolicySpec {
    let mut spec = json!({ "triggers": { "allPathsDown": {} } });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

/// A node that reports these of the fixture's volume groups: `gone` and `half` are shared, `local` is not.
fn node(rack: &str, groups: &[&str]) -> (BTreeMap<String, String>, NodeStorageStatus) {
    let mut storage = storage();
    storage
        .volume_groups
        .retain(|g| groups.contains(&g.name.as_str()));
    let labels = BTreeMap::from([("rack".to_owned(), rack.to_owned())]);
    (labels, storage)
}

fn fenced(
    mut node: (BTreeMap<String, String>, NodeStorageStatus),
    by_files: bool,
) -> (BTreeMap<String, String>, NodeStorageStatus) {
    if by_files {
        // Its devices are gone, and the fence stands all the same.
        let name = node.1.volume_groups.remove(0).name;
        node.1.fences = serde_json::from_value(json!([{
            "volumeGroup": name, "uuid": "u", "by": "r", "locks": "Released", "openings": 0,
        }]))
        .unwrap();
    } else {
        // The lock manager does not know it any more.
        node.1.volume_groups[0].shared = false;
        node.1.volume_groups[0].fenced = true;
    }
    node
}

#[test]
fn nodes_count_that_have_what_the_policy_means_and_those_are_lost_that_lost_it() {
    let mut out = node("a", &["gone"]);
    out.0
        .insert(crate::api::EXCLUDE_LABEL.into(), String::new());
    let nodes = [
        node("a", &["half"]),
        fenced(node("a", &["half"]), false),
        fenced(node("b", &["half"]), true),
        // Not fenced yet.
        node("b", &["gone"]),
        // Nothing to lose.
        node("b", &["local"]),
        node("b", &[]),
        // Not known whether a path works.
        node("b", &["dark"]),
        out,
    ];
    for (more, all, lost) in [
        (json!({}), 5, 3),
        (
            json!({ "nodeSelector": { "matchLabels": { "rack": "a" } } }),
            2,
            1,
        ),
        (json!({ "volumeGroups": { "names": ["half"] } }), 3, 2),
        (json!({ "volumeGroups": { "except": ["gone"] } }), 4, 2),
        (json!({ "volumeGroups": { "names": ["other"] } }), 0, 0),
    ] {
        let spec = spec(&more);
        let said = nodes
            .iter()
            .map(|(labels, s)| is_lost(&spec, labels, s).unwrap());
        let counted: Vec<bool> = said.flatten().collect();
        let found = counted.iter().filter(|lost| **lost).count();
        assert_eq!((counted.len(), found), (all, lost), "{more}");
    }
    let bad = json!({ "nodeSelector": { "matchExpressions": [{ "key": "k", "operator": "?" }] } });
    assert!(is_lost(&spec(&bad), &nodes[0].0, &nodes[0].1).is_err());
}

#[test]
fn the_limit_is_half_of_the_nodes_unless_the_policy_says_otherwise() {
    for (limits, wanted) in [
        (json!({}), Ok(Limit::Percent(50))),
        (json!({ "limits": {} }), Ok(Limit::Percent(50))),
        (
            json!({ "limits": { "maxFencedNodes": null } }),
            Ok(Limit::Percent(50)),
        ),
        (
            json!({ "limits": { "maxFencedNodes": 3 } }),
            Ok(Limit::Nodes(3)),
        ),
        (
            json!({ "limits": { "maxFencedNodes": "20%" } }),
            Ok(Limit::Percent(20)),
        ),
        (json!({ "limits": { "maxFencedNodes": "a lot" } }), Err(())),
        (json!({ "limits": { "maxFencedNodes": -1 } }), Err(())),
    ] {
        assert_eq!(limit(&spec(&limits)).map_err(drop), wanted, "{limits}");
    }
}

/// Only what an agent recorded by a policy.
#[test]
fn what_a_person_or_a_remediation_asked_for_is_not_limited() {
    let mut record = request(&json!({}));
    assert_eq!(limited_by(&record), None);
    record.metadata.name = Some("auto-n1-1".into());
    record.metadata.labels = Some(BTreeMap::from([(
        annotation::RECORDED_BY.to_owned(),
        annotation::AGENT.to_owned(),
    )]));
    record.metadata.annotations = Some(BTreeMap::from([(
        annotation::POLICY.to_owned(),
        "san".to_owned(),
    )]));
    assert_eq!(limited_by(&record), Some("san"));
    record.metadata.labels = None;
    assert_eq!(limited_by(&record), None, "a person's copy");
}
