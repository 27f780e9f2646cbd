//! Signs of life of a fence, for whoever waits for its turn.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Bench;
use super::bench::seconds;
use crate::agent::executor::{run, telling};
use crate::agent::journal::Turn;
use crate::agent::observe::observe;
use crate::fence::report::Outcome;
use crate::host::simulated::{Group, InFlight, Layout};

const DEVICES: u32 = 8;

fn bench() -> Bench {
    Bench::whatever_paths(&Layout {
        groups: vec![Group {
            linear: DEVICES,
            ..Group::target("vg1")
        }],
    })
}

/// All goes on around it: lists are made, queueing is looked after, what is missing is told.
#[test]
fn a_fence_gives_signs_for_what_it_gets_done_and_none_while_it_hangs() {
    let bench = bench();
    bench.node.state(|s| {
        s.device("vg1-lv3").expect("a device").in_flight = InFlight::Until(seconds(1040));
    });
    let inventory = bench.node.inventory();
    let mut journal = bench.journal().0;
    let turn = Turn::take(bench.directory.path(), "agent", Duration::ZERO);
    journal.hold(turn.expect("take"));
    let signs = journal.signs();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for at in [1010, 1038] {
        let (signs, seen) = (signs.clone(), Arc::clone(&seen));
        bench.node.at(seconds(at), move |_| {
            seen.lock().expect("lock").push(signs.given());
        });
    }
    let host = bench.node.host();
    let order = &bench.order;
    let never = || false;
    let report = run(&host, &mut journal, order, inventory, &never, &mut |_| ());
    assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
    let seen = seen.lock().expect("lock").clone();
    let [worked, hung] = seen[..] else {
        panic!("{seen:?}")
    };
    let devices = u64::from(DEVICES);
    assert!(worked >= devices - 1, "{seen:?}");
    assert_eq!(worked, hung, "it got nothing done");
    assert!(signs.given() > hung, "it was proven");
    bench.check();
}

#[test]
fn a_look_gives_a_sign_for_every_device() {
    let bench = bench();
    let mut journal = bench.journal().0;
    let turn = Turn::take(bench.directory.path(), "agent", Duration::ZERO);
    journal.hold(turn.expect("take"));
    let signs = journal.signs();
    observe(&telling(&bench.node.host(), &signs)).expect("an inventory");
    let devices = u64::from(DEVICES);
    assert!(signs.given() >= devices, "{}", signs.given());
}
