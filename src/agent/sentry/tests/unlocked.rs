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
    for (outcome, anew) in [(Outcome::NotProven, true), (Outcome::Proven, false)] {
        let mut node = Node::new(vec![policy("p", &json!({}))]);
        let held = || vec![group("san", false)];
        let unlocked = || {
            vec![VolumeGroup {
                lockspace: None,
                lvmlock: Some(DmDevice::default()),
                unlocked: true,
                ..group("san", false)
            }]
        };
        assert!(node.look(1000, held()).fence.is_none());
        let (first, _) = node.look(1010, held()).fence.unwrap();
        // While it goes on, whatever becomes of the locks, it is the answer.
        let mut goes = known(&first, Outcome::NotProven);
        node.sentry.goes(&mut goes, false, at(1060));
        assert!(node.look(1070, unlocked()).fence.is_none());
        node.sentry
            .goes(&mut known(&first, outcome), true, at(1080));
        for second in 1080..1090 {
            assert!(node.look(second, held()).fence.is_none());
        }
        // What was proven and is open again is the guard's to close.
        let due = node.look(1090, unlocked()).fence;
        assert_eq!(due.is_some(), anew);
        let Some((second, why)) = due else { continue };
        assert!(why.contains("nobody holds its locks"), "{why}");
        assert_ne!(second.uid, first.uid);
        let mut ends = known(&second, Outcome::NotProven);
        node.sentry.goes(&mut ends, true, at(1095));
        assert!(node.look(1100, unlocked()).fence.is_none(), "once");
    }
}

/// It is told, or planned, once: nothing was left to the watchdog.
#[test]
fn an_outage_that_was_only_told_or_planned_is_not_another_without_its_locks() {
    for more in [json!({ "response": "Report" }), json!({ "dryRun": true })] {
        let mut node = Node::new(vec![policy("p", &more)]);
        let looks = [(1000, false), (1010, false), (1020, true), (1030, true)];
        let told = looks.map(|(second, unlocked)| {
            let due = node.look(
                second,
                vec![VolumeGroup {
                    unlocked,
                    ..group("san", false)
                }],
            );
            due.reports.len() + usize::from(due.fence.is_some())
        });
        assert_eq!(told, [0, 1, 0, 0], "{more}");
    }
}
