//! Un-fences that an earlier agent has left half-way.

use super::*;
use crate::agent::journal::Lift;
use crate::agent::restore::paths::Waiting;
use crate::api::request::{DeletionPolicy, FenceState};
use crate::fence::order::Selection;
use crate::fence::unfence::{
    GroupReport, Health, Standing, UnfenceOrder, UnfenceOutcome, UnfenceReport,
};

/// All that is left to be done is to see that the lockspace is joined.
fn half_way(bench: &Bench, vg: &str) -> Lift {
    let host = bench.node.host();
    Lift {
        lifted: Vec::new(),
        report: UnfenceReport {
            order: UnfenceOrder {
                name: vg.into(),
                uid: format!("uid-{vg}"),
                generation: 1,
                volume_groups: Selection::Named(vec![vg.into()]),
                ..UnfenceOrder::default()
            },
            boot_id: host.system.boot_id().expect("boot ID"),
            started: Some(host.system.monotonic()),
            groups: vec![GroupReport {
                standing: Standing {
                    name: vg.into(),
                    uuid: uuid_of(vg),
                    lockspace: format!("lvm_{vg}"),
                    ..Standing::default()
                },
                ..GroupReport::default()
            }],
            ..UnfenceReport::default()
        },
    }
}

#[test]
fn each_of_them_is_ended_and_the_one_at_work_goes_first() {
    let bench = Bench::new();
    let boot_id = bench.node.host().system.boot_id().expect("boot ID");
    let (journal, _) = Journal::open(bench.state.path(), &boot_id).expect("open");
    for vg in ["b", "c"] {
        journal.lifts().put(&half_way(&bench, vg)).expect("put");
    }
    drop(journal);
    let mut agent = bench.agent();
    let running = agent.desk.running.as_ref().map(|(r, _)| r.uid.clone());
    assert_eq!(running.as_deref(), Some("uid-c"));
    let known: Vec<&String> = agent.desk.lifts.keys().collect();
    assert_eq!(known, ["uid-b", "uid-c"]);
    let unfenced = |name: &str| {
        let mut request = request(name, 1);
        request.spec.fence_state = FenceState::Unfenced;
        request
    };
    agent.requests([unfenced("b"), unfenced("c")]);
    agent.until("both are given back", |d| {
        let done = |r: &UnfenceReport| r.outcome == UnfenceOutcome::Done && r.groups.len() == 1;
        d.lifts.len() == 2 && d.lifts.values().all(done)
    });
    let (journal, _) = Journal::open(bench.state.path(), &boot_id).expect("open");
    assert_eq!(journal.lifts().all().expect("read"), []);
}

/// Puts it there as an earlier agent, or an earlier attempt, would have left it.
fn leave(bench: &Bench, vg: &str) {
    journal(bench)
        .lifts()
        .put(&half_way(bench, vg))
        .expect("put");
}

fn journal(bench: &Bench) -> Journal {
    let boot_id = bench.node.host().system.boot_id().expect("boot ID");
    Journal::open(bench.state.path(), &boot_id).expect("open").0
}

/// The storage of a volume group is to be joined, and nothing else is left to be done.
fn leave_to_join(bench: &Bench, vg: &str) {
    let map = format!("mpath-{vg}-0");
    let uuid = bench.node.state(|s| {
        for lv in ["lv0", "lv1"] {
            s.deactivate(&format!("{vg}-{lv}"));
        }
        s.lockspaces.retain(|l| l.lockspace.vg_uuid != uuid_of(vg));
        s.device(&map).expect("a map").dm.uuid.to_string()
    });
    let mut left = half_way(bench, vg);
    left.report.groups[0].standing.maps = vec![(uuid, map)];
    journal(bench).lifts().put(&left).expect("put");
}

#[test]
fn one_whose_request_is_gone_is_ended_by_the_agent_that_runs() {
    let bench = Bench::new();
    leave(&bench, "b");
    leave_to_join(&bench, "c");
    bench.node.state(|s| s.start = Starting::Fails);
    let mut agent = bench.agent();
    agent.until("a step fails", |d| {
        d.lifts.get("uid-c").is_some_and(|l| l.failures > 0)
    });
    bench.node.state(|s| s.start = Starting::Works);
    // Neither has a request: they were deleted by force, and nobody has said that their storage is to stay fenced.
    agent.requests([]);
    let lifts = journal(&bench).lifts();
    agent.until("both are ended", |d| {
        lifts.all().expect("read").is_empty() && d.lifts.is_empty()
    });
    assert!(bench.held("b") && bench.held("c"));
}

/// An un-fence of `c` whose last step has failed, and that would work by now. With the request that asks for it.
fn fails_to_join(bench: &Bench) -> (Agent<'_>, StorageFenceRequest) {
    leave_to_join(bench, "c");
    bench.node.state(|s| s.start = Starting::Fails);
    let mut agent = bench.agent();
    let mut request = request("c", 1);
    request.spec.fence_state = FenceState::Unfenced;
    agent.requests([request.clone()]);
    agent.until("a step fails", |d| {
        let failed = d.lifts.get("uid-c").is_some_and(|l| l.failures > 0);
        failed && d.running.is_none()
    });
    bench.node.state(|s| s.start = Starting::Works);
    (agent, request)
}

#[test]
fn one_whose_request_is_deleted_with_retain_is_let_go_of() {
    for listed_anew in [false, true] {
        let bench = Bench::new();
        let (mut agent, mut request) = fails_to_join(&bench);
        request.spec.deletion_policy = DeletionPolicy::Retain;
        agent.desk.see(Seen::Is(Box::new(request.clone()), false));
        if listed_anew {
            agent.requests([]);
        } else {
            agent.desk.see(Seen::Gone(Box::new(request)));
        }
        let lifts = journal(&bench).lifts();
        agent.until("it is let go of", |d| {
            lifts.all().expect("read").is_empty() && d.lifts.is_empty()
        });
        assert!(!bench.held("c"), "given back");
        // Nor does the next agent go on with it.
        agent.kill();
        let agent = bench.agent();
        assert!(agent.desk.running.is_none() && agent.desk.lifts.is_empty());
    }
}

#[test]
fn one_at_work_whose_request_is_deleted_with_retain_is_interrupted_and_let_go_of() {
    let bench = Bench::new();
    let (mut agent, mut request) = fails_to_join(&bench);
    bench.node.state(|s| s.start = Starting::Hangs);
    let starts = |bench: &Bench| {
        let log = bench.node.log();
        log.iter().filter(|l| l.contains("lockstart")).count()
    };
    let before = starts(&bench);
    agent.until("it is tried again", |_| starts(&bench) > before);
    request.spec.deletion_policy = DeletionPolicy::Retain;
    agent.desk.see(Seen::Gone(Box::new(request)));
    assert!(agent.desk.runs("uid-c"), "at work");
    let began = Instant::now();
    let lifts = journal(&bench).lifts();
    agent.until("it is let go of", |d| {
        lifts.all().expect("read").is_empty() && d.lifts.is_empty()
    });
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!bench.held("c"), "given back");
}

#[test]
fn one_whose_request_had_a_fence_refused_in_between_is_ended() {
    let bench = Bench::new();
    let (mut agent, mut request) = fails_to_join(&bench);
    request.metadata.generation = Some(2);
    request.spec.fence_state = FenceState::Fenced;
    agent.desk.see(Seen::Is(Box::new(request.clone()), false));
    agent.until("it is refused", |d| {
        let refused = |k: &Known| matches!(k.report.outcome, Outcome::Refused(_));
        d.known.get("uid-c").is_some_and(refused) && d.running.is_none()
    });
    assert!(agent.desk.lifts.contains_key("uid-c"), "still half-way");
    request.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    request.metadata.finalizers = Some(vec![crate::api::UNFENCE_FINALIZER.into()]);
    agent.desk.see(Seen::Is(Box::new(request), false));
    agent.until("it is given back", |d| {
        let done = |l: &UnfenceReport| l.outcome == UnfenceOutcome::Done;
        d.lifts.get("uid-c").is_some_and(done)
    });
    assert!(bench.held("c"));
    assert_eq!(journal(&bench).lifts().all().expect("read"), []);
}

#[test]
fn one_that_was_fenced_anew_since_is_not_given_back_by_the_next_agent() {
    let bench = Bench::new();
    leave(&bench, "b");
    let mut agent = bench.agent();
    agent.until("nothing is left to be done", |d| d.running.is_none());
    leave(&bench, "b");
    bench.cut("b");
    agent.policies(&["b"]);
    agent.until("b is released", released("b"));
    agent.kill();
    bench
        .node
        .state(|s| s.device("mpath-b-0").expect("a map").active_paths = 1);
    let mut agent = bench.agent();
    let began = Instant::now();
    agent.until("some time", |desk| {
        let lifts = |(r, _): &(Running, Arc<Reins>)| r.work == Work::Unfence;
        assert!(!desk.running.as_ref().is_some_and(lifts));
        began.elapsed() > Duration::from_secs(2)
    });
    let standing = journal(&bench).standings().of(&uuid_of("b"));
    assert!(standing.expect("read").is_some(), "it stands");
}

/// A turn may take longer than two looks may be apart.
#[test]
fn what_is_seen_of_the_paths_of_those_that_wait_is_kept_for_their_turn() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut report = half_way(&bench, "b").report;
    agent.desk.lifts.insert("uid-b".into(), report.clone());
    let at = Monotonic::from_secs(7);
    let group = report.groups.remove(0);
    let health = Health::look(None, &[], at);
    let seen = Waiting {
        uid: "uid-b".into(),
        group: group.standing,
        health: health.clone(),
    };
    agent.desk.hear(Said::Paths(vec![seen])).expect("alive");
    assert_eq!(agent.desk.lifts["uid-b"].groups[0].health, health);
    assert_ne!(group.health, health);
}
