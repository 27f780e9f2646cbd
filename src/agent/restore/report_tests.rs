use std::time::Duration;

use super::*;
use crate::api::condition::find;
use crate::fence::Monotonic;
use crate::fence::report::StepResult as Result;
use crate::fence::unfence::{Standing, UnfenceOrder, steps};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn waiting(reason: BlockerReason) -> UnfenceReport {
    UnfenceReport {
        order: UnfenceOrder {
            name: "a".into(),
            generation: 4,
            ..UnfenceOrder::default()
        },
        boot_id: "b".into(),
        groups: vec![GroupReport {
            standing: Standing {
                name: "vg1".into(),
                ..Standing::default()
            },
            devices_total: 3,
            ..GroupReport::default()
        }],
        blockers: vec![Blocker::new(reason, "vg1", "why".into())],
        message: "Waiting: why".into(),
        ..UnfenceReport::default()
    }
}

fn says_of(report: &UnfenceReport) -> (ConditionStatus, String) {
    let part = from_report(report, None, at(9), &AgentPart::default());
    let fenced = find(&part.conditions, condition_type::FENCED).unwrap();
    assert_eq!(fenced.observed_generation, Some(4));
    (fenced.status, fenced.reason.clone())
}

#[test]
fn fenced_is_said_only_as_long_as_it_is_known() {
    use ConditionStatus::{False, True, Unknown};
    for (reason, status) in [
        (BlockerReason::PathsUnhealthy, True),
        (BlockerReason::DeviceOpen, True),
        (BlockerReason::LockspaceRemains, True),
        (BlockerReason::DeviceNotFenced, Unknown),
        (BlockerReason::StateUnknown, Unknown),
    ] {
        assert_eq!(
            says_of(&waiting(reason)),
            (status, "UnfenceWaiting".into()),
            "{reason:?}"
        );
    }
    let mut report = waiting(BlockerReason::DeviceOpen);
    report.groups[0].in_use = true;
    assert_eq!(says_of(&report).0, Unknown);
    report.groups.clear();
    assert_eq!(says_of(&report).0, Unknown);
    // At work: until the lockspaces are being joined nothing can come into use.
    let mut report = waiting(BlockerReason::StepFailed);
    report.outcome = UnfenceOutcome::Working;
    report.steps = steps(&report.groups);
    report.steps[0].result = Result::Running;
    assert_eq!(says_of(&report), (True, "Unfencing".into()));
    let join = report
        .steps
        .iter_mut()
        .find(|s| s.kind == UnfenceStepKind::JoinLockspace);
    join.unwrap().result = Result::Failed;
    assert_eq!(says_of(&report), (Unknown, "Unfencing".into()));
    report.outcome = UnfenceOutcome::Waiting;
    report.failures = 1;
    assert_eq!(says_of(&report), (Unknown, "Unfencing".into()));
    report.outcome = UnfenceOutcome::Done;
    assert_eq!(says_of(&report), (False, "Unfenced".into()));
}

#[test]
fn the_evidence_of_the_fence_stays_beside_that_of_the_un_fence() {
    let before = AgentPart {
        conditions: Vec::new(),
        node: Some(NodeFence {
            boot_id: "b".into(),
            observed_generation: 1,
            ..NodeFence::default()
        }),
    };
    let mut report = waiting(BlockerReason::DeviceOpen);
    report.started = Some(Monotonic::from_secs(50));
    report.finished_after = Some(Duration::from_secs(30));
    report.outcome = UnfenceOutcome::Done;
    report.groups[0].joined = Some((7, Some(4)));
    let part = from_report(&report, Some(at(100)), at(140), &before);
    let node = part.node.unwrap();
    assert_eq!((node.observed_generation, node.boot_id.as_str()), (1, "b"));
    let unfence = node.unfence.unwrap();
    assert_eq!(
        (unfence.started_at, unfence.finished_at),
        (Some(at(100)), Some(at(130)))
    );
    let group = &unfence.volume_groups[0];
    assert_eq!(
        (group.host_id, group.generation, group.joined),
        (Some(7), Some(4), true)
    );
    let released = find(&part.conditions, condition_type::LOCKS_RELEASED).unwrap();
    assert_eq!(
        (released.status, released.reason.as_str()),
        (ConditionStatus::False, "Unfenced")
    );
    // Of another boot nothing holds.
    let mut rebooted = before;
    rebooted.node.as_mut().unwrap().boot_id = "z".into();
    let node = from_report(&report, None, at(140), &rebooted).node.unwrap();
    assert_eq!((node.observed_generation, node.boot_id.as_str()), (4, "b"));
    assert_eq!(nothing_fenced("b", 4, at(1), &rebooted).node, None);
}

#[test]
fn the_lists_are_bounded_as_the_schema_wants_it() {
    let mut report = waiting(BlockerReason::DeviceOpen);
    let one = report.blockers[0].clone();
    report.blockers = vec![
        Blocker {
            device: Some("d".repeat(300)),
            holder: Some("h".repeat(900)),
            message: "m".repeat(2000),
            ..one
        };
        100
    ];
    let part = from_report(&report, None, at(1), &AgentPart::default());
    let unfence = part.node.unwrap().unfence.unwrap();
    assert_eq!((unfence.blockers.len(), unfence.blockers_omitted), (32, 68));
    let blocker = &unfence.blockers[0];
    let length = |text: &Option<String>| text.as_ref().map(|t| t.chars().count());
    assert_eq!(
        (length(&blocker.device), length(&blocker.holder)),
        (Some(128), Some(512))
    );
    assert_eq!(blocker.message.chars().count(), 1024);
}

#[test]
fn what_changed_is_worth_an_event_and_what_did_not_is_none() {
    let first = waiting(BlockerReason::DeviceOpen);
    assert_eq!(
        happened(None, &first).map(|h| (h.warning, h.reason)),
        Some((false, "UnfenceWaiting"))
    );
    let mut again = first.clone();
    again.looked = Monotonic::from_secs(7);
    assert_eq!(happened(Some(&first), &again), None);
    again.failures = 1;
    again.message = "vgchange".into();
    assert_eq!(
        happened(Some(&first), &again).map(|h| (h.warning, h.reason)),
        Some((true, "UnfenceFailed"))
    );
    again.outcome = UnfenceOutcome::Done;
    assert_eq!(
        happened(Some(&first), &again).map(|h| h.reason),
        Some("Unfenced")
    );
}
