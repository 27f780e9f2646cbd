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

/// Its agent died while lvmlockd was asked. The successor goes on with it, and it may still come to nothing: then there is nothing to be recorded.
#[test]
fn what_a_successor_goes_on_with_is_recorded_when_it_leaves_a_trace() {
    for proven in [false, true] {
        let mut node = Node::new(vec![policy("p", &json!({}))]);
        let (order, _) = node.down(&["san"]).fence.unwrap();
        let mut begun = known(&order, Outcome::InProgress).report;
        let freeze = &mut begun.steps[0];
        (freeze.result, freeze.untold) = (StepResult::Running, true);
        let left = Record {
            steps: begun.steps.clone(),
            begun: crate::agent::journal::Begun {
                order: order.clone(),
                groups: vec![],
                reset: None,
                report: begun,
            },
            finished: None,
        };
        assert!(node.restart(1011, Some(&left)).is_empty());
        assert!(node.to_make.try_recv().is_err(), "nothing was touched");
        let down = || vec![group("san", false)];
        assert!(node.look(1012, down()).fence.is_none(), "it goes on");
        let outcome = if proven {
            Outcome::Proven
        } else {
            Outcome::Refused(RefusalReason::LvmlockdUnavailable)
        };
        node.sentry
            .goes(&mut known(&order, outcome), true, at(1031));
        assert_eq!(node.to_make.try_recv().is_ok(), proven);
        let again = node.look(1040, down()).fence;
        assert_eq!(again.map(|(o, _)| o.name), (!proven).then_some(order.name));
    }
}

/// What the journal has of a fence that had begun to freeze, by one step that stands so, and has ended so.
fn left(order: &Order, freeze: StepResult, finished: Option<Outcome>) -> Record {
    let mut report = known(order, Outcome::InProgress).report;
    report.steps[0].result = StepResult::Planned;
    let mut steps = report.steps.clone();
    steps[0].result = freeze;
    let finished = finished.map(|outcome| FenceReport {
        steps: steps.clone(),
        outcome,
        ..report.clone()
    });
    let begun = crate::agent::journal::Begun {
        order: order.clone(),
        groups: vec![],
        reset: None,
        report,
    };
    Record {
        begun,
        steps,
        finished,
    }
}

/// The agent is killed between the two: it had noted that the fence begins anew, and its journal still has the try before, which goes by the same UID.
#[test]
fn what_came_to_nothing_is_no_answer_for_the_next_agent_either() {
    let refused = Outcome::Refused(RefusalReason::LvmlockdUnavailable);
    for (freeze, finished, answered) in [
        (StepResult::Failed, Some(refused), false),
        (StepResult::Skipped, Some(Outcome::CalledOff), false),
        // Whoever died in it may have frozen the locks: that one is completed.
        (StepResult::Running, None, true),
        (StepResult::Done, Some(Outcome::NotProven), true),
    ] {
        let mut node = Node::new(vec![policy("p", &json!({}))]);
        let (order, _) = node.down(&["san"]).fence.unwrap();
        let left = left(&order, freeze, finished);
        assert!(left.touched());
        assert_eq!(left.unfinished(), answered);
        assert_eq!(node.restart(1012, Some(&left)), []);
        assert_eq!(node.to_make.try_recv().is_ok(), answered, "{freeze:?}");
        let again = node.look(1013, vec![group("san", false)]).fence;
        let names = again.map(|(again, _)| again.name);
        let due = (!answered).then(|| order.name.clone());
        assert_eq!(names, due, "{freeze:?}");
    }
}
