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
