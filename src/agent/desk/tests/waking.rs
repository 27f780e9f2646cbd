//! When the desk thinks, if nothing happens.

use std::sync::atomic::AtomicU32;

use super::*;

/// Has the desk work as the agent does, until that is so.
fn works_until(agent: Agent<'_>, what: &str, mut so: impl FnMut() -> bool) {
    let Agent { mut desk, said, .. } = agent;
    let (stop, ended) = (CancellationToken::new(), Instant::now() + LIMIT);
    let (_calls, calls) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let stopped = stop.clone();
        let watching = async {
            while !so() {
                assert!(Instant::now() < ended, "{what}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            stop.cancel();
        };
        let working = desk.work(futures::stream::pending(), said, calls, stopped);
        let (worked, ()) = tokio::join!(working, watching);
        worked.expect("nobody dies");
    });
}

/// One that tells of so many looks, and of no other.
fn looks(bench: &Bench, times: u32) -> Observer {
    let looked = AtomicU32::new(0);
    let took = move |_| {
        while looked.fetch_add(1, Ordering::Relaxed) >= times {
            std::thread::sleep(LIMIT);
        }
    };
    let observer = Observer::start(bench.node.host(), None, LIMIT, took).expect("a thread");
    let began = Instant::now();
    while times > 0 && observer.latest().borrow().is_none() {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    observer
}

#[test]
fn what_was_left_is_decided_on_at_once_though_nothing_happens() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.desk.tools.observer = looks(&bench, 0);
    agent.requests([request("b", 0)]);
    let board = agent.desk.tools.board.clone();
    let began = Instant::now();
    works_until(agent, "a status is told", || {
        board.wanted("uid-b").is_some()
    });
    assert!(began.elapsed() < AGAIN, "{:?}", began.elapsed());
}

#[test]
fn a_fence_for_which_the_system_had_no_thread_begins_though_nothing_happens() {
    let bench = Bench::new();
    bench.cut("b");
    let mut agent = bench.agent();
    agent.desk.tools.observer = looks(&bench, 1);
    bench
        .node
        .state(|s| s.no_thread = Some(("fence".into(), 1)));
    agent.requests([request("b", 0)]);
    works_until(agent, "b is released", || !bench.held("b"));
    let left = bench.node.state(|s| s.no_thread.clone());
    assert_eq!(left, Some(("fence".into(), 0)));
    assert_eq!(bench.count("kill_vg b"), 1);
}

#[test]
fn none_begins_by_a_look_from_before_the_last_fence_ended() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let now = || bench.node.host().system.monotonic();
    // As if one had ended just then.
    let ended = now() + Duration::from_secs(3);
    agent.desk.fence_ended = ended;
    bench.cut("b");
    agent.policies(&["b"]);
    agent.until("b is released", released("b"));
    let report = report(&agent.desk, "b").expect("a report");
    assert!(report.started >= ended, "{report:#?}");
    let over = report.started + report.finished_after.expect("an end");
    assert!(agent.desk.fence_ended >= over);
}

#[test]
fn nothing_else_begins_before_one_that_only_waits_for_a_look() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let now = || bench.node.host().system.monotonic();
    agent.desk.fence_ended = now() + Duration::from_secs(4);
    bench.cut("b");
    bench.cut("c");
    agent.policies(&["b"]);
    let due = Instant::now() + Duration::from_secs(2);
    agent.until("b is due", |_| Instant::now() > due);
    agent.requests([request("c", 0)]);
    agent.until("c is released", released("c"));
    let began = |vg| report(&agent.desk, vg).map(|r| r.started);
    assert!(began("b").is_some() && began("b") < began("c"));
}

#[test]
fn a_look_that_does_not_come_is_not_waited_for_for_ever() {
    let bench = Bench::new();
    bench.cut("b");
    let mut agent = bench.agent();
    agent.desk.tools.observer = looks(&bench, 1);
    agent.policies(&["b"]);
    let ended = bench.node.host().system.monotonic();
    agent.desk.fence_ended = ended;
    agent.until("b is released", released("b"));
    let report = report(&agent.desk, "b").expect("a report");
    assert!(report.started.since(ended) >= Duration::from_secs(5));
}
