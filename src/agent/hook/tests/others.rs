//! The hook beside the fence of another volume group.

use super::*;
use crate::host::simulated::State;

#[test]
fn a_fence_of_another_volume_group_that_hangs_is_not_waited_for() {
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
    let (verdict, told) = bench.hook();
    assert!(
        matches!(verdict, Verdict::Proven(_)),
        "{verdict:?} {told:?}"
    );
    assert!(!bench.held(), "its own is released in time");
    let left = bench.journal().left().expect("read").expect("a record");
    assert!(left.unfinished() && left.begun.groups[0].name == "other");
}
