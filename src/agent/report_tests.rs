use super::*;
use std::sync::Arc;

use crate::fence::report::{DeviceReport, StepReport, VolumeGroupReport, WatchdogReport};

fn device(name: &str, outcome: report::DeviceOutcome) -> DeviceReport {
    DeviceReport {
        name: name.into(),
        uuid: format!("LVM-{name}").into(),
        outcome,
        open_count: 1,
        swap_took: Some(Duration::from_millis(3)),
        ..DeviceReport::default()
    }
}

fn step(kind: StepKind, result: report::StepResult) -> StepReport {
    StepReport {
        kind,
        volume_group: "vg1".into(),
        map: None,
        result,
        at: Some(Duration::from_millis(1)),
        took: Some(Duration::from_millis(2)),
        message: None,
        untold: false,
    }
}

fn fence(outcome: Outcome, locks: LocksOutcome) -> FenceReport {
    FenceReport {
        request: "a".into(),
        uid: "u".into(),
        generation: 3,
        boot_id: "b".into(),
        volume_groups: vec![VolumeGroupReport {
            name: "vg1".into(),
            uuid: "x".into(),
            host_id: Some(1),
            paths_total: 2,
            devices: vec![device("one", report::DeviceOutcome::Error)].into(),
            ..VolumeGroupReport::default()
        }],
        steps: vec![
            step(StepKind::Swap, report::StepResult::Done),
            step(StepKind::Verify, report::StepResult::Planned),
        ],
        watchdog: WatchdogReport {
            armed: true,
            budget: Some(Duration::from_secs(100)),
            disarmed_after: None,
        },
        outcome,
        message: "what happened".into(),
        locks,
        locks_message: "about the locks".into(),
        ..FenceReport::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn part_at(report: &FenceReport, before: &AgentPart, now: Timestamp) -> AgentPart {
    let context = Context {
        generation: 3,
        current_generation: 3,
        started: at(100),
        now,
        before,
    };
    from_report(report, context)
}

fn part(report: &FenceReport) -> AgentPart {
    part_at(report, &AgentPart::default(), at(200))
}

fn says_of<'a>(part: &'a AgentPart, type_: &str) -> (ConditionStatus, &'a str) {
    let condition = find(&part.conditions, type_).unwrap();
    (condition.status, &condition.reason)
}

#[test]
fn every_outcome_has_its_condition() {
    use ConditionStatus::{False, True, Unknown};
    let cases = [
        (
            Outcome::InProgress,
            LocksOutcome::Pending,
            (Unknown, "InProgress"),
            (Unknown, "InProgress"),
        ),
        (
            Outcome::Proven,
            LocksOutcome::Pending,
            (True, "Proven"),
            (Unknown, "InProgress"),
        ),
        (
            Outcome::Proven,
            LocksOutcome::Released,
            (True, "Proven"),
            (True, "Released"),
        ),
        (
            Outcome::Proven,
            LocksOutcome::Kept,
            (True, "Proven"),
            (False, "LocksKept"),
        ),
        (
            Outcome::Proven,
            LocksOutcome::NotConfirmed,
            (True, "Proven"),
            (False, "ReleaseNotConfirmed"),
        ),
        (
            Outcome::NotProven,
            LocksOutcome::Kept,
            (False, "NotProven"),
            (False, "LocksKept"),
        ),
        (
            Outcome::CalledOff,
            LocksOutcome::Kept,
            (False, "CalledOff"),
            (False, "LocksKept"),
        ),
        (
            Outcome::DryRun,
            LocksOutcome::Kept,
            (False, "DryRun"),
            (False, "LocksKept"),
        ),
        (
            Outcome::Refused(RefusalReason::PathsRemain),
            LocksOutcome::Kept,
            (False, "PathsRemain"),
            (False, "LocksKept"),
        ),
        (
            Outcome::Refused(RefusalReason::SanlockUnavailable),
            LocksOutcome::Kept,
            (False, "SanlockUnavailable"),
            (False, "SanlockUnavailable"),
        ),
    ];
    for (outcome, locks, fenced, released) in cases {
        let part = part(&fence(outcome.clone(), locks));
        assert_eq!(says_of(&part, "Fenced"), fenced, "{outcome:?} {locks:?}");
        assert_eq!(
            says_of(&part, "LocksReleased"),
            released,
            "{outcome:?} {locks:?}"
        );
    }
}

#[test]
fn proof_is_said_before_the_locks_are_released_and_only_with_proof() {
    let mut report = fence(Outcome::InProgress, LocksOutcome::Pending);
    report.steps[1].result = report::StepResult::Done;
    assert_eq!(
        says_of(&part(&report), "Fenced"),
        (ConditionStatus::True, "Proven")
    );
    Arc::make_mut(&mut report.volume_groups[0].devices)
        .push(device("two", report::DeviceOutcome::Planned));
    assert_eq!(
        says_of(&part(&report), "Fenced"),
        (ConditionStatus::Unknown, "InProgress")
    );
    report.steps.clear();
    report.volume_groups.clear();
    assert_eq!(
        says_of(&part(&report), "Fenced"),
        (ConditionStatus::Unknown, "InProgress")
    );
}

#[test]
fn transitions_keep_their_time_and_the_same_report_gives_the_same_status() {
    let first = part(&fence(Outcome::InProgress, LocksOutcome::Pending));
    let again = part_at(
        &fence(Outcome::InProgress, LocksOutcome::Pending),
        &first,
        at(300),
    );
    assert_eq!(first, again);
    let done = part_at(
        &fence(Outcome::Proven, LocksOutcome::Pending),
        &first,
        at(300),
    );
    assert_eq!(
        find(&done.conditions, "Fenced")
            .unwrap()
            .last_transition_time,
        at(300)
    );
    assert_eq!(
        find(&done.conditions, "LocksReleased")
            .unwrap()
            .last_transition_time,
        at(200)
    );
}

#[test]
fn times_come_from_the_beginning_of_the_fence() {
    let mut report = fence(Outcome::Proven, LocksOutcome::Released);
    report.finished_after = Some(Duration::from_millis(1500));
    let node = part(&report).node.unwrap();
    assert_eq!(node.started_at, Some(at(100)));
    assert_eq!(
        node.finished_at,
        Some(Timestamp::from_millisecond(101_500).unwrap())
    );
    assert_eq!(node.watchdog.unwrap().budget_milliseconds, Some(100_000));
    assert_eq!(node.steps[0].took_milliseconds, Some(2));
}

#[test]
fn lists_are_bounded_and_those_that_fell_short_come_first() {
    let mut report = fence(Outcome::NotProven, LocksOutcome::Kept);
    let devices = (0..200).map(|i| device(&format!("d{i}"), report::DeviceOutcome::Error));
    let mut devices: Vec<_> = devices.collect();
    devices[150].outcome = report::DeviceOutcome::NotProven;
    report.volume_groups[0].devices = devices.into();
    report.steps = (0..500)
        .map(|_| step(StepKind::Swap, report::StepResult::Done))
        .collect();
    report.message = "ü".repeat(5000);
    let part = part(&report);
    let node = part.node.unwrap();
    let group = &node.volume_groups[0];
    assert_eq!((group.devices.len(), group.devices_omitted), (64, 136));
    assert_eq!((group.devices_total, group.devices_proven), (200, 199));
    assert_eq!(group.devices[0].name, "d150");
    assert_eq!(node.steps.len(), 128);
    assert_eq!(part.conditions[0].message.chars().count(), 4096);
}

#[test]
fn a_refusal_that_waits_says_so_and_has_no_times() {
    let waits = part(&fence(
        Outcome::Refused(RefusalReason::NothingAffected),
        LocksOutcome::Kept,
    ));
    assert!(
        waits.conditions[0].message.contains("looks again"),
        "{}",
        waits.conditions[0].message
    );
    let node = waits.node.unwrap();
    assert_eq!(
        (node.started_at, node.finished_at, node.watchdog),
        (None, None, None)
    );
    let stays = part(&fence(
        Outcome::Refused(RefusalReason::VolumeGroupUnknown),
        LocksOutcome::Kept,
    ));
    assert!(!stays.conditions[0].message.contains("looks again"));
}

#[test]
fn an_edit_half_way_is_told() {
    let before = AgentPart::default();
    let context = Context {
        generation: 3,
        current_generation: 4,
        started: at(1),
        now: at(2),
        before: &before,
    };
    let part = from_report(&fence(Outcome::InProgress, LocksOutcome::Pending), context);
    assert!(part.conditions[0].message.contains("spec was changed"));
    assert_eq!(part.conditions[0].observed_generation, Some(3));
    assert_eq!(part.node.unwrap().observed_generation, 3);
}

#[test]
fn another_request_is_named() {
    let part = crate::agent::outlived::governed("older", 1, at(1), &AgentPart::default());
    assert_eq!(
        says_of(&part, "Fenced"),
        (ConditionStatus::False, "OtherRequestGoverns")
    );
    assert!(
        part.conditions[0]
            .message
            .contains("kubectl delete sfr older")
    );
}

fn reasons(before: Option<&FenceReport>, now: &FenceReport) -> Vec<(&'static str, bool)> {
    happened(before, now)
        .into_iter()
        .map(|h| (h.reason, h.warning))
        .collect()
}

#[test]
fn events_come_with_changes_only() {
    let began = fence(Outcome::InProgress, LocksOutcome::Pending);
    let proven = fence(Outcome::Proven, LocksOutcome::Pending);
    let released = fence(Outcome::Proven, LocksOutcome::Released);
    assert_eq!(reasons(None, &began), [("FenceBegan", false)]);
    assert_eq!(reasons(Some(&began), &began), []);
    assert_eq!(reasons(Some(&began), &proven), [("Fenced", false)]);
    assert_eq!(
        reasons(Some(&proven), &released),
        [("LocksReleased", false)]
    );
    assert_eq!(reasons(Some(&released), &released), []);
    let failed = fence(Outcome::NotProven, LocksOutcome::Kept);
    assert_eq!(reasons(Some(&began), &failed), [("FenceNotProven", true)]);
    let stuck = fence(Outcome::Proven, LocksOutcome::NotConfirmed);
    assert_eq!(reasons(Some(&proven), &stuck), [("LocksNotReleased", true)]);
    let refused = fence(
        Outcome::Refused(RefusalReason::PathsRemain),
        LocksOutcome::Kept,
    );
    assert_eq!(reasons(None, &refused), [("FenceRefused", true)]);
}
