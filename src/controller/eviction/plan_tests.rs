use serde_json::json;

use super::*;
use crate::api::Condition;
use crate::api::eviction::AffectedPod;
use crate::controller::fixtures::{BOOT, condition, facts, fenced, request, with};

const UNKNOWN_BOOT: &str = "boot-0";

/// Proven in this boot, with these pods that hold its volumes open.
fn stands(pods: &[&str]) -> StorageFenceRequest {
    let mut request = fenced(
        request(&json!({ "workloads": "Evict" })),
        ConditionStatus::True,
        "Proven",
    );
    let status = request.status.get_or_insert_default();
    status.node = Some(
        serde_json::from_value(json!({
            "observedGeneration": 2, "bootId": BOOT, "agentVersion": "1", "startedAt": "2026-01-01T00:00:00Z",
        }))
        .unwrap(),
    );
    status.affected_pods = Some(affected(pods));
    request
}

fn affected(pods: &[&str]) -> AffectedPods {
    let pod = |uid: &&str| AffectedPod {
        uid: (*uid).to_owned(),
        volumes: vec!["san-lv0".into()],
    };
    AffectedPods {
        boot_id: BOOT.into(),
        total: pods.len().try_into().unwrap(),
        pods: pods.iter().map(pod).collect(),
        incomplete: false,
    }
}

fn found(name: &str, kind: Kind) -> Found {
    Found {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-of-{name}"),
        runs_as: if kind == Kind::Static {
            format!("hash-of-{name}")
        } else {
            format!("uid-of-{name}")
        },
        kind,
    }
}

/// Each of these keeps pods from being touched by itself.
#[test]
fn without_proof_nothing_is_evicted() {
    let asked = |request: &StorageFenceRequest| wish(request, &facts());
    let pods = ["uid-of-a"];
    assert_eq!(asked(&stands(&pods)), Wish::Evict(affected(&pods)));
    let said = |status, reason: &str| {
        let said: Condition = condition("Fenced", status, reason);
        with(stands(&pods), said)
    };
    let mut not_yet = stands(&pods);
    not_yet.status.as_mut().unwrap().conditions.clear();
    let mut given_back = stands(&pods);
    given_back.spec.fence_state = FenceState::Unfenced;
    let mut deleted = stands(&pods);
    deleted.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::controller::fixtures::at(1)),
    );
    let mut no_boot = stands(&pods);
    no_boot.status.as_mut().unwrap().node = None;
    let mut restarted = stands(&pods);
    let status = restarted.status.as_mut().unwrap();
    status.node.as_mut().unwrap().boot_id = UNKNOWN_BOOT.into();
    status.affected_pods.as_mut().unwrap().boot_id = UNKNOWN_BOOT.into();
    for (what, request) in [
        ("nothing said", not_yet),
        ("going on", said(ConditionStatus::Unknown, "InProgress")),
        ("fell short", said(ConditionStatus::False, "NotProven")),
        ("called off", said(ConditionStatus::False, "CalledOff")),
        ("refused", said(ConditionStatus::False, "PathsRemain")),
        ("given back", said(ConditionStatus::False, "Unfenced")),
        ("restarted", said(ConditionStatus::False, "NodeRestarted")),
        ("another boot", restarted),
        ("waits", said(ConditionStatus::True, "UnfenceWaiting")),
        ("to be given back", given_back),
        ("deleted", deleted),
        ("no evidence of a fence", no_boot),
    ] {
        match asked(&request) {
            Wish::Say(verdict) => assert_eq!(verdict.reason, why::NOT_FENCED, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn who_did_not_ask_for_it_is_left_alone() {
    let pods = ["uid-of-a"];
    let mut none = stands(&pods);
    none.spec.workloads = Workloads::None;
    assert_eq!(wish(&none, &facts()), Wish::Silent);
    let mut dry = stands(&pods);
    dry.spec.dry_run = true;
    assert_eq!(wish(&dry, &facts()), Wish::Silent);
}

#[test]
fn pods_of_another_boot_or_none_that_are_told_of_are_unknown() {
    let mut old = stands(&["uid-of-a"]);
    let status = old.status.as_mut().unwrap();
    status.affected_pods.as_mut().unwrap().boot_id = UNKNOWN_BOOT.into();
    let mut silent = stands(&[]);
    silent.status.as_mut().unwrap().affected_pods = None;
    let mut half = stands(&[]);
    let status = half.status.as_mut().unwrap();
    status.affected_pods.as_mut().unwrap().incomplete = true;
    for request in [old, silent, half] {
        match wish(&request, &facts()) {
            Wish::Say(verdict) => assert_eq!(verdict.reason, why::PODS_UNKNOWN),
            other => panic!("{other:?}"),
        }
    }
    match wish(&stands(&[]), &facts()) {
        Wish::Say(verdict) => assert_eq!(
            (verdict.status, verdict.reason.as_str()),
            (ConditionStatus::True, why::NOTHING_TO_EVICT)
        ),
        other => panic!("{other:?}"),
    }
}

fn on_the_node() -> Vec<Found> {
    vec![
        found("a", Kind::Evictable),
        found("b", Kind::Evictable),
        found("bystander", Kind::Evictable),
        found("going", Kind::Ending),
        found("log", Kind::DaemonSet("log".into())),
        found("proxy", Kind::Static),
        found("operator", Kind::Ours),
    ]
}

#[test]
fn the_affected_pods_are_evicted_and_no_other() {
    let affected = affected(&[
        "uid-of-a",
        "uid-of-going",
        "uid-of-log",
        "hash-of-proxy",
        "uid-of-operator",
        "uid-of-nobody",
    ]);
    let plan = plan(&affected, on_the_node());
    let names = |pods: &[Found]| pods.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan.evict), ["a"]);
    assert_eq!(names(&plan.ending), ["going"]);
    assert_eq!(names(&plan.left_alone), ["log", "proxy", "operator"]);
    assert_eq!(plan.unknown, ["uid-of-nobody"]);
}

#[test]
fn each_verdict_says_what_where_and_what_next() {
    let all = ["uid-of-a", "uid-of-b", "uid-of-log"];
    let request = stands(&all);
    let affected = affected(&all);
    let plan = plan(&affected, on_the_node());
    let [a, b] = [&plan.evict[0], &plan.evict[1]];
    let budget = "The disruption budget web needs 2 healthy pods and has 2 currently";
    let alone = "Left alone: shop/log (DaemonSet log would bring it back)";
    for (done, reason, settled, parts) in [
        (
            Done {
                evicted: vec![a.clone()],
                held: vec![(b.clone(), budget.into())],
                ..Done::default()
            },
            why::WAITING_FOR_DISRUPTION_BUDGET,
            false,
            vec![
                "1 of 3",
                "shop/b",
                budget,
                "tried again",
                "Evicted meanwhile: shop/a",
                alone,
            ],
        ),
        (
            Done {
                gone: vec![a.clone(), b.clone()],
                ..Done::default()
            },
            why::EVICTING,
            false,
            vec!["not yet ended: shop/a, shop/b", "kubectl cordon", alone],
        ),
        (
            Done {
                refused: vec![(b.clone(), "it has two budgets".into())],
                ..Done::default()
            },
            why::EVICTION_FAILED,
            false,
            vec!["shop/b", "it has two budgets", alone],
        ),
        (
            Done {
                evicted: vec![a.clone(), b.clone()],
                ..Done::default()
            },
            why::EVICTING,
            false,
            vec!["shop/a, shop/b", alone],
        ),
    ] {
        let (verdict, is_settled) = verdict(&request, &affected, &plan, &done);
        assert_eq!(verdict.reason, reason);
        assert_eq!(verdict.status, ConditionStatus::False);
        assert_eq!(is_settled, settled, "{reason}");
        for part in parts {
            assert!(verdict.message.contains(part), "{}", verdict.message);
        }
    }
}

#[test]
fn it_is_done_when_only_those_are_left_that_are_left_alone() {
    let judge = |pods: &[&str], total: i32, before: Option<&str>| {
        let mut affected = affected(pods);
        affected.total = total;
        let mut request = stands(pods);
        if let Some(before) = before {
            request = with(
                request,
                condition("WorkloadsEvicted", ConditionStatus::False, before),
            );
        }
        let plan = plan(&affected, on_the_node());
        let done = Done::default();
        let (verdict, settled) = verdict(&request, &affected, &plan, &done);
        (verdict.reason, settled, verdict.message)
    };
    let (reason, settled, message) = judge(&["uid-of-log"], 1, None);
    assert_eq!((reason.as_str(), settled), (why::NOTHING_TO_EVICT, true));
    assert!(
        message.contains("shop/log") && message.contains("cordon n1"),
        "{message}"
    );
    for before in [
        why::EVICTING,
        why::WAITING_FOR_DISRUPTION_BUDGET,
        why::EVICTED,
    ] {
        assert_eq!(
            judge(&["uid-of-log"], 1, Some(before)).0,
            why::EVICTED,
            "{before}"
        );
    }
    for before in [why::NOT_FENCED, why::LIMIT_REACHED] {
        assert_eq!(
            judge(&["uid-of-log"], 1, Some(before)).0,
            why::NOTHING_TO_EVICT
        );
    }
    // Not while somebody goes, or is to come.
    assert_eq!(judge(&["uid-of-going"], 1, None).0, why::EVICTING);
    assert_eq!(judge(&["uid-of-log"], 2, None).0, why::EVICTING);
    let (reason, settled, message) = judge(&["uid-of-nobody"], 1, None);
    assert_eq!((reason.as_str(), settled), (why::EVICTING, true));
    assert!(message.contains("uid-of-nobody"), "{message}");
}

#[test]
fn a_few_are_named_and_the_others_counted() {
    let all = (0..8).map(|n| format!("p{n}"));
    assert_eq!(names(all), "p0, p1, p2, p3, p4 and 3 more");
}
