//! Any node, any faults, any kill: nothing is released without proof (S1), and nothing else is touched (S2).

use proptest::prelude::*;

use super::Bench;
use super::bench::seconds;
use crate::fence::report::{LocksOutcome, Outcome};
use crate::host::simulated::{Daemon, Dropping, Group, InFlight, Layout, Stack, Under, uuid_of};

fn under() -> impl Strategy<Value = Under> {
    prop_oneof![
        (0..2_u32, any::<bool>()).prop_map(|(active, queueing)| Under::Map { active, queueing }),
        (0..2_u32, any::<bool>())
            .prop_map(|(active, queueing)| Under::Partition { active, queueing }),
        any::<bool>().prop_map(Under::Disk),
    ]
}

fn group(at: usize) -> impl Strategy<Value = Group> {
    (
        any::<bool>(),
        any::<bool>(),
        0..5_u32,
        0..3_u32,
        prop::collection::vec(prop::sample::select(&Stack::KINDS[..]), 0..4),
        prop::collection::vec(under(), 1..4),
        0..140_u64,
    )
        .prop_map(
            move |(target, shared, linear, thin, stacks, under, renewed_ago)| Group {
                name: format!("vg{at}"),
                target,
                shared: shared || target,
                linear,
                thin,
                stacks,
                under,
                renewed_ago,
            },
        )
}

fn layout() -> impl Strategy<Value = Layout> {
    (group(0), group(1), group(2)).prop_map(|(a, b, c)| Layout {
        // At least one to be fenced.
        groups: vec![
            Group {
                target: true,
                shared: true,
                ..a
            },
            b,
            c,
        ],
    })
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Drain(usize, Option<u64>),
    Interrupts(usize, u32),
    Busy(usize, u32),
    NoMemory(usize, u32),
    NoThread(u32),
    Removed(usize, u64),
    Appears(u64),
    Reverted(usize, u64),
    Requeue(u64),
    Lvmlockd(Daemon, u64),
    Sanlock(Daemon, u64),
    Wdmd(Daemon, u64),
    Multipathd(Daemon),
    Drop(Dropping),
    Rejoined(u64),
    Suspended(usize),
    NoGeneration,
}

fn daemon() -> impl Strategy<Value = Daemon> {
    prop_oneof![Just(Daemon::Dead), Just(Daemon::Hangs)]
}

fn fault() -> impl Strategy<Value = Fault> {
    let when = 0..12_u64;
    prop_oneof![
        4 => (any::<usize>(), prop::option::weighted(0.8, 1..100_u64)).prop_map(|(d, t)| Fault::Drain(d, t)),
        2 => (any::<usize>(), 1..5_u32).prop_map(|(d, n)| Fault::Interrupts(d, n)),
        2 => (any::<usize>(), 1..5_u32).prop_map(|(d, n)| Fault::Busy(d, n)),
        1 => (any::<usize>(), prop_oneof![1..5_u32, Just(u32::MAX)]).prop_map(|(d, n)| Fault::NoMemory(d, n)),
        1 => prop_oneof![1..5_u32, Just(u32::MAX)].prop_map(Fault::NoThread),
        2 => (any::<usize>(), when.clone()).prop_map(|(d, t)| Fault::Removed(d, t)),
        2 => when.clone().prop_map(Fault::Appears),
        2 => (any::<usize>(), when.clone()).prop_map(|(d, t)| Fault::Reverted(d, t)),
        2 => when.clone().prop_map(Fault::Requeue),
        1 => (daemon(), when.clone()).prop_map(|(d, t)| Fault::Lvmlockd(d, t)),
        1 => (daemon(), when.clone()).prop_map(|(d, t)| Fault::Sanlock(d, t)),
        1 => (daemon(), when.clone()).prop_map(|(d, t)| Fault::Wdmd(d, t)),
        1 => daemon().prop_map(Fault::Multipathd),
        1 => prop_oneof![Just(Dropping::NeverAnswers), Just(Dropping::Ignored)].prop_map(Fault::Drop),
        1 => when.prop_map(Fault::Rejoined),
        2 => any::<usize>().prop_map(Fault::Suspended),
        1 => Just(Fault::NoGeneration),
    ]
}

fn apply(bench: &Bench, fault: Fault) {
    let node = &bench.node;
    let pick = |n: usize| {
        node.state(|s| {
            let targets = s.targets.clone();
            let ours = |u: &str| targets.iter().any(|t| u.starts_with(&format!("LVM-{t}")));
            let devices: Vec<_> = s
                .devices
                .values()
                .filter(|d| ours(&d.dm.uuid) && !d.dm.name.ends_with("-lvmlock"))
                .map(|d| d.dm.dev)
                .collect();
            devices
                .get(n % devices.len().max(1))
                .copied()
                .unwrap_or_default()
        })
    };
    let at = |t: u64| seconds(1000 + t);
    match fault {
        Fault::Drain(n, t) => {
            let dev = pick(n);
            let until = t.map_or(InFlight::Forever, |t| InFlight::Until(at(t)));
            node.state(|s| {
                if let Some(d) = s.devices.get_mut(&dev) {
                    d.in_flight = until;
                }
            });
        }
        Fault::Interrupts(n, times) => {
            let dev = pick(n);
            node.state(|s| {
                if let Some(d) = s.devices.get_mut(&dev) {
                    d.interrupts = times;
                }
            });
        }
        Fault::Busy(n, times) => {
            let dev = pick(n);
            node.state(|s| {
                if let Some(d) = s.devices.get_mut(&dev) {
                    d.busy = times;
                }
            });
        }
        Fault::NoMemory(n, times) => {
            let dev = pick(n);
            node.state(|s| {
                if let Some(d) = s.devices.get_mut(&dev) {
                    d.no_memory = times;
                }
            });
        }
        Fault::NoThread(times) => node.state(|s| s.no_thread = Some(("swap".into(), times))),
        Fault::Removed(n, t) => {
            let dev = pick(n);
            // The kernel does not remove what is open, as a device below another one is.
            node.at(at(t), move |s| {
                if !s.devices.values().any(|d| d.dm.deps.contains(&dev)) {
                    s.devices.remove(&dev);
                }
            });
        }
        // Nothing is activated any more once the locks are frozen; a device without a lock may still be.
        Fault::Appears(t) => node.at(at(t), |s| {
            if s.held(&uuid_of("vg0")) {
                s.add_volume("vg0", "late");
            }
        }),
        Fault::Reverted(n, t) => {
            let dev = pick(n);
            let old = node.state(|s| s.devices.get(&dev).map(|d| d.dm.clone()));
            node.at(at(t), move |s| {
                if let (Some(d), Some(old)) = (s.devices.get_mut(&dev), old) {
                    d.dm.targets = old.targets;
                    d.dm.deps = old.deps;
                    s.disturbed.insert(dev);
                }
            });
        }
        Fault::Requeue(t) => node.at(at(t), crate::host::simulated::State::requeue_now),
        Fault::Lvmlockd(how, t) => node.at(at(t), move |s| s.lvmlockd = how),
        Fault::Sanlock(how, t) => node.at(at(t), move |s| s.sanlock = how),
        Fault::Wdmd(how, t) => node.at(at(t), move |s| s.wdmd = how),
        Fault::Multipathd(how) => node.state(|s| s.multipathd = how),
        Fault::Drop(how) => node.state(|s| s.drop = how),
        Fault::Rejoined(t) => node.at(at(t), |s| s.rejoin(&uuid_of("vg0"))),
        Fault::Suspended(n) => {
            let dev = pick(n);
            node.state(|s| s.leave_suspended(dev));
        }
        Fault::NoGeneration => node.state(|s| s.tells_generation = false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300,
        // A failure is to be told while somebody still waits for it.
        max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_released_without_proof_and_nothing_else_is_touched(
        layout in layout(),
        faults in prop::collection::vec(fault(), 0..5),
        kills in prop::collection::vec(1..150_u64, 0..3),
    ) {
        let mut bench = Bench::whatever_paths(&layout);
        bench.order.drain_timeout = seconds(30);
        // Tables that an administrator puts back after the proof are the guard's business, not the executor's.
        let reverts = faults.iter().any(|f| matches!(f, Fault::Reverted(..) | Fault::Appears(_)));
        for fault in faults {
            apply(&bench, fault);
        }
        let mut report = None;
        for kill in kills.into_iter().map(Some).chain([None]) {
            if let Some(at) = kill {
                bench.node.kill_at_call(at);
            }
            report = bench.try_fence();
            let killed = bench.node.restart_agent();
            if !killed {
                break;
            }
        }
        let report = report.expect("the last agent was not killed");
        bench.check();
        let targets: Vec<&str> = layout.groups.iter().filter(|g| g.target).map(|g| g.name.as_str()).collect();
        if report.outcome == Outcome::Proven && !reverts {
            for vg in &targets {
                prop_assert_eq!(bench.open(vg), Vec::<String>::new());
            }
        }
        if report.locks == LocksOutcome::Released {
            prop_assert_eq!(&report.outcome, &Outcome::Proven);
            for vg in &targets {
                prop_assert!(!bench.held(vg));
            }
        }
        if report.outcome == Outcome::NotProven {
            prop_assert_eq!(report.locks, LocksOutcome::Kept);
        }
    }

    /// An LVM command that dies half-way leaves any of its devices suspended: I/O of those above waits there.
    #[test]
    fn whatever_was_left_suspended_is_fenced(
        layout in layout(),
        suspended in prop::collection::vec(any::<usize>(), 1..5),
    ) {
        let bench = Bench::whatever_paths(&layout);
        for n in suspended {
            apply(&bench, Fault::Suspended(n));
        }
        let report = bench.fence();
        prop_assert_eq!((&report.outcome, report.locks), (&Outcome::Proven, LocksOutcome::Released));
    }
}
