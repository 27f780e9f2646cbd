//! Conditions of the Node, whose times are other machines' clocks, on a node whose own clock may be set.

use jiff::{SignedDuration, Timestamp};

use super::*;

/// What another machine's clock said at second 1000 of this node.
fn wall() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn seen_since(since: Timestamp) -> SeenCondition {
    SeenCondition {
        type_: "SanBroken".into(),
        status: "True".into(),
        since,
    }
}

fn for_seconds(seconds: u32, more: &Value) -> StorageFencePolicy {
    let mut spec = json!({ "triggers": {
        "nodeConditions": [{ "type": "SanBroken", "status": "True", "forSeconds": seconds }],
    }});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    policy("p", &spec)
}

impl Node {
    fn hears_at(&mut self, second: u64, conditions: Vec<SeenCondition>) {
        let news = Learned::Node(BTreeMap::new(), conditions);
        self.sentry.hear(news, at(second));
    }

    fn fences_at(&mut self, second: u64) -> bool {
        let due = self.look(second, vec![group("san", false)]);
        due.fence.is_some()
    }
}

#[test]
fn a_condition_of_the_node_counts_while_the_node_is_in_sight() {
    let seen = || vec![seen_since(wall())];
    let mut node = Node::new(vec![for_seconds(5, &json!({}))]);
    assert!(node.look(1000, vec![group("san", true)]).fence.is_none());
    node.hears_at(1000, seen());
    node.sentry.hear(Learned::NodeOutOfSight, at(1004));
    assert!(node.look(1006, vec![group("san", true)]).fence.is_none());
    // It has not changed meanwhile.
    node.hears_at(1007, seen());
    let (order, _) = node.look(1007, vec![group("san", true)]).fence.unwrap();
    assert_eq!(order.when_paths_remain, WhenPathsRemain::Refuse);
    let fences = json!({ "request": { "whenPathsRemain": "Fence" } });
    let mut node = Node::new(vec![for_seconds(5, &fences)]);
    node.hears_at(1000, seen());
    let (order, _) = node.look(1005, vec![group("san", true)]).fence.unwrap();
    assert_eq!(order.when_paths_remain, WhenPathsRemain::Fence);
}

/// The node's clock is a day ahead or back of the one that wrote the condition, or it is set while the delay runs: neither fences a moment too early,
/// and neither keeps a fence back.
#[test]
fn a_clock_that_is_wrong_by_a_day_changes_no_delay() {
    let day = SignedDuration::from_hours(24);
    for since in [wall() - day, wall(), wall() + day] {
        let mut node = Node::new(vec![for_seconds(300, &json!({}))]);
        node.hears_at(1000, vec![seen_since(since)]);
        let due = node.look(1000, vec![group("san", false)]);
        assert_eq!(due.wait, Some(Duration::from_secs(300)), "{since}");
        assert!(!node.fences_at(1299), "{since}: too early");
        assert!(node.fences_at(1300), "{since}: too late");
    }
}

#[test]
fn each_transition_counts_from_when_it_was_seen() {
    let mut node = Node::new(vec![for_seconds(10, &json!({}))]);
    node.hears_at(1000, vec![seen_since(wall())]);
    let other = SeenCondition {
        type_: "Ready".into(),
        ..seen_since(wall())
    };
    // What becomes of another is nothing to it.
    node.hears_at(1005, vec![other.clone(), seen_since(wall())]);
    assert!(!node.fences_at(1009));
    // It was False in between, and nobody has seen that.
    let again = wall() + SignedDuration::from_secs(9);
    node.hears_at(1009, vec![other, seen_since(again)]);
    assert!(!node.fences_at(1018));
    assert!(node.fences_at(1019));
}

/// The next agent of the same boot goes on counting, and not before it has seen that the condition holds.
#[test]
fn a_restart_of_the_agent_does_not_begin_the_count_anew() {
    let mut node = Node::new(vec![for_seconds(10, &json!({}))]);
    node.hears_at(1000, vec![seen_since(wall())]);
    node.restart(1008, None);
    assert!(!node.fences_at(1011));
    node.hears_at(1012, vec![seen_since(wall())]);
    assert!(node.fences_at(1012));
    node.restart(1013, None);
    let again = wall() + SignedDuration::from_secs(12);
    node.hears_at(1013, vec![seen_since(again)]);
    assert!(!node.fences_at(1022));
}
