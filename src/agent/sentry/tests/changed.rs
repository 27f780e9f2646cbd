//! Policies that are made or changed while an outage goes on.

use super::*;

/// Down since second 1000, under `before`; at 1020 the API server tells of `after`, to the agent that was there or, `restarted`, to its successor.
fn changed(before: &[Value], after: &[Value], restarted: bool) -> (Node, Due) {
    let named = |specs: &[Value]| -> Vec<StorageFencePolicy> {
        let numbered = specs.iter().enumerate();
        numbered
            .map(|(n, spec)| policy(&format!("p{n}"), spec))
            .collect()
    };
    let mut node = Node::new(named(before));
    if let Some((order, _)) = node.down(&["san"]).fence {
        assert!(order.dry_run, "{before:?}");
        let mut planned = known(&order, Outcome::DryRun);
        node.sentry.goes(&mut planned, true, at(1011));
    }
    assert!(node.look(1019, down()).fence.is_none(), "{before:?}");
    if restarted {
        node.restart(1020, None);
        assert!(node.look(1020, down()).fence.is_none(), "{before:?}");
    }
    node.sentry.hear(Learned::Policies(named(after)), at(1021));
    node.sentry.hear(Learned::Node(labels(), vec![]), at(1021));
    let due = node.look(1021, down());
    (node, due)
}

fn down() -> Vec<VolumeGroup> {
    vec![group("san", false)]
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("storage".to_owned(), "san".to_owned())])
}

#[test]
fn who_wants_a_fence_in_the_middle_of_an_outage_gets_it_at_once_and_once() {
    let fences = json!({});
    let elsewhere = json!({ "nodeSelector": { "matchLabels": { "storage": "san" } } });
    for (before, after) in [
        (vec![json!({ "dryRun": true })], vec![fences.clone()]),
        (vec![json!({ "response": "Report" })], vec![fences.clone()]),
        (
            vec![json!({ "response": "ConditionOnly" })],
            vec![fences.clone()],
        ),
        // It is made.
        (vec![], vec![fences.clone()]),
        // It begins to select the node, or to mean the volume group.
        (vec![elsewhere.clone()], vec![elsewhere]),
        (
            vec![json!({ "volumeGroups": { "names": ["x"] } })],
            vec![fences.clone()],
        ),
        // Another one begins to govern.
        (
            vec![json!({ "dryRun": true })],
            vec![json!({ "dryRun": true }), json!({ "priority": 1 })],
        ),
        // Its time becomes shorter.
        (
            vec![json!({ "triggers": { "allPathsDown": { "forSeconds": 60 } } })],
            vec![fences.clone()],
        ),
    ] {
        for restarted in [false, true] {
            let case = format!("{before:?}, restarted: {restarted}");
            let (mut node, due) = changed(&before, &after, restarted);
            let (order, _) = due.fence.unwrap_or_else(|| panic!("{case}"));
            assert!(!order.dry_run, "{case}");
            node.sentry
                .goes(&mut known(&order, Outcome::Proven), true, at(1022));
            // Whatever is changed from now on, and even if it were given back: this outage was answered.
            for policies in [
                vec![policy("p0", &json!({ "dryRun": true }))],
                vec![policy("p0", &json!({ "response": "Report" }))],
                vec![policy("p0", &fences)],
                vec![policy("p9", &json!({ "priority": 9 }))],
            ] {
                node.sentry.hear(Learned::Policies(policies), at(1023));
                assert!(node.look(1023, down()).fence.is_none(), "{case}");
                node.restart(1024, None);
                assert!(node.look(1024, down()).fence.is_none(), "{case}");
                node.sentry.hear(Learned::Node(labels(), vec![]), at(1024));
            }
        }
    }
}

#[test]
fn the_time_of_a_policy_counts_from_the_beginning_of_the_outage() {
    let longer = json!({ "triggers": { "allPathsDown": { "forSeconds": 30 } } });
    let (mut node, due) = changed(&[], &[longer], false);
    assert!(due.fence.is_none());
    assert_eq!(due.wait, Some(Duration::from_secs(9)));
    assert!(node.look(1030, down()).fence.is_some());
}

#[test]
fn a_plan_and_the_fence_after_it_have_records_of_their_own() {
    let dry = json!({ "dryRun": true });
    for restarted in [false, true] {
        let (mut node, due) = changed(std::slice::from_ref(&dry), &[json!({})], restarted);
        let plan = node.to_make.try_recv().unwrap();
        assert!(plan.spec.dry_run);
        let (order, _) = due.fence.unwrap();
        assert_ne!(Some(&order.name), plan.metadata.name.as_ref());
        // The plan's turns up, and takes nothing of the fence.
        node.sentry.adopt(&stored(&plan, "u-plan", 1)).unwrap();
        let mut proven = known(&order, Outcome::Proven);
        node.sentry.goes(&mut proven, true, at(1022));
        assert_eq!(proven.order.uid, order.uid);
        let fence = node.to_make.try_recv().unwrap();
        assert!(!fence.spec.dry_run);
        assert_eq!(fence.metadata.name.as_ref(), Some(&order.name));
        assert_eq!(
            node.sentry.adopt(&stored(&fence, "u-fence", 1)),
            Some(order.uid.clone())
        );
        let kept = node.restart(1030, None);
        let kept: Vec<_> = kept
            .iter()
            .map(|k| (k.order.uid.as_str(), k.order.dry_run, &k.report.outcome))
            .collect();
        assert_eq!(
            kept,
            [
                ("u-plan", true, &Outcome::DryRun),
                ("u-fence", false, &Outcome::Proven)
            ]
        );
    }
    // A plan is made once an outage, also after it was turned on again.
    let (mut node, _) = changed(std::slice::from_ref(&dry), std::slice::from_ref(&dry), true);
    node.sentry
        .hear(Learned::Policies(vec![policy("p0", &dry)]), at(1022));
    assert!(node.look(1022, down()).fence.is_none());
}

/// An agent of an earlier version called a dry run as the fence is called: two fences of one name could not be told apart.
#[test]
fn no_second_fence_takes_the_name_of_one_that_is_known() {
    let (mut node, due) = changed(&[], &[json!({})], false);
    let (order, _) = due.fence.unwrap();
    let fence = node.sentry.records.by_uid(&order.uid).unwrap();
    fence.record.spec.dry_run = true;
    assert!(node.look(1022, down()).fence.is_none());
    assert_eq!(node.sentry.records.0.len(), 1);
}
