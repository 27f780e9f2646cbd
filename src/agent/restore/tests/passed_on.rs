//! Giving storage back when the numbers of its physical volumes are others' by now.

use super::*;
use crate::fence::unfence::{BlockerReason, UnfenceOutcome, UnfenceReport};
use crate::fence::{DevNo, DiskMark};
use crate::host::simulated::{Group, Layout, Under, uuid_of};

const NUMBER: DevNo = DevNo {
    major: 253,
    minor: 99,
};

/// Its map is back under another number, its own is another volume group's; the lockspace that the fence kept has to be dropped.
fn passed_on() -> (Bench, DevNo) {
    let bench = Bench::new(&Bench::layout());
    bench.fence_keeping_locks();
    let map = bench.node.state(|s| {
        s.number_passes_on("mpath-vg1-0");
        s.come_back("mpath-vg1-0")
    });
    bench.close_all();
    bench.paths(2);
    (bench, map)
}

#[test]
fn a_device_on_a_number_that_passed_on_is_neither_waited_for_nor_removed() {
    let (mut bench, _) = passed_on();
    let report = bench.until_done(180);
    bench.assert_done(&report, "the number passed on");
    assert!(bench.node.state(|s| s.device("foreign-lv0").is_some()));
    assert_eq!(bench.log_of("drop_vg"), ["drop_vg vg1"]);
}

#[test]
fn a_device_on_a_physical_volume_that_came_back_keeps_the_locks_from_being_dropped() {
    let (mut bench, map) = passed_on();
    bench
        .node
        .state(|s| s.activate(NUMBER, "stranger", "", map));
    let report = bench.until_done(60);
    assert_ne!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    let told = "stranger may still use the storage that the locks protect; remove it first";
    assert!(report.message.contains(told), "{}", report.message);
    assert_eq!(bench.log_of("drop_vg"), Vec::<String>::new());
}

/// It may be somebody else's (S2).
#[test]
fn what_only_has_the_number_of_a_physical_volume_is_not_told_to_be_removed() {
    let (mut bench, disk) = without_multipath();
    bench.fence_keeping_locks();
    bench.close_all();
    bench.node.state(|s| {
        // It would tell that it is.
        s.deactivate("vg1-lvmlock");
        s.activate(NUMBER, "stranger", "", disk);
    });
    let report = bench.until_done(60);
    assert_ne!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    let told = "stranger may still use the storage that the locks protect; find out whose disk";
    assert!(report.message.contains(told), "{}", report.message);
    assert_eq!(bench.log_of("drop_vg"), Vec::<String>::new());
}

fn mark(wwid: &str, sequence: u64) -> DiskMark {
    DiskMark {
        wwid: Some(wwid.to_owned()),
        sequence: Some(sequence),
        partition: None,
    }
}

/// One without multipath, and the number of its disk.
fn without_multipath() -> (Bench, DevNo) {
    let bench = Bench::new(&Layout {
        groups: vec![Group {
            under: vec![Under::Disk(false)],
            ..Group::target("vg1")
        }],
    });
    let groups = bench.node.inventory().volume_groups;
    let vg1 = groups.iter().find(|g| g.uuid == uuid_of("vg1"));
    let disk = vg1.expect("the volume group").pvs[0].dev;
    (bench, disk)
}

/// The same, fenced, and what the kernel told of its disk.
fn on_a_disk(mark: Option<DiskMark>) -> (Bench, DevNo) {
    let (bench, disk) = without_multipath();
    bench
        .node
        .state(|s| s.marks.extend(mark.map(|m| (disk, m))));
    bench.fence();
    bench.close_all();
    bench.wait(3);
    bench.node.state(|s| s.deactivate("vg1-lvmlock"));
    (bench, disk)
}

fn assert_waits(report: &UnfenceReport, what: &str) {
    let reasons: Vec<_> = report.blockers.iter().map(|b| b.reason).collect();
    assert_eq!(reasons, [BlockerReason::PathsUnhealthy], "{report:#?}");
    assert!(report.message.contains(what), "{}", report.message);
}

#[test]
fn another_lun_with_the_disks_number_is_not_its_paths() {
    let (mut bench, disk) = on_a_disk(Some(mark("naa.1", 1)));
    bench.node.state(|s| s.marks.insert(disk, mark("naa.2", 2)));
    let report = bench.until_done(60);
    assert_waits(&report, "naa.1, which was 8:");
    // It comes back under another number: it is the LUN that counts.
    let elsewhere = DevNo {
        major: 8,
        minor: 208,
    };
    bench
        .node
        .state(|s| s.marks.insert(elsewhere, mark("naa.1", 3)));
    let report = bench.until_done(120);
    bench.assert_done(&report, "under another number");
}

#[test]
fn the_lun_that_came_back_under_its_number_is_another_disk_and_the_same_paths() {
    let (mut bench, disk) = on_a_disk(Some(mark("naa.1", 1)));
    bench.node.state(|s| s.marks.insert(disk, mark("naa.1", 2)));
    let report = bench.until_done(120);
    bench.assert_done(&report, "under its own number");
}

#[test]
fn a_disk_that_multipath_has_taken_since_is_found_by_the_maps_name() {
    let (mut bench, disk) = on_a_disk(Some(mark("naa.1", 1)));
    bench.node.state(|s| {
        s.marks.clear();
        s.gone_disks.insert(disk);
    });
    let report = bench.until_done(60);
    assert_waits(&report, &format!("disk {disk} is gone"));
    bench.node.state(|s| s.come_back("mpath-31"));
    let report = bench.until_done(120);
    bench.assert_done(&report, "as a map");
}

/// LVM looks for the volume group on it before it joins.
#[test]
fn a_disk_of_which_nothing_but_the_number_is_known_is_known_by_that() {
    let (mut bench, _) = on_a_disk(None);
    let report = bench.until_done(120);
    bench.assert_done(&report, "by its number");
}
