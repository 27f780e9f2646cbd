//! Orders on the simulated node, after a kill hook that was killed in its fence.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::agent::hook;
use crate::fence::order::Selection;
use crate::host::Bell;
use crate::host::simulated::{Daemon, Group, InFlight, Layout, Simulation, State, uuid_of};

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

    /// Two volume groups, of which the first one's I/O does not end.
    fn hanging() -> Self {
        let groups = vec![Group::target("a"), Group::target("b")];
        let node = Simulation::new(&Layout { groups });
        node.state(|s| s.device("a-lv0").expect("a device").in_flight = InFlight::Forever);
        Self {
            node,
            state: tempfile::tempdir().expect("a directory"),
        }
    }

    /// Another process fences; whether it came to an end.
    fn another(&self, order: &Order) -> bool {
        let (host, inventory) = (self.node.host(), self.node.inventory());
        catch_unwind(AssertUnwindSafe(|| {
            let mut journal = self.journal();
            executor::run(
                &host,
                &mut journal,
                order,
                inventory,
                &|| false,
                &mut |_| (),
            )
        }))
        .is_ok()
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
                Ok(Said::GaveWay(known, record)) => {
                    assert_eq!(known.report.outcome, Outcome::NotProven);
                    assert!(record.unfinished() && record.given_up());
                    of.insert(format!("{} gave way", known.order.name));
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

fn of(vg: &str) -> Order {
    Order {
        name: format!("request-{vg}"),
        uid: format!("uid-{vg}"),
        volume_groups: Selection::Named(vec![vg.into()]),
        drain_timeout: Duration::from_secs(20),
        ..Order::default()
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

#[test]
fn who_lost_its_turn_says_who_has_it_and_calls_it_no_bug() {
    let bench = Bench::hanging();
    let host = bench.node.host();
    let (actor, mut said) = Actor::new(host.clone(), bench.journal());
    actor.begin(of("a")).expect("a thread");
    let wait = || {
        let soon = host.system.monotonic() + Duration::from_secs(1);
        host.system.wait(&Bell::default(), 0, soon);
    };
    (0..4).for_each(|_| wait());
    let hook = Turn::take(bench.state.path(), "kill-hook", Duration::ZERO).expect("take");
    let from = format!("agent {}", std::process::id());
    assert_eq!(hook.taken_from, Some(from));
    let by = (0..20).find_map(|_| {
        wait();
        std::iter::from_fn(|| said.try_recv().ok()).find_map(|s| match s {
            Said::TakenOver(by) => Some(by),
            Said::Progress(_) => None,
            other => panic!("{other:?}"),
        })
    });
    let ends = crate::agent::desk::Ends::TakenOver(by.expect("it is told")).to_string();
    let who = format!("kill-hook {} fences on this node now", std::process::id());
    assert!(ends.contains(&who) && !ends.contains("bug"), "{ends}");
}

#[test]
fn a_fence_that_another_process_gave_up_does_not_come_before_an_order() {
    let bench = Bench::hanging();
    // Without a watchdog it ends at its deadline.
    bench.node.state(|s| s.wdmd = Daemon::Dead);
    let host = bench.node.host();
    let inventory = observe_to_fence(&host).expect("an inventory");
    let report = executor::run(
        &host,
        &mut bench.journal(),
        &of("a"),
        inventory,
        &|| false,
        &mut |_| (),
    );
    assert_eq!(report.outcome, Outcome::NotProven);
    let began = bench.node.now();
    let (report, told_of) = bench.carry_out(&of("b"));
    assert_eq!(report.outcome, Outcome::Proven, "{}", report.message);
    assert_eq!(told_of, BTreeSet::from(["request-b".to_owned()]));
    assert!(report.started < crate::fence::Monotonic(began + Duration::from_secs(2)));
    let set_aside = bench.journal().set_aside().expect("read");
    assert_eq!(set_aside.len(), 1);
    assert!(set_aside[0].unfinished() && set_aside[0].begun.order == of("a"));
}

#[test]
fn the_fence_of_a_killed_process_comes_first_and_gives_way_when_it_is_given_up() {
    let bench = Bench::hanging();
    bench.node.at(Duration::from_secs(1004), State::kill_now);
    assert!(!bench.another(&of("a")) && bench.node.restart_agent());
    let (report, told_of) = bench.carry_out(&of("b"));
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    let all = ["request-a", "request-a gave way", "request-b"];
    assert_eq!(told_of, all.map(str::to_owned).into());
    // It had the time that it was granted, and no more.
    let began = report.started.0.as_secs();
    assert!((1024..1030).contains(&began), "{began}");
    let set_aside = bench.journal().set_aside().expect("read");
    assert_eq!(set_aside.len(), 1);
    assert!(bench.node.state(|s| s.held(&uuid_of("a"))));
}
