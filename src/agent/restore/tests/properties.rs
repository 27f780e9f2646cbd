//! Any node, any faults, any kill: nothing of others is touched (S2), nothing that is open or not fenced is removed, and no lockspace is joined
//! while anything of before is there (S7). The simulated node keeps its own account of all three.

use proptest::prelude::*;

use super::{Bench, seconds};
use crate::fence::unfence::UnfenceOutcome;
use crate::host::simulated::{Daemon, Group, Layout, Stack, Starting, Under};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Open(usize, u64),
    Close(usize, u64),
    Busy(usize, u32),
    Refreshed(usize, u64),
    Appears(u64),
    Paths(u32, u64),
    Lvmlockd(Daemon, u64),
    Sanlock(Daemon, u64),
    Multipathd(Daemon),
    Start(Starting),
    LvmlockWiped,
    Forgotten,
}

fn daemon() -> impl Strategy<Value = Daemon> {
    prop_oneof![Just(Daemon::Dead), Just(Daemon::Hangs), Just(Daemon::Alive)]
}

fn fault() -> impl Strategy<Value = Fault> {
    let when = 0..60_u64;
    prop_oneof![
        3 => (any::<usize>(), when.clone()).prop_map(|(d, t)| Fault::Open(d, t)),
        2 => (any::<usize>(), when.clone()).prop_map(|(d, t)| Fault::Close(d, t)),
        2 => (any::<usize>(), 1..40_u32).prop_map(|(d, n)| Fault::Busy(d, n)),
        2 => (any::<usize>(), when.clone()).prop_map(|(d, t)| Fault::Refreshed(d, t)),
        1 => when.clone().prop_map(Fault::Appears),
        3 => (0..3_u32, when.clone()).prop_map(|(n, t)| Fault::Paths(n, t)),
        1 => (daemon(), when.clone()).prop_map(|(d, t)| Fault::Lvmlockd(d, t)),
        1 => (daemon(), when).prop_map(|(d, t)| Fault::Sanlock(d, t)),
        1 => daemon().prop_map(Fault::Multipathd),
        2 => prop_oneof![Just(Starting::Fails), Just(Starting::WorksAndFails), Just(Starting::Hangs)].prop_map(Fault::Start),
        1 => Just(Fault::LvmlockWiped),
        1 => Just(Fault::Forgotten),
    ]
}

fn apply(bench: &Bench, fault: Fault) {
    let names = bench.devices("vg0");
    let pick = |n: usize| {
        names
            .get(n % names.len().max(1))
            .cloned()
            .unwrap_or_default()
    };
    let node = &bench.node;
    let at = |t: u64| node.now() + seconds(t);
    match fault {
        Fault::Open(n, t) | Fault::Close(n, t) => {
            let (name, count) = (pick(n), u32::from(matches!(fault, Fault::Open(..))));
            node.at(at(t), move |s| {
                if let Some(d) = s.device(&name) {
                    d.dm.open_count = count;
                }
            });
        }
        Fault::Busy(n, times) => {
            let name = pick(n);
            node.state(|s| {
                if let Some(d) = s.device(&name) {
                    d.busy = times;
                }
            });
        }
        Fault::Refreshed(n, t) => {
            let name = pick(n);
            node.at(at(t), move |s| s.lead_to(&name, "mpath-vg0-0"));
        }
        // LVM activates nothing without the lockspace; somebody with dmsetup may.
        Fault::Appears(t) => node.at(at(t), |s| s.add_volume("vg0", "late")),
        Fault::Paths(n, t) => node.at(at(t), move |s| {
            for d in s.devices.values_mut() {
                if d.dm.uuid.starts_with("mpath-") {
                    d.active_paths = n;
                }
            }
        }),
        Fault::Lvmlockd(how, t) => node.at(at(t), move |s| s.lvmlockd = how),
        Fault::Sanlock(how, t) => node.at(at(t), move |s| s.sanlock = how),
        Fault::Multipathd(how) => node.state(|s| s.multipathd = how),
        Fault::Start(how) => node.state(|s| s.start = how),
        Fault::LvmlockWiped => node.state(|s| s.wipe("vg0-lvmlock")),
        Fault::Forgotten => bench.forget(),
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    let stacks = prop::collection::vec(prop::sample::select(&Stack::KINDS[..]), 0..4);
    (0..4_u32, 0..3_u32, stacks, 1..3_usize, 0..3_u32).prop_map(
        |(linear, thin, stacks, maps, more)| {
            let map = Under::Map {
                active: 0,
                queueing: true,
            };
            let mut under = vec![map; maps];
            if more == 1 {
                under.push(Under::Partition {
                    active: 0,
                    queueing: true,
                });
            }
            if more == 2 {
                under.push(Under::Disk(true));
            }
            Layout {
                groups: vec![
                    Group {
                        linear: linear.max(u32::from(thin == 0)),
                        thin,
                        stacks,
                        under,
                        ..Group::target("vg0")
                    },
                    Group::bystander("other", true),
                    Group::bystander("local", false),
                ],
            }
        },
    )
}

/// The agent dies at each of these calls, one after the other, and its successor goes on.
fn killed(bench: &mut Bench, kills: &[u64]) {
    for kill in kills {
        bench.node.kill_at_call(*kill);
        for _ in 0..12 {
            if bench.try_once(&|| false).is_none() {
                break;
            }
            bench.wait(2);
        }
        bench.node.restart_agent();
        bench.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60,
        max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_un_fence_touches_nothing_else_and_joins_nothing_too_early(
        layout in layout(),
        faults in prop::collection::vec(fault(), 0..5),
        kills in prop::collection::vec(1..150_u64, 0..3),
        closed in any::<bool>(),
    ) {
        let mut bench = Bench::ready(&layout);
        let upper = bench.upper();
        if closed {
            bench.close_upper();
        }
        let others = (bench.devices("other"), bench.devices("local"));
        // What came into use after the join is none of the fence's.
        let late = faults.iter().any(|f| matches!(f, Fault::Appears(_) | Fault::Refreshed(..)));
        // Without journal and memory there is nothing to tell that a lockspace is missing, once the last device is gone.
        let forgotten = faults.iter().any(|f| matches!(f, Fault::Forgotten));
        for fault in faults {
            apply(&bench, fault);
        }
        killed(&mut bench, &kills);
        let report = bench.until_done(200);
        bench.check();
        prop_assert_eq!(others, (bench.devices("other"), bench.devices("local")));
        prop_assert!(closed || bench.upper() == upper, "what others have in a volume is theirs");
        if report.outcome == UnfenceOutcome::Done {
            let held = bench.node.state(|s| s.held(&crate::host::simulated::uuid_of("vg0")));
            prop_assert!(held || forgotten);
            if !late {
                prop_assert_eq!(bench.devices("vg0"), Vec::<String>::new());
            }
        } else {
            prop_assert!(!report.blockers.is_empty());
        }
    }
}

/// Found by the one above: a device that comes up after the last look before `vgs`, and is there before `vgchange --lockstart`.
#[test]
fn what_appears_while_lvm_looks_for_the_name_of_the_volume_group_is_in_the_way() {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    let layout = Layout {
        groups: vec![
            Group {
                linear: 1,
                thin: 0,
                under: vec![map, map],
                ..Group::target("vg0")
            },
            Group::bystander("other", true),
            Group::bystander("local", false),
        ],
    };
    let mut bench = Bench::ready(&layout);
    for fault in [Fault::Appears(26), Fault::Busy(0, 30)] {
        apply(&bench, fault);
    }
    killed(&mut bench, &[21, 61]);
    bench.until_done(200);
    bench.check();
}

/// Found by the one above: what its successor writes of it while it waits for the paths is not older than the fence.
#[test]
fn killed_again_before_the_join_it_is_joined_all_the_same() {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    for kills in [[114, 21], [115, 21], [114, 22], [113, 21]] {
        let layout = Layout {
            groups: vec![
                Group {
                    linear: 1,
                    thin: 0,
                    under: vec![map],
                    ..Group::target("vg0")
                },
                Group::bystander("other", true),
                Group::bystander("local", false),
            ],
        };
        let mut bench = Bench::ready(&layout);
        killed(&mut bench, &kills);
        let report = bench.until_done(200);
        bench.check();
        assert_eq!(report.outcome, UnfenceOutcome::Done);
        let held = bench
            .node
            .state(|s| s.held(&crate::host::simulated::uuid_of("vg0")));
        assert!(held, "{kills:?}: {report:#?}");
    }
}
