//! What a fence raises in the kernel while it swaps, and gives back.

use super::Bench;
use super::bench::seconds;
use crate::agent::executor::give_back;
use crate::fence::report::Outcome;
use crate::host::simulated::{InFlight, Layout, State};

#[test]
fn grace_periods_are_expedited_while_tables_are_swapped_and_no_longer() {
    let bench = Bench::new(&Layout::default());
    bench.fence();
    let log = bench.node.log();
    let at = |what: &str| log.iter().position(|l| l.starts_with(what)).expect(what);
    let last = log
        .iter()
        .rposition(|l| l.starts_with("swap"))
        .expect("a swap");
    assert!(at("rcu_expedited 1") < at("swap"), "{log:#?}");
    assert!(last < at("rcu_expedited 0"), "{log:#?}");
    assert!(at("rcu_expedited 0") < at("drop"), "{log:#?}");
}

#[test]
fn what_its_owner_has_raised_stays_raised() {
    let bench = Bench::new(&Layout::default());
    bench.node.state(|s| s.rcu_expedited = 2);
    let report = bench.try_fence().expect("nobody killed it");
    assert_eq!(report.outcome, Outcome::Proven);
    assert_eq!(bench.node.state(|s| s.rcu_expedited), 2);
    assert_eq!(bench.count("rcu_expedited 1"), 0);
}

#[test]
fn an_agent_that_starts_gives_back_what_a_killed_one_has_raised() {
    let bench = Bench::new(&Layout::default());
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("a device").in_flight = InFlight::Forever;
    });
    bench.node.at(seconds(1004), State::kill_now);
    assert!(bench.try_fence().is_none() && bench.node.restart_agent());
    assert_eq!(bench.node.state(|s| s.rcu_expedited), 1);
    // Its note is all that tells that it was not always so.
    give_back(&bench.node.host(), &bench.journal().0);
    bench.given_back();
    // Nothing is left to be given back: what an administrator sets from now on stays.
    bench.node.state(|s| s.rcu_expedited = 1);
    give_back(&bench.node.host(), &bench.journal().0);
    assert_eq!(bench.node.state(|s| s.rcu_expedited), 1);
}

#[test]
fn a_fence_that_is_not_proven_gives_it_back_too() {
    let bench = Bench::new(&Layout::default());
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("a device").in_flight = InFlight::Forever;
    });
    let report = bench.fence();
    assert_eq!(report.outcome, Outcome::NotProven);
}
