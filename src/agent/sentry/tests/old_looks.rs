//! What is judged by a look that is some seconds old.

use super::*;
use crate::api::ConditionStatus;

/// Its lease was renewed at second 1000, with an I/O time-out of 10 s: every 20 s.
#[test]
fn a_lease_that_was_renewed_when_it_was_looked_at_is_no_reason() {
    let mut node = Node::new(vec![policy(
        "p",
        &json!({ "triggers": { "renewalsFailing": { "forSeconds": 33 } } }),
    )]);
    for second in [1020, 1035, 1049] {
        let due = node.turn(1020, second, vec![group("san", true)], false);
        assert!(due.fence.is_none(), "{second}");
        let [paths, _] = &node.sentry.outlook.borrow().conditions[..] else {
            panic!("two conditions");
        };
        assert_eq!(paths.status, ConditionStatus::True, "{second}: {paths:?}");
    }
    let due = node.turn(1034, 1036, vec![group("san", true)], false);
    assert!(due.fence.is_some());
}
