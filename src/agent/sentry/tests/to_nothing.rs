//! A fence that comes to nothing.

use super::*;
use crate::fence::selection::RefusalReason;

#[test]
fn what_came_to_nothing_is_not_recorded_and_due_again() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    let first = node.down(&["san"]);
    assert!(!first.again);
    let (order, _) = first.fence.unwrap();
    let mut refused = known(&order, Outcome::Refused(RefusalReason::LvmlockdUnavailable));
    node.sentry.goes(&mut refused, true, at(1011));
    assert!(node.to_make.try_recv().is_err());
    assert!(
        node.look(1012, vec![group("san", false)]).fence.is_none(),
        "not at once"
    );
    let due = node.look(1016, vec![group("san", false)]);
    assert!(due.again, "people were told");
    let (again, _) = due.fence.unwrap();
    assert_eq!(again.name, order.name, "the same outage has the same name");
    // The next outage is another story.
    for second in [1020, 1024] {
        node.look(second, vec![group("san", true)]);
    }
    node.look(1030, vec![group("san", false)]);
    let due = node.look(1040, vec![group("san", false)]);
    assert!(due.fence.is_some() && !due.again);
}
