//! Orders on the simulated node, after a kill hook that was killed in its fence.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::agent::hook;
use crate::host::simulated::{Group, Layout, Simulation, uuid_of};

struct Bench {
    node: Simulation,
    state: tempfile::TempDir,
}

impl Bench {
    /// A hook was killed at its nth call.
    fn killed_at(call: u64) -> Self {
        let groups = vec![Group::target("vg1"), Group::bystander("other", true)];
        let me = Self {
            node: Simulation::new(&Layout { groups }),
            state: tempfile::tempdir().expect("a directory"),
        };
        let (host, inventory) = (me.node.host(), me.node.inventory());
        me.node.kill_at_call(call);
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let order = hook::order("vg1", 1);
            executor::run(
                &host,
                &mut me.journal(),
                &order,
                inventory,
                &|| false,
                &mut |_| (),
            )
        }));
        assert!(me.node.restart_agent(), "it was not killed");
        me
    }

    /// A hook was killed past the point of no return, with every volume still open.
    fn half_way() -> Self {
        let mut tries = (1..40).map(Self::killed_at);
        let half_way = |b: &Self| b.unfinished() && !b.open().is_empty();
        tries.find(half_way).expect("such a moment")
    }

    fn journal(&self) -> Journal {
        let boot_id = self.node.host().system.boot_id().expect("boot ID");
        Journal::open(self.state.path(), &boot_id).expect("open").0
    }

    fn unfinished(&self) -> bool {
        let left = self.journal().left().expect("read");
        left.is_some_and(|r| r.unfinished())
    }

    fn open(&self) -> Vec<String> {
        self.node.state(|s| s.not_fenced(&uuid_of("vg1")))
    }

    /// What an order comes to, and whose fences were told of on the way.
    fn carry_out(&self, order: &Order) -> (FenceReport, BTreeSet<String>) {
        let host = self.node.host();
        let (actor, mut said) = Actor::new(host.clone(), self.journal());
        actor.begin(order.clone()).expect("a thread");
        let (mut left, mut of) = (600, BTreeSet::new());
        loop {
            match said.try_recv() {
                Ok(Said::Ended(known)) => return (known.report, of),
                Ok(Said::Progress(known)) => {
                    of.insert(known.order.name);
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {
                    // The simulation's time stands still while anybody of it does anything else.
                    let soon = host.system.monotonic() + Duration::from_secs(1);
                    host.system.wait(&Bell::default(), 0, soon);
                    left -= 1;
                    assert!(left > 0, "it does not end");
                }
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        assert_eq!(self.node.violations(), Vec::<String>::new());
        self.node.end();
    }
}

fn request(dry_run: bool) -> Order {
    Order {
        name: "request".into(),
        uid: "request".into(),
        dry_run,
        ..hook::order("vg1", 2)
    }
}

#[test]
fn a_dry_run_completes_no_fence_of_another_process() {
    let bench = Bench::half_way();
    let (open, before) = (bench.open(), bench.node.log());
    let (report, of) = bench.carry_out(&request(true));
    assert_eq!(report.outcome, Outcome::DryRun, "{}", report.message);
    assert_eq!(of, BTreeSet::from(["request".to_owned()]));
    assert_eq!(bench.open(), open);
    assert_eq!(bench.node.log(), before);
    assert!(bench.unfinished(), "it is left to who may complete it");
}

#[test]
fn an_order_completes_the_fence_of_another_process_first() {
    let bench = Bench::half_way();
    let (_, of) = bench.carry_out(&request(false));
    assert!(of.contains("kill-hook of vg1"), "{of:?}");
    assert_eq!(bench.open(), Vec::<String>::new());
    assert!(!bench.unfinished());
}

#[test]
fn a_look_that_hangs_does_not_keep_journal_and_turn() {
    let node = Simulation::new(&Layout::default());
    node.state(|s| s.listing_hangs = true);
    let state = tempfile::tempdir().expect("a directory");
    let journal = Journal::open(state.path(), "boot").expect("open").0;
    let host = node.host();
    let (actor, mut said) = Actor::new(host.clone(), journal);
    let order = crate::agent::hook::order("vg1", 1);
    actor.begin(order).expect("a thread");
    let until = host.system.monotonic() + LOOK + Duration::from_secs(1);
    host.system.wait(&Bell::default(), 0, until);
    let ended = std::iter::from_fn(|| said.try_recv().ok())
        .find(|s| matches!(s, Said::Ended(k) if matches!(k.report.outcome, Outcome::Refused(_))));
    assert!(ended.is_some());
    assert!(Turn::take(state.path(), "another", Duration::ZERO).is_ok());
    node.end();
}
