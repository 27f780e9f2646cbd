//! The hook beside a process that has the turn, and gets something done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::others::beside_another;
use super::*;
use crate::fence::report::FenceReport;

const TICK: Duration = Duration::from_millis(50);

/// Has the turn and gets something done, until `ends`. Whether it kept the turn.
fn slow(bench: &Bench, ends: impl Fn() -> bool + Send + 'static) -> std::thread::JoinHandle<bool> {
    let mut journal = bench.journal();
    let turn = Turn::take(bench.state.path(), "agent", Duration::ZERO);
    journal.hold(turn.expect("take"));
    std::thread::spawn(move || {
        let signs = journal.signs();
        while !ends() && !journal.taken_away() {
            std::thread::sleep(TICK);
            signs.give();
        }
        !journal.taken_away()
    })
}

#[test]
fn an_agent_that_is_slow_in_its_fence_keeps_its_turn() {
    // 22 s are left until the earliest reset: an eighth of it is how long it may get nothing done.
    let bench = Bench::renewed(108);
    let until = Instant::now() + Duration::from_secs(6);
    let agent = slow(&bench, move || Instant::now() >= until);
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert!(agent.join().expect("join"), "{told:?}");
    let in_its_place = told.iter().any(|t| t.contains("in its place"));
    assert!(!in_its_place, "{told:?}");
}

#[test]
fn the_fence_of_another_volume_group_is_not_waited_for_however_much_it_gets_done() {
    let bench = beside_another();
    let fenced = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&fenced);
    let agent = slow(&bench, move || ends.load(Ordering::Relaxed));
    let (verdict, told) = bench.hook();
    fenced.store(true, Ordering::Relaxed);
    assert!(matches!(verdict, Verdict::Proven(_)), "{verdict:?}");
    assert!(!agent.join().expect("join"), "it lost its turn");
    let says = |t: &String| t.contains("fences another volume group");
    assert!(told.iter().any(says), "{told:?}");
}

/// Nor is that of one that was reported as not proven, though its devices are settled one by one.
#[test]
fn one_of_another_volume_group_that_was_given_up_is_waited_for_a_moment_only() {
    let bench = beside_another();
    let mut journal = bench.journal();
    let boot_id = bench.node.host().system.boot_id().expect("boot ID");
    let (_, left) = Journal::open(bench.state.path(), &boot_id).expect("open");
    let record = left.expect("it was killed");
    journal.resume(&record).expect("written");
    journal
        .finish(&FenceReport {
            outcome: Outcome::NotProven,
            ..record.begun.report.clone()
        })
        .expect("written");
    drop(journal);
    let fenced = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&fenced);
    let agent = slow(&bench, move || ends.load(Ordering::Relaxed));
    let began = Instant::now();
    let (verdict, _) = bench.hook();
    fenced.store(true, Ordering::Relaxed);
    assert!(matches!(verdict, Verdict::Proven(_)), "{verdict:?}");
    assert!(!agent.join().expect("join"), "it lost its turn");
    // A quarter of what the watchdog leaves, at most, besides what the hook does itself.
    assert!(
        began.elapsed() < Duration::from_secs(16),
        "{:?}",
        began.elapsed()
    );
}
