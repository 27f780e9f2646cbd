//! More un-fences that wait than have their turn in the longest time that two looks may be apart.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::bench::order;
use super::{Bench, seconds};
use crate::agent::restore::paths::Paths;
use crate::fence::unfence::{UnfenceOutcome, UnfenceReport};
use crate::host::simulated::{Group, Layout};

/// Looks of two seconds each, and the one whose last look is longest ago goes first: more than fifteen seconds are between two looks of one.
#[test]
fn however_many_wait_all_are_given_back_when_their_paths_have_been_healthy() {
    let names: Vec<String> = (0..10).map(|n| format!("vg{n}")).collect();
    let group = |name: &String| Group {
        linear: 1,
        ..Group::target(name)
    };
    let mut bench = Bench::ready(&Layout {
        groups: names.iter().map(group).collect(),
    });
    let host = bench.node.host();
    let mut reports: BTreeMap<String, UnfenceReport> = BTreeMap::new();
    let done = |r: &UnfenceReport| r.outcome == UnfenceOutcome::Done;
    let end = bench.node.now() + seconds(400);
    while bench.node.now() < end {
        let mut waiting = names.iter().map(|n| order(n));
        let waiting = waiting
            .by_ref()
            .filter(|o| !reports.get(&o.uid).is_some_and(done));
        let Some(next) = waiting.min_by_key(|o| reports.get(&o.uid).map(|r| r.looked)) else {
            break;
        };
        let others = reports
            .values()
            .filter(|r| r.order.uid != next.uid && !done(r));
        let paths = RefCell::new(Paths::of(others));
        let seen = RefCell::new(Vec::new());
        let look = || {
            let found = paths.borrow_mut().look(&host);
            seen.borrow_mut().extend(found.into_iter().flatten());
            false
        };
        bench.last = reports.get(&next.uid).cloned();
        bench.order = next.clone();
        let report = bench.try_once(&look).expect("nobody killed it");
        bench.wait(2);
        look();
        reports.insert(next.uid, report);
        for one in seen.take() {
            let of = reports.get_mut(&one.uid).expect("it was looked at");
            for group in &mut of.groups {
                group.health.clone_from(&one.health);
            }
        }
    }
    bench.check();
    assert_eq!(reports.len(), names.len());
    assert!(
        reports.values().all(done),
        "{:#?}",
        reports.values().map(|r| &r.message)
    );
}
