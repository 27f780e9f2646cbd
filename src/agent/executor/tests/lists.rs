//! When a fence lists the devices while it swaps.

use std::time::Duration;

use super::Bench;
use crate::fence::Monotonic;
use crate::fence::report::{Outcome, StepKind};
use crate::host::simulated::{Group, InFlight, Layout};

/// Milliseconds from the begin of the swap to each list, where the devices' I/O ends so many milliseconds after it.
fn lists(volumes: u32, ends: &[u64]) -> Vec<u128> {
    lists_within(Duration::from_mins(1), volumes, ends)
}

/// The same of an order with that drain time-out.
fn lists_within(drain: Duration, volumes: u32, ends: &[u64]) -> Vec<u128> {
    let mut bench = Bench::whatever_paths(&Layout {
        groups: vec![Group {
            linear: volumes,
            ..Group::target("vg1")
        }],
    });
    bench.order.drain_timeout = drain;
    let begins = bench.node.now();
    let after = |ms: u64| begins + Duration::from_millis(ms);
    bench.node.state(|s| {
        for (at, ms) in ends.iter().enumerate() {
            let device = s.device(&format!("vg1-lv{at}")).expect("a device");
            device.in_flight = InFlight::Until(after(*ms));
        }
        s.lists = Some(Vec::new());
    });
    let report = bench.fence();
    assert_eq!(report.outcome, Outcome::Proven, "{}", report.message);
    let swap = report.steps.iter().find(|s| s.kind == StepKind::Swap);
    let began = swap.and_then(|s| s.at).expect("it began");
    let since = |at: &Monotonic| at.since(report.started + began).as_millis();
    bench
        .node
        .state(|s| s.lists.iter().flatten().map(since).collect())
}

#[test]
fn the_first_list_is_the_proof_as_long_as_devices_get_settled() {
    let steadily: Vec<u64> = (1..=18).map(|n| n * 100).collect();
    assert_eq!(lists(2000, &steadily), [1800]);
    // A millisecond for each is what they may take, all going well.
    let for_long: Vec<u64> = (1..=30).map(|n| n * 100).collect();
    let [first, ..] = lists(2000, &for_long)[..] else {
        panic!("no list");
    };
    assert!((2000..=2100).contains(&first), "{first}");
    // So few take no longer than a second, all going well.
    let [first, ..] = lists(20, &steadily)[..] else {
        panic!("no list");
    };
    assert!((1000..1800).contains(&first), "{first}");
}

#[test]
fn a_device_that_hangs_is_not_waited_for() {
    let lists = lists(2000, &[1900]);
    let (first, last) = (lists.first(), lists.last());
    assert!(
        first.is_some_and(|at| (1000..1200).contains(at)),
        "{lists:?}"
    );
    assert!(last >= Some(&1900), "{lists:?}");
}

#[test]
fn the_devices_are_listed_in_time_before_the_deadline() {
    let for_long: Vec<u64> = (1..=30).map(|n| n * 100).collect();
    for (drain, list) in [(1, 500), (2, 1000), (6, 1500)] {
        let lists = lists_within(Duration::from_secs(drain), 2000, &for_long);
        let first = lists.first().copied().unwrap_or_default();
        assert!((list..=list + 100).contains(&first), "{drain} s: {lists:?}");
    }
}
