//! The hook beside the fence of another volume group.

use super::*;
use crate::host::simulated::State;

pub(super) fn beside_another() -> Bench {
    let groups = vec![
        Group::target("other"),
        Group {
            renewed_ago: 90,
            ..Group::target("vg1")
        },
    ];
    let bench = Bench {
        node: Simulation::new(&Layout { groups }),
        state: tempfile::tempdir().expect("a directory"),
    };
    let host = bench.node.host();
    bench.node.state(|s| {
        s.device("other-lv0").expect("a device").in_flight = InFlight::Forever;
    });
    bench.node.at(Duration::from_secs(1004), State::kill_now);
    let inventory = bench.node.inventory();
    let killed = catch_unwind(AssertUnwindSafe(|| {
        let order = order("other", 1);
        let mut journal = bench.journal();
        executor::run(
            &host,
            &mut journal,
            &order,
            inventory,
            &|| false,
            &mut |_| (),
        )
    }));
    assert!(killed.is_err() && bench.node.restart_agent());
    bench
}

/// The fenced volume group was renamed elsewhere, and another one that is called so by now loses its lease.
fn with_its_name() -> Bench {
    let bench = Bench {
        node: Simulation::new(&Layout {
            groups: vec![Group::target("other"), Group::target("vg1")],
        }),
        state: tempfile::tempdir().expect("a directory"),
    };
    bench.fence_as_agent().expect("nobody killed it");
    let host = bench.node.host();
    let later = host.system.monotonic() + Duration::from_secs(9);
    host.system.wait(&crate::host::Bell::default(), 0, later);
    bench.node.state(|s| {
        // No two devices have one name.
        s.deactivate("vg1-lvmlock");
        s.rename(&uuid_of("other"), "vg1");
    });
    bench
}

#[test]
fn the_fence_of_one_vouches_for_none_that_has_its_name_by_now() {
    let open = |b: &Bench| b.node.state(|s| s.not_fenced(&uuid_of("other")));
    let bench = with_its_name();
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    let (verdict, _) = bench.hook();
    assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
    assert!(!open(&bench).is_empty());
    // It has a lockspace, and no device that could be fenced.
    let bench = with_its_name();
    bench.node.state(|s| {
        s.devices
            .retain(|_, d| !d.dm.uuid.contains(&uuid_of("other")));
    });
    let (verdict, _) = bench.hook();
    let says = |m: &String| m.contains("another volume group's");
    assert!(
        matches!(&verdict, Verdict::Unproven(m) if says(m)),
        "{verdict:?}"
    );
    // By itself it is fenced as any.
    let bench = with_its_name();
    let (verdict, _) = bench.hook();
    assert!(matches!(verdict, Verdict::Proven(_)), "{verdict:?}");
    assert_eq!(open(&bench), Vec::<String>::new());
}

#[test]
fn a_hook_that_is_killed_loses_no_fence_that_it_went_before() {
    let options = |bench: &Bench| Options {
        vg: "vg1".into(),
        state_directory: bench.state.path().into(),
    };
    let mut both = 0;
    for at in (1..).step_by(3) {
        let bench = beside_another();
        bench.node.kill_at_call(at);
        let (host, options) = (bench.node.host(), options(&bench));
        let _ = catch_unwind(AssertUnwindSafe(|| run(&host, &options, &mut |_| ())));
        let killed = bench.node.restart_agent();
        let journal = bench.journal();
        let mut all = journal.set_aside().expect("read");
        all.extend(journal.left().expect("read").filter(Record::unfinished));
        let is = |vg: &str| all.iter().any(|r| r.begun.groups[0].name == vg);
        assert!(is("other"), "killed at call {at}");
        both += u32::from(is("vg1"));
        // The next hook completes what this one began, and keeps the other.
        let (verdict, told) = bench.hook();
        assert!(
            matches!(verdict, Verdict::Proven(_)),
            "{verdict:?} {told:?}"
        );
        if !killed {
            break;
        }
    }
    assert!(both > 5, "{both}");
}

#[test]
fn the_hook_completes_a_fence_of_its_own_volume_group_that_was_put_aside() {
    let bench = beside_another();
    // Not given up, so the journal has it; then another began, and its agent was killed.
    let left = bench.journal().left().expect("read").expect("a record");
    assert!(left.unfinished());
    bench.node.state(|s| {
        s.device("other-lv0").expect("a device").in_flight = InFlight::None;
    });
    bench.node.kill_at_call(30);
    assert!(bench.fence_as_agent().is_none() && bench.node.restart_agent());
    assert_eq!(bench.journal().set_aside().expect("read").len(), 1);
    let (verdict, told) = bench.hook_of("other");
    assert!(
        matches!(verdict, Verdict::Proven(_)),
        "{verdict:?} {told:?}"
    );
    let completed = told
        .iter()
        .any(|t| t.contains("completing the fence of kill-hook of other"));
    assert!(completed, "{told:?}");
    // And the one in whose place it was completed is back in it.
    let journal = bench.journal();
    let left = journal.left().expect("read").filter(Record::unfinished);
    assert_eq!(left.expect("a record").begun.order.name, "request");
    assert_eq!(journal.set_aside().expect("read"), []);
}

#[test]
fn a_fence_of_another_volume_group_that_hangs_is_not_waited_for() {
    let bench = beside_another();
    let (verdict, told) = bench.hook();
    assert!(
        matches!(verdict, Verdict::Proven(_)),
        "{verdict:?} {told:?}"
    );
    assert!(!bench.held(), "its own is released in time");
    let left = bench.journal().left().expect("read").expect("a record");
    assert!(left.unfinished() && left.begun.groups[0].name == "other");
}
