//! The hook beside the fence of another volume group.

use super::*;
use crate::agent::journal::Record;
use crate::host::simulated::State;

fn beside_another() -> Bench {
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
