//! Volume groups that are open though nobody holds their locks.

use super::*;

/// Its lockspace is gone, and the watchdog with it: nothing but a fence stands behind it.
#[test]
fn what_is_open_though_nobody_holds_its_locks_is_fenced_as_others_are() {
    for unlocked in [true, false] {
        let open = || VolumeGroup {
            lockspace: None,
            lvmlock: Some(DmDevice::default()),
            unlocked,
            ..group("san", false)
        };
        let mut node = Node::new(vec![policy("p", &json!({}))]);
        assert!(node.look(1000, vec![open()]).fence.is_none());
        let due = node.look(1010, vec![open()]).fence;
        assert_eq!(due.is_some(), unlocked);
        let Some((order, _)) = due else { continue };
        assert_eq!(order.volume_groups, Selection::Named(vec!["san".into()]));
        // It is recorded like any other, and not begun again.
        let mut report = known(&order, Outcome::InProgress);
        let freeze = &mut report.report.steps[0];
        freeze.result = StepResult::Skipped;
        let swap = StepReport {
            kind: StepKind::Swap,
            result: StepResult::Planned,
            ..freeze.clone()
        };
        report.report.steps.push(swap);
        node.sentry.goes(&mut report, false, at(1011));
        assert!(node.to_make.try_recv().is_err(), "nothing was touched");
        report.report.steps[1].result = StepResult::Running;
        node.sentry.goes(&mut report, false, at(1011));
        assert!(node.to_make.try_recv().is_ok());
        report.report.outcome = Outcome::Proven;
        node.sentry.goes(&mut report, true, at(1012));
        assert!(node.to_make.try_recv().is_err(), "it is made once");
        let cut_off = || VolumeGroup {
            unlocked: false,
            lockspace: None,
            ..fenced("san")
        };
        for second in 1012..1100 {
            assert!(node.look(second, vec![cut_off()]).fence.is_none());
        }
    }
}

/// It was left to the watchdog, which stands behind it no more.
#[test]
fn a_fence_that_fell_short_under_its_locks_is_begun_anew_once_nobody_holds_them() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    assert!(node.look(1000, vec![group("san", false)]).fence.is_none());
    let (first, _) = node.look(1010, vec![group("san", false)]).fence.unwrap();
    node.sentry
        .goes(&mut known(&first, Outcome::NotProven), true, at(1080));
    let unlocked = |stands| VolumeGroup {
        lockspace: None,
        lvmlock: Some(DmDevice::default()),
        unlocked: true,
        stands,
        ..group("san", false)
    };
    // While its locks are held, and of one that stands and was opened again, which is the guard's to close, it was the answer.
    for second in 1080..1090 {
        assert!(node.look(second, vec![group("san", false)]).fence.is_none());
        assert!(node.look(second, vec![unlocked(true)]).fence.is_none());
    }
    let (second, _) = node.look(1090, vec![unlocked(false)]).fence.unwrap();
    assert_ne!(second.uid, first.uid);
    node.sentry
        .goes(&mut known(&second, Outcome::NotProven), true, at(1095));
    assert!(
        node.look(1100, vec![unlocked(false)]).fence.is_none(),
        "once"
    );
}
