use super::*;
use crate::fence::{Monotonic, Watchdog};
use crate::host::simulated::{Group, Layout, Simulation, Under};

fn node() -> Inventory {
    let under = vec![Under::Map {
        active: 2,
        queueing: true,
    }];
    let layout = Layout {
        groups: vec![Group {
            under,
            ..Group::target("vg1")
        }],
    };
    Simulation::new(&layout).inventory()
}

fn facts() -> Facts {
    Facts {
        memory_locked: Some(true),
        host_name: Some("n1".into()),
        sanlock_version: Some(0x0501_0001),
        kill_hook: Some((true, "in force".into())),
        state_in_memory: Some(true),
        daemons: Some(vec![("lvmlockd", -1000), ("sanlock", -900)]),
    }
}

/// Verdicts that are not `Passed`, with a word that the message has to hold.
fn worse(
    inventory: Result<&Inventory, &str>,
    facts: &Facts,
) -> Vec<(&'static str, Verdict, String)> {
    let all = preflight(inventory, facts);
    assert_eq!(all.len(), 10);
    assert!(all.iter().all(|c| !c.message.is_empty()));
    all.into_iter()
        .filter(|c| c.verdict != Verdict::Passed)
        .map(|c| (c.name, c.verdict, c.message))
        .collect()
}

#[test]
fn a_node_as_it_should_be_passes() {
    assert_eq!(worse(Ok(&node()), &facts()), []);
}

#[test]
fn a_lockspace_that_only_sanlock_knows_is_told_unless_it_is_coming_or_going() {
    for (state, told) in [
        (LockspaceState::Healthy, true),
        (LockspaceState::RenewalFailing, true),
        (LockspaceState::Adding, false),
        (LockspaceState::Removing, false),
    ] {
        let mut node = node();
        let LockManager::Running(all) = &mut node.lock_manager else {
            unreachable!("both daemons answer")
        };
        all[0].vg_uuid.clear();
        all[0].state = state;
        let worse = worse(Ok(&node), &facts());
        let warns = |c: &(&str, Verdict, String)| {
            c.0 == "LockManager" && c.1 == Verdict::Warning && c.2.contains("adoptls vg1")
        };
        assert_eq!(worse.iter().any(warns), told, "{state:?} {worse:?}");
    }
}

type Change = fn(&mut Inventory, &mut Facts);

#[test]
fn each_shortcoming_is_one_check_and_says_what_to_do() {
    use Verdict::{Failed, Unknown, Warning};
    let table: [(Change, &str, Verdict, &str); 14] = [
        (
            |i, _| i.lock_manager = LockManager::LvmlockdUnavailable("no socket".into(), None),
            "LockManager",
            Failed,
            "Start it",
        ),
        (
            |i, _| i.lock_manager = LockManager::SanlockUnavailable("no socket".into(), vec![]),
            "LockManager",
            Failed,
            "sanlock does not answer",
        ),
        (
            |i, _| i.watchdog = Watchdog::default(),
            "Watchdog",
            Warning,
            "Start it",
        ),
        (
            |i, _| i.watchdog.clients.clear(),
            "Watchdog",
            Warning,
            "use_watchdog",
        ),
        (
            |i, _| i.watchdog.fire_timeout = 29,
            "KillHook",
            Warning,
            "29 s",
        ),
        (
            |_, f| f.kill_hook = Some((false, "another command".into())),
            "KillHook",
            Warning,
            "another command",
        ),
        (
            |_, f| f.kill_hook = None,
            "KillHook",
            Unknown,
            "not looked at",
        ),
        (
            |_, f| f.memory_locked = Some(false),
            "MemoryLocked",
            Warning,
            "RLIMIT_MEMLOCK",
        ),
        (
            |_, f| f.memory_locked = None,
            "MemoryLocked",
            Unknown,
            "tell",
        ),
        (
            |_, f| f.state_in_memory = Some(false),
            "StateDirectory",
            Warning,
            "/run",
        ),
        (
            |_, f| f.host_name = Some(String::new()),
            "HostName",
            Warning,
            "sanlock.conf",
        ),
        (|_, f| f.host_name = None, "HostName", Unknown, "tell"),
        (
            |_, f| f.sanlock_version = Some(0x0309_0005),
            "DeadExt",
            Warning,
            "3.9.5",
        ),
        (
            |_, f| f.sanlock_version = Some(0x0401_ffff),
            "DeadExt",
            Warning,
            "From 4.2.0",
        ),
    ];
    for (change, name, verdict, says) in table {
        let (mut inventory, mut facts) = (node(), facts());
        change(&mut inventory, &mut facts);
        let found = worse(Ok(&inventory), &facts);
        let expected = [(name, verdict)];
        let short: Vec<_> = found.iter().map(|(n, v, _)| (*n, *v)).collect();
        assert_eq!(short, expected, "{found:?}");
        assert!(found[0].2.contains(says), "{found:?}");
    }
}

#[test]
fn daemons_that_are_not_spared_are_a_warning_with_their_names() {
    for (daemons, verdict, says) in [
        (
            Some(vec![("lvmlockd", -1000), ("sanlock", -899)]),
            Verdict::Warning,
            "may end sanlock (-899) when memory runs out",
        ),
        (Some(vec![]), Verdict::Unknown, "hostPID"),
        (None, Verdict::Unknown, "/proc"),
    ] {
        let facts = Facts { daemons, ..facts() };
        let found = worse(Ok(&node()), &facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1), ("DaemonsSpared", verdict));
        assert!(found[0].2.contains(says), "{found:?}");
    }
}

#[test]
fn without_device_mapper_nothing_else_is_made_up() {
    let found = worse(Err("no such file"), &facts());
    let short: Vec<_> = found.iter().map(|(n, v, _)| (*n, *v)).collect();
    assert_eq!(
        short,
        [
            ("DeviceMapper", Verdict::Failed),
            ("LockManager", Verdict::Unknown),
            ("Watchdog", Verdict::Unknown),
            ("Queueing", Verdict::Unknown),
        ]
    );
    assert!(found[0].2.contains("no such file") && found[0].2.contains("privileged"));
}

#[test]
fn a_node_without_a_lockspace_has_an_idle_watchdog() {
    let mut inventory = node();
    inventory.lock_manager = LockManager::Running(vec![]);
    inventory.watchdog.clients.clear();
    assert_eq!(worse(Ok(&inventory), &facts()), []);
    inventory.watchdog.clients = vec![("x".into(), Monotonic::default())];
    assert_eq!(worse(Ok(&inventory), &facts()), []);
}

#[test]
fn a_map_that_does_not_queue_is_named() {
    let under = vec![Under::Map {
        active: 2,
        queueing: false,
    }];
    let layout = Layout {
        groups: vec![Group {
            under,
            ..Group::target("vg1")
        }],
    };
    let inventory = Simulation::new(&layout).inventory();
    let all = preflight(Ok(&inventory), &facts());
    let queueing = all.iter().find(|c| c.name == "Queueing").unwrap();
    assert!(queueing.message.contains("mpath-vg1-0"), "{queueing:?}");
}
