use serde_json::json;

use super::*;
use crate::api::ConditionStatus;
use crate::controller::facts::AgentMode;
use crate::controller::fixtures::*;
use crate::controller::request::validate::validate;

fn planned(request: &StorageFenceRequest, facts: &Facts, second: i64) -> Plan {
    let verdicts = validate(request, facts, &settings(AgentMode::Resident), at(second));
    plan(request, facts, &verdicts, at(second))
}

fn store(mut request: StorageFenceRequest, plan: &Plan) -> StorageFenceRequest {
    let written = plan.write.clone().unwrap();
    let status = request.status.get_or_insert_default();
    status.phase = Some(written.phase);
    status.message = Some(written.message);
    status.observed_generation = written.observed_generation;
    for condition in written.conditions {
        crate::api::condition::set(&mut status.conditions, condition);
    }
    request
}

fn told(plan: &Plan) -> Vec<(&str, bool, bool)> {
    plan.notices
        .iter()
        .map(|n| (n.reason.as_str(), n.warning, n.on_node))
        .collect()
}

#[test]
fn a_fence_is_told_step_by_step_and_once() {
    let step = |request, status, reason: &str, expected: &[(&str, bool, bool)]| {
        let request = fenced(request, status, reason);
        let plan = planned(&request, &facts(), 2000);
        assert_eq!(told(&plan), expected, "{reason}");
        let stored = store(request, &plan);
        let again = planned(&stored, &facts(), 3000);
        assert_eq!(
            (again.write.as_ref(), again.notices.len()),
            (None, 0),
            "{reason}"
        );
        stored
    };
    let request = request(&json!({}));
    let first = planned(&request, &facts(), 2000);
    assert_eq!(told(&first), [], "Pending is not worth an event");
    let request = store(request, &first);
    let request = step(
        request,
        ConditionStatus::False,
        "InProgress",
        &[("Fencing", false, true)],
    );
    let request = with(
        request,
        condition("LocksReleased", ConditionStatus::True, "Released"),
    );
    step(
        request,
        ConditionStatus::True,
        "Proven",
        &[("Fenced", false, true)],
    );
}

#[test]
fn what_a_person_should_look_at_is_a_warning() {
    for (reason, expected) in [
        ("NotProven", ("Failed", true, true)),
        ("PathsRemain", ("Rejected", true, false)),
        ("DryRun", ("DryRunComplete", false, false)),
        ("CalledOff", ("CalledOff", false, true)),
    ] {
        let request = fenced(request(&json!({})), ConditionStatus::False, reason);
        assert_eq!(told(&planned(&request, &facts(), 2000)), [expected]);
    }
}

#[test]
fn no_agent_is_told_when_the_wait_ends_and_not_again() {
    let mut facts = facts();
    facts.agent_pods.clear();
    let request = request(&json!({}));
    let waiting = planned(&request, &facts, 2000);
    assert_eq!(told(&waiting), [("WaitingForAgent", false, false)]);
    assert!(waiting.look_again.is_some());
    let request = store(request, &waiting);
    let over = planned(&request, &facts, 2061);
    assert_eq!(told(&over), [("NoAgent", true, true)]);
    assert_eq!(over.look_again, None);
    let request = store(request, &over);
    assert_eq!(planned(&request, &facts, 4000).write, None);
}

#[test]
fn nothing_is_told_on_a_node_that_does_not_exist() {
    let mut facts = facts();
    facts.node = None;
    let request = request(&json!({}));
    assert_eq!(
        told(&planned(&request, &facts, 2000)),
        [("Rejected", true, false)]
    );
    let lost = fenced(request, ConditionStatus::False, "NotProven");
    assert_eq!(
        told(&planned(&lost, &facts, 2000)),
        [("Failed", true, false)]
    );
}
