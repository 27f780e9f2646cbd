//! A guard that has nothing to guard yet.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// What a guard told of its looks.
struct Looks {
    /// How many there were.
    all: AtomicU64,
    /// When the first saw a fence stand, in milliseconds.
    first_standing: AtomicU64,
}

#[test]
fn a_node_without_a_fence_is_seldom_looked_at_and_one_of_another_process_is_seen_soon() {
    let bench = Bench::in_use(&["vg1"]);
    let host = bench.node.host();
    let looks = Arc::new(Looks {
        all: AtomicU64::new(0),
        first_standing: AtomicU64::new(u64::MAX),
    });
    let (told, clock) = (Arc::clone(&looks), host.clone());
    let tell = move |_: Option<News>, standing: &[Standing]| {
        told.all.fetch_add(1, Ordering::Relaxed);
        if !standing.is_empty() {
            let now = millis(clock.system.monotonic());
            told.first_standing.fetch_min(now, Ordering::Relaxed);
        }
    };
    let guard = Guard::new(host.clone(), bench.journal().standings(), Box::new(tell));
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = move || guard.run(|| stopped.load(Ordering::Relaxed));
    host.system.spawn("guard", Box::new(work)).expect("thread");
    let pass = |span: Duration| {
        let until = host.system.monotonic() + span;
        host.system.wait(&Bell::default(), 0, until);
    };
    // Nothing rings.
    pass(LATELY + SELDOM);
    let before = looks.all.load(Ordering::Relaxed);
    pass(Duration::from_mins(1));
    let idle = looks.all.load(Ordering::Relaxed) - before;
    assert!((6..=13).contains(&idle), "{idle} looks within a minute");

    // That process stands still for a moment before it notes that its fence stands.
    let other = Bench {
        node: bench.node.clone(),
        state: tempfile::tempdir().expect("a directory"),
        news: Arc::default(),
    };
    other.fence("vg1");
    pass(2 * LOOK);
    let noted = bench.state.path().join("fenced");
    std::fs::rename(other.state.path().join("fenced"), &noted).expect("noted");
    let fenced = millis(host.system.monotonic());
    pass(SPAN);
    stop.store(true, Ordering::Relaxed);
    let seen = looks.first_standing.load(Ordering::Relaxed);
    assert!(
        seen <= fenced + millis(Monotonic(LOOK + LEAST)),
        "fenced at {fenced} ms, seen at {seen} ms"
    );
}

fn millis(at: Monotonic) -> u64 {
    at.0.as_millis().try_into().expect("not that long")
}
