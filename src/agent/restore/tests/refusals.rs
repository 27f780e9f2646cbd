//! What speaks against giving storage back, and that it goes on by itself.

use super::{Bench, seconds};
use crate::fence::DevNo;
use crate::fence::unfence::{BlockerReason, Opener, UnfenceOutcome, UnfenceReport};
use crate::host::simulated::{Daemon, Group, Layout, Starting, Under, uuid_of};

fn reasons(report: &UnfenceReport) -> Vec<BlockerReason> {
    report.blockers.iter().map(|b| b.reason).collect()
}

#[test]
fn it_waits_until_the_paths_have_been_healthy_for_long_enough() {
    let mut bench = Bench::fenced(&Bench::layout());
    let before = bench.node.log().len();
    let report = bench.until_done(60);
    assert_eq!(report.outcome, UnfenceOutcome::Waiting);
    assert_eq!(reasons(&report), [BlockerReason::PathsUnhealthy]);
    assert!(
        report.message.contains("map mpath-vg1-0"),
        "{}",
        report.message
    );
    bench.paths(1);
    let back = bench.node.now();
    let report = bench.until_done(6);
    assert_eq!(reasons(&report), [BlockerReason::PathsUnhealthy]);
    assert!(
        report.message.contains("not yet for 10 s"),
        "{}",
        report.message
    );
    assert_eq!(bench.node.log().len(), before, "nothing was touched");
    let report = bench.until_done(120);
    bench.assert_done(&report, "healthy");
    assert!(report.started.expect("started").0 >= back + seconds(10));
}

#[test]
fn a_path_that_goes_again_begins_the_time_anew() {
    let mut bench = Bench::fenced(&Bench::layout());
    bench.paths(2);
    for _ in 0..10 {
        bench.until_done(3);
        bench.paths(1);
        bench.until_done(3);
        bench.paths(2);
    }
    assert_eq!(
        bench.last.as_ref().map(|r| r.outcome),
        Some(UnfenceOutcome::Waiting)
    );
    assert_eq!(bench.log_of("remove"), Vec::<String>::new());
    let report = bench.until_done(120);
    bench.assert_done(&report, "steady");
}

#[test]
fn a_time_in_which_nobody_looked_does_not_count() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.once();
    bench.wait(60);
    assert_eq!(bench.once().outcome, UnfenceOutcome::Waiting);
    bench.wait(11);
    assert_eq!(bench.once().outcome, UnfenceOutcome::Done);
}

#[test]
fn every_physical_volume_has_to_be_reachable_not_only_that_of_the_leases() {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    let mut bench = Bench::fenced(&Layout {
        groups: vec![Group {
            under: vec![map, map],
            ..Group::target("vg1")
        }],
    });
    bench
        .node
        .state(|s| s.device("mpath-vg1-0").expect("a map").active_paths = 2);
    let report = bench.until_done(60);
    assert_eq!(reasons(&report), [BlockerReason::PathsUnhealthy]);
    assert!(
        report.message.contains("map mpath-vg1-1"),
        "{}",
        report.message
    );
    bench.paths(2);
    let report = bench.until_done(120);
    bench.assert_done(&report, "both");
}

#[test]
fn who_holds_a_device_open_is_named_and_it_goes_on_when_he_is_gone() {
    let mut bench = Bench::ready(&Bench::layout());
    let dev = bench.number("vg1-lv1");
    let who = "process 812 (qemu-system-x86)";
    bench.node.state(|s| {
        s.device("vg1-lv1").expect("a device").dm.open_count = 1;
        s.device("vg1-thin0").expect("a device").dm.open_count = 2;
        s.openers.push(Opener {
            dev,
            who: who.into(),
            pod_uid: Some("0f1e2d3c-aaaa-bbbb-cccc-000000000001".into()),
        });
    });
    let before = bench.node.log().len();
    let report = bench.until_done(60);
    assert_eq!(
        reasons(&report),
        [BlockerReason::DeviceOpen; 2],
        "{report:#?}"
    );
    let of = |device: &str| {
        let mut all = report.blockers.iter();
        all.find(|b| b.device.as_deref() == Some(device))
            .expect("a blocker")
    };
    let lv1 = of("vg1-lv1");
    assert_eq!(lv1.holder.as_deref(), Some(who));
    assert!(lv1.pod_uid.is_some() && lv1.message.contains(who) && lv1.message.contains("0f1e2d3c"));
    let thin = of("vg1-thin0");
    assert!(
        thin.holder.is_none() && thin.message.contains("2 times"),
        "{thin:?}"
    );
    assert_eq!(bench.node.log().len(), before, "nothing was touched");
    bench.close_all();
    let report = bench.until_done(120);
    bench.assert_done(&report, "closed");
}

#[test]
fn one_that_opens_a_device_at_the_last_moment_stops_it_and_the_fence_stands_again() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.once();
    bench.wait(11);
    // Busy for longer than udev ever is.
    bench
        .node
        .state(|s| s.device("vg1-lv1").expect("a device").busy = 1_000);
    let dev: DevNo = bench.number("vg1-lv1");
    bench.node.state(|s| {
        s.openers.push(Opener {
            dev,
            who: "mount /data (ext4)".into(),
            pod_uid: None,
        });
    });
    let report = bench.once();
    assert_eq!(report.outcome, UnfenceOutcome::Waiting);
    assert!(
        report
            .message
            .contains("vg1-lv1 was opened meanwhile by mount /data"),
        "{}",
        report.message
    );
    assert_eq!(bench.log_of("lockstart"), Vec::<String>::new());
    assert!(bench.guarded("vg1"), "it has to be watched over again");
    bench
        .node
        .state(|s| s.device("vg1-lv1").expect("a device").busy = 0);
    let report = bench.until_done(120);
    bench.assert_done(&report, "closed");
}

#[test]
fn a_device_with_another_table_is_never_removed() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.lead_to("vg1-lv0", "mpath-vg1-0"));
    let report = bench.until_done(60);
    assert_eq!(report.outcome, UnfenceOutcome::Waiting);
    assert_eq!(reasons(&report), [BlockerReason::DeviceNotFenced]);
    assert!(report.message.contains("vg1-lv0"), "{}", report.message);
    assert_eq!(bench.log_of("remove"), Vec::<String>::new());
    bench.node.state(|s| s.wipe("vg1-lv0"));
    let report = bench.until_done(120);
    bench.assert_done(&report, "wiped again");
}

#[test]
fn what_is_not_known_speaks_against_it() {
    for (change, says) in [
        (
            (|s| s.lvmlockd = Daemon::Dead) as fn(&mut crate::host::simulated::State),
            "lock manager",
        ),
        (|s| s.sanlock = Daemon::Dead, "lock manager"),
        (|s| s.sanlock = Daemon::Hangs, "sanlock did not answer"),
        (|s| s.listing_fails = true, "looked at"),
    ] {
        let mut bench = Bench::ready(&Bench::layout());
        bench.node.state(change);
        let before = bench.node.log().len();
        let report = bench.until_done(60);
        assert_eq!(report.outcome, UnfenceOutcome::Waiting);
        assert_eq!(reasons(&report), [BlockerReason::StateUnknown]);
        assert!(report.message.contains(says), "{}", report.message);
        assert_eq!(bench.node.log().len(), before, "nothing was touched");
    }
}

#[test]
fn a_lockspace_on_its_way_out_or_left_by_a_dead_lvmlockd_is_waited_for() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.removing("vg1"));
    let report = bench.until_done(60);
    assert_eq!(
        reasons(&report),
        [BlockerReason::LockspaceRemains],
        "{report:#?}"
    );
    bench.node.state(|s| {
        s.lockspaces
            .retain(|l| l.lockspace.vg_uuid != uuid_of("vg1"));
    });
    let report = bench.until_done(120);
    bench.assert_done(&report, "gone");
}

#[test]
fn a_join_that_fails_is_tried_again_and_says_why() {
    for how in [Starting::Fails, Starting::Hangs] {
        let mut bench = Bench::ready(&Bench::layout());
        bench.node.state(|s| s.start = how);
        let mut report = bench.until_done(200);
        // Between two attempts it may be for the paths that it waits: while it was at work, nobody looked at them.
        for _ in 0..100 {
            if reasons(&report) == [BlockerReason::StepFailed] {
                break;
            }
            report = bench.until_done(1);
        }
        assert_eq!(report.outcome, UnfenceOutcome::Waiting);
        assert_eq!(reasons(&report), [BlockerReason::StepFailed]);
        assert!(
            report.failures >= 1 && report.message.contains("vgchange --lockstart vg1"),
            "{report:#?}"
        );
        assert!(
            !bench.guarded("vg1"),
            "no device is left to be watched over"
        );
        bench.node.state(|s| s.start = Starting::Works);
        let report = bench.until_done(300);
        bench.assert_done(&report, "mended");
        assert_eq!(report.groups[0].devices_removed, 6, "of the first attempt");
    }
}

#[test]
fn what_the_tool_says_is_not_the_last_word() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.start = Starting::WorksAndFails);
    let report = bench.until_done(120);
    bench.assert_done(&report, "joined all the same");
    assert_eq!(bench.log_of("lockstart").len(), 1);
}

#[test]
fn an_interruption_ends_it_at_once() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.once();
    bench.wait(11);
    let from = bench.node.now() + seconds(5);
    let node = bench.node.clone();
    let report = bench.try_once(&|| node.now() >= from).expect("not killed");
    assert!(bench.node.now() < from + seconds(1));
    assert_eq!(report.outcome, UnfenceOutcome::Waiting);
    assert!(report.message.contains("Interrupted"), "{}", report.message);
    bench.check();
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
    assert_eq!(
        bench.log_of("lockstart").len(),
        1,
        "what was begun went on by itself"
    );
}

#[test]
fn a_disk_that_the_kernel_dropped_is_told_from_one_that_only_lost_its_paths() {
    let mut bench = Bench::fenced(&Layout {
        groups: vec![Group {
            under: vec![Under::Disk(false), Under::Disk(false)],
            ..Group::target("vg1")
        }],
    });
    let pvs = bench.once().groups[0].standing.pvs.clone();
    let disks: Vec<_> = pvs.iter().map(|pv| pv.dev).collect();
    bench.node.state(|s| s.dead_disks.extend(&disks));
    let report = bench.once();
    assert_eq!(reasons(&report), [BlockerReason::PathsUnhealthy]);
    assert!(
        report.message.contains("when the SAN is back") && !report.message.contains("reboot"),
        "{}",
        report.message
    );
    bench.node.state(|s| s.gone_disks.extend(disks.first()));
    let report = bench.once();
    assert_eq!(reasons(&report), [BlockerReason::PathsUnhealthy; 2]);
    let gone = report.blockers.iter().find(|b| {
        let disk = format!("disk {} is gone from the kernel", disks[0]);
        b.message.contains(&disk) && b.message.contains("reboot")
    });
    assert!(gone.is_some(), "{report:#?}");
}

#[test]
fn the_next_look_is_counted_from_the_end_of_the_one_before() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.sanlock = Daemon::Hangs);
    let began = bench.node.now();
    let report = bench.once();
    let ended = bench.node.now();
    assert!(ended >= began + seconds(5), "it takes its time");
    assert!(report.again_at().is_some_and(|at| at.0 > ended));
}
