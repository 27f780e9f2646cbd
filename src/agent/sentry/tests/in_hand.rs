//! Beside a fence that is going on.

use super::*;

#[test]
fn what_a_fence_is_at_already_is_no_reason_for_another_one() {
    let mut node = Node::new(vec![
        policy("p", &json!({ "volumeGroups": { "names": ["a", "b"] } })),
        policy(
            "plan",
            &json!({ "volumeGroups": { "names": ["c"] }, "dryRun": true }),
        ),
    ]);
    let all = || ["a", "b", "c"].map(|name| group(name, false)).to_vec();
    node.look(1000, all());
    node.sentry.in_hand(BTreeSet::from(["uuid-a".into()]));
    let busy = node.look_busy(1010, all(), true);
    assert!(busy.fence.is_none() && busy.held_up && busy.wait.is_some());
    // Neither for that one nor for what is only planned does anybody give way.
    node.sentry
        .in_hand(BTreeSet::from(["uuid-a".into(), "uuid-b".into()]));
    let busy = node.look_busy(1010, all(), true);
    assert!(busy.fence.is_none() && !busy.held_up);
    // Between two turns the other one is due alone.
    node.sentry.in_hand(BTreeSet::from(["uuid-a".into()]));
    let (order, _) = node.look(1011, all()).fence.expect("one that is due");
    assert_eq!(order.volume_groups, Selection::Named(vec!["b".into()]));
}
