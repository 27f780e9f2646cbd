//! A volume group that is joined to its lockspace again: what its fence left behind, and what came into use under new locks.

use super::super::veil::veiled;
use super::*;
use crate::fence::Lockspace;

impl Bench {
    fn join(&self) {
        self.join_as("vg1", 4);
    }

    fn join_as(&self, name: &str, generation: u64) {
        self.node.state(|s| {
            s.join(Lockspace {
                name: format!("lvm_{name}"),
                vg_name: name.into(),
                vg_uuid: uuid_of("vg1"),
                host_id: 7,
                generation: Some(generation),
                io_timeout: 10,
                last_renewal: Some(Monotonic::from_secs(1000)),
                ..Lockspace::default()
            });
        });
    }

    /// As `lvchange -an` and `-ay` do: the same UUID, and the same number.
    fn activate_anew(&self, name: &str) {
        self.node.state(|s| {
            let dm = s.device(name).expect("device").dm.clone();
            s.deactivate(name);
            s.activate(dm.dev, name, &dm.uuid, PV);
        });
    }

    fn deactivate_all(&self) {
        self.node.state(|s| {
            for name in ["vg1-lv0", "vg1-lv1", "vg1-lv2"] {
                s.deactivate(name);
            }
        });
    }

    fn stands(&self) -> bool {
        !self.journal().standings().all().expect("read").is_empty()
    }
}

#[test]
fn what_a_fence_left_behind_stays_closed_when_its_volume_group_is_joined_again() {
    for (tells, notices) in [(true, true), (true, false), (false, true), (false, false)] {
        let bench = Bench::new();
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        bench.node.state(|s| s.tells_generation = tells);
        bench.join();
        if notices {
            bench.watch(&mut guard, SPAN);
            assert_eq!(bench.reasons(), ["FencedByKillHook", "JoinedWhileFenced"]);
        }
        bench.refresh();
        bench.watch(&mut guard, SPAN);
        assert_eq!(bench.open(), Vec::<String>::new(), "{:?}", bench.reasons());
        let mut reasons = bench.reasons();
        reasons.sort_unstable();
        assert_eq!(
            reasons,
            [
                "FenceClosedAgain",
                "FenceOpened",
                "FencedByKillHook",
                "JoinedWhileFenced"
            ]
        );
        let standing = bench.standing();
        assert_eq!((standing.joined, standing.openings), (true, 1));
        // The next agent knows it too, and does not tell it again.
        bench.watch(&mut bench.guard(), SPAN);
        bench.refresh();
        bench.watch(&mut bench.guard(), SPAN);
        assert_eq!(bench.open(), Vec::<String>::new());
        let joined = |r: &&&str| **r == "JoinedWhileFenced";
        assert_eq!(bench.reasons().iter().filter(joined).count(), 1);
    }
}

#[test]
fn what_came_into_use_under_new_locks_is_never_fenced() {
    for (looks, dies) in [(true, false), (false, false), (true, true)] {
        let bench = Bench::new();
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        bench.join();
        if looks {
            bench.watch(&mut guard, SPAN);
        }
        if dies {
            // Once it was seen joined, a lock manager that falls silent changes nothing.
            bench.node.state(|s| s.sanlock = Daemon::Dead);
        }
        // Between two looks, so that nothing but its table seems to have changed.
        bench.activate_anew("vg1-lv0");
        bench.watch(&mut guard, SPAN);
        assert_eq!(bench.open(), ["vg1-lv0"], "{:?}", bench.reasons());
        assert_eq!(bench.reasons(), ["FencedByKillHook", "JoinedWhileFenced"]);
        // What is still there of the fence is closed, and nothing else.
        bench.node.state(|s| s.refresh("vg1-lv1", PV));
        bench.watch(&mut guard, SPAN);
        assert_eq!(bench.open(), ["vg1-lv0"]);
        assert_eq!(bench.standing().openings, 1);
        bench.watch(&mut bench.guard(), SPAN);
        assert_eq!(bench.open(), ["vg1-lv0"]);
    }
}

/// Another host gave the fenced volume group another name; its lockspace begins to count anew.
#[test]
fn what_came_into_use_after_the_volume_group_was_renamed_is_never_fenced() {
    for generation in [1, 3, 4] {
        let bench = Bench::new();
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        bench.join_as("new", generation);
        bench.activate_anew("vg1-lv0");
        bench.watch(&mut guard, SPAN);
        assert_eq!(bench.open(), ["vg1-lv0"], "{:?}", bench.reasons());
        assert_eq!(bench.reasons(), ["FencedByKillHook", "JoinedWhileFenced"]);
    }
}

/// What is in use under new locks waits for its paths as it is configured to, and gets no errors that nobody asked for.
#[test]
fn a_map_queues_again_once_its_volume_group_was_joined_again_and_that_of_no_other() {
    for looks in [true, false] {
        let bench = Bench::of(&["vg1", "vg2"]);
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        bench.join();
        bench.activate_anew("vg1-lv0");
        if looks {
            bench.watch(&mut guard, SPAN);
        }
        bench.queue_again("vg1");
        bench.queue_again("vg2");
        bench.watch(&mut guard, SPAN * 2);
        assert_eq!((bench.queues("vg1"), bench.queues("vg2")), (true, false));
        // The next agent knows it too, and closes what the fence left behind without it.
        bench.node.state(|s| s.refresh("vg1-lv1", PV));
        bench.watch(&mut bench.guard(), SPAN);
        assert!(bench.queues("vg1"));
        assert_eq!(bench.open(), ["vg1-lv0"]);
        assert!(bench.standing().joined, "{:?}", bench.reasons());
        let told = bench.news.lock().expect("lock").clone();
        let queueing = told.iter().filter(|n| n.reason == "QueueingCameBack");
        let maps: Vec<_> = queueing.map(|n| n.note.contains("mpath-vg2-0 ")).collect();
        assert_eq!(maps, [true], "{told:?}");
    }
}

/// It was issued without a lock, and would be written when the paths return: nothing but the map's queueing holds its device open.
#[test]
fn what_waits_in_the_map_for_what_a_fence_left_behind_is_failed_and_its_device_closed() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.join();
    bench.activate_anew("vg1-lv0");
    bench.watch(&mut guard, SPAN);
    bench.queue_again("vg1");
    bench.node.state(|s| {
        let map = s.device("mpath-vg1-0").expect("map").dm.dev;
        s.refresh("vg1-lv1", map);
    });
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0"]);
    assert!(!bench.queues("vg1"));
}

#[test]
fn a_closing_that_goes_on_leaves_alone_what_came_into_use_under_new_locks() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.node.state(|s| {
        s.device("vg1-lv1").expect("device").in_flight = InFlight::Forever;
        s.refresh("vg1-lv1", PV);
    });
    bench.watch(&mut guard, SPAN);
    assert!(!guard.closing.is_empty());
    bench.join();
    bench.activate_anew("vg1-lv0");
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0", "vg1-lv1"]);
    // And one whose I/O it waits for: once it is another, there is nothing to be waited for.
    bench.activate_anew("vg1-lv1");
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0", "vg1-lv1"]);
    assert!(guard.closing.is_empty(), "{:?}", bench.reasons());
    let before = bench.node.log();
    bench.activate_anew("vg1-lv2");
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.node.log(), before);
    assert!(!bench.stands(), "nothing is left of it");
}

#[test]
fn a_fence_is_over_when_nothing_of_it_is_left_and_its_volume_group_is_joined_again() {
    for joined_first in [true, false] {
        let bench = Bench::new();
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        if joined_first {
            bench.join();
            bench.watch(&mut guard, SPAN);
            bench.deactivate_all();
        } else {
            bench.deactivate_all();
            bench.watch(&mut guard, SPAN);
            assert!(bench.stands(), "it may still be activated without a lock");
            bench.join();
        }
        bench.watch(&mut guard, SPAN);
        assert_eq!(bench.reasons().last(), Some(&"FenceLifted"));
        assert!(!bench.stands());
    }
}

#[test]
fn where_the_kernel_does_not_tell_nothing_is_closed_under_new_locks_and_people_are_told() {
    let bench = Bench::new();
    bench.node.state(|s| s.tells_sequence = false);
    let standings = bench.journal().standings();
    let forget = |s: &mut Standing| s.newest = None;
    standings.update(&uuid_of("vg1"), forget).expect("update");
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    // Without new locks everything is closed as ever.
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!((bench.open(), bench.standing().openings), (vec![], 1));
    bench.join();
    bench.activate_anew("vg1-lv0");
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0"]);
    let reasons = bench.reasons();
    assert!(
        reasons.contains(&"DeviceNotTold") && reasons.contains(&"JoinedWhileFenced"),
        "{reasons:?}"
    );
    assert_eq!(bench.standing().openings, 1);
    bench.deactivate_all();
    bench.watch(&mut guard, SPAN);
    assert!(!bench.stands());
}

#[test]
fn a_device_that_becomes_another_in_the_moment_of_its_closing_keeps_its_table() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.join();
    bench.refresh();
    let standing = bench.standing();
    let sieve = Sieve::new(&standing, &Silence::default());
    let device =
        |s: &mut crate::host::simulated::State| s.device("vg1-lv0").expect("device").clone();
    let uuid = bench.node.state(device).dm.uuid;
    let veiled = veiled(&bench.node.host(), &sieve).device_mapper;
    veiled.load_error(&uuid, 2048).expect("it is the fence's");
    bench.activate_anew("vg1-lv0");
    // Between the load and the swap: the table went with the device that it was loaded into.
    veiled.swap(&uuid).expect("a mere resume");
    assert_eq!(bench.open(), ["vg1-lv0"]);
    assert!(veiled.load_error(&uuid, 2048).is_err());
    assert_eq!(bench.node.state(device).inactive, None);
}

#[test]
fn a_lock_manager_that_is_silent_has_nothing_closed_on_a_guess() {
    for (daemon, generation) in [
        (Daemon::Dead, true),
        (Daemon::Hangs, true),
        (Daemon::Hangs, false),
    ] {
        let bench = Bench::new();
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        bench.node.state(|s| s.tells_generation = generation);
        bench.join();
        bench.node.state(|s| s.lvmlockd = daemon);
        bench.activate_anew("vg1-lv0");
        bench.watch(&mut guard, sieve::PATIENCE / 2);
        assert_eq!(bench.open(), ["vg1-lv0"], "{:?}", bench.reasons());
        // What was there before needs no lock manager to be told.
        bench.node.state(|s| s.refresh("vg1-lv1", PV));
        bench.watch(&mut guard, sieve::PATIENCE / 4);
        assert_eq!(bench.open(), ["vg1-lv0"], "{:?}", bench.reasons());
        bench.node.state(|s| s.lvmlockd = Daemon::Alive);
        bench.watch(&mut guard, 2 * sieve::PATIENCE);
        assert_eq!(bench.open(), ["vg1-lv0"], "{:?}", bench.reasons());
        assert_eq!(bench.standing().openings, 1);
    }
}

#[test]
fn a_lock_manager_that_stays_silent_has_what_came_up_closed_and_told_with_its_whole_time() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    bench.activate_anew("vg1-lv0");
    bench.watch(&mut guard, 2 * sieve::PATIENCE);
    assert_eq!(bench.open(), Vec::<String>::new(), "{:?}", bench.reasons());
    let opening = bench.standing().last_opening.expect("told");
    let told = opening.open_at_most.expect("closed");
    assert!(told >= sieve::PATIENCE, "{told:?}");
    // A guess is not noted: what it says when it speaks again counts.
    assert!(told < sieve::PATIENCE + SPAN, "{told:?}");
}

#[test]
fn a_lock_manager_that_is_silent_teaches_no_mark_and_holds_nothing_of_the_fence_open() {
    let bench = Bench::new();
    let standings = bench.journal().standings();
    // All volumes were gone when the locks were released, so that the fence could note no mark.
    let forget = |s: &mut Standing| s.newest = None;
    standings.update(&uuid_of("vg1"), forget).expect("update");
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    let mut guard = bench.guard();
    bench.watch(&mut guard, sieve::PATIENCE / 4);
    assert_eq!(bench.standing().newest, None);
    // Not told apart from what the fence left behind: closed at once.
    bench.refresh();
    bench.watch(&mut guard, sieve::PATIENCE / 4);
    assert_eq!((bench.open(), bench.standing().openings), (vec![], 1));
    bench.node.state(|s| s.lvmlockd = Daemon::Alive);
    bench.watch(&mut guard, SPAN);
    assert!(bench.standing().newest.is_some());
}

#[test]
fn what_came_up_and_went_while_the_lock_manager_was_silent_is_told_with_its_time() {
    for (joined, answers) in [(false, false), (false, true), (true, true)] {
        let bench = Bench::new();
        let mut guard = bench.guard();
        bench.watch(&mut guard, SPAN);
        if joined {
            bench.join();
        }
        bench.node.state(|s| s.lvmlockd = Daemon::Dead);
        bench.activate_anew("vg1-lv0");
        bench.watch(&mut guard, sieve::PATIENCE / 2);
        assert_eq!(bench.standing().openings, 0, "it may yet be in use");
        bench.node.state(|s| {
            s.deactivate("vg1-lv0");
            if answers {
                s.lvmlockd = Daemon::Alive;
            }
        });
        bench.watch(&mut guard, SPAN);
        let told = bench.standing();
        if joined {
            assert_eq!((told.openings, told.last_opening), (0, None));
            continue;
        }
        let opening = told.last_opening.expect("told");
        assert_eq!(
            (told.openings, opening.devices),
            (1, vec!["vg1-lv0".into()])
        );
        let open = opening.open_at_most.expect("it is over");
        assert!(
            open >= sieve::PATIENCE / 2 && open < sieve::PATIENCE,
            "{open:?}"
        );
        let reasons = bench.reasons();
        assert_eq!(reasons.iter().filter(|r| **r == "FenceOpened").count(), 1);
    }
}

#[test]
fn a_silent_lock_manager_holds_a_look_up_once_and_not_for_each_fence() {
    let vgs = ["vg1", "vg2", "vg3", "vg4"];
    let bench = Bench::of(&vgs);
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.node.state(|s| s.lvmlockd = Daemon::Hangs);
    for vg in vgs {
        bench.activate_anew(&format!("{vg}-lv0"));
    }
    let host = bench.node.host();
    let began = host.system.monotonic();
    guard.round();
    let took = host.system.monotonic().since(began);
    assert!(took < Duration::from_millis(2500), "{took:?}");
}
