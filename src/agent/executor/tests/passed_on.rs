//! Orders for a volume group that stands fenced, when the numbers of its physical volumes are others' by now.

use super::Bench;
use super::bench::seconds;
use crate::agent::executor::stands;
use crate::agent::journal::GroupRecord;
use crate::fence::report::{FenceReport, LocksOutcome, Outcome};
use crate::fence::{DevNo, DiskMark, PvRecord, VolumeGroup};
use crate::host::Bell;
use crate::host::simulated::{Group, Layout, Under, uuid_of};

/// It stands, and its lockspace is gone.
fn stands() -> Bench {
    let bench = Bench::new(&Layout::default());
    assert_eq!(bench.fence().outcome, Outcome::Proven);
    let host = bench.node.host();
    let until = host.system.monotonic() + seconds(10);
    host.system.wait(&Bell::default(), 0, until);
    assert!(!bench.held("vg1"));
    bench
}

fn vg1(bench: &Bench) -> VolumeGroup {
    let all = bench.node.inventory().volume_groups;
    let found = all.into_iter().find(|g| g.uuid == uuid_of("vg1"));
    found.expect("the volume group")
}

fn fence_again(bench: &mut Bench) -> FenceReport {
    bench.order.uid = "another".into();
    bench.order.drain_timeout = seconds(5);
    let report = bench.fence_as_seen(bench.node.inventory());
    bench.check();
    report
}

fn assert_proven(report: &FenceReport) {
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
}

#[test]
fn an_order_is_proven_though_the_number_of_a_map_passed_to_another_volume_group() {
    let mut bench = stands();
    bench.node.state(|s| s.number_passes_on("mpath-vg1-0"));
    assert_proven(&fence_again(&mut bench));
}

#[test]
fn a_stranger_on_a_map_that_came_back_under_another_number_is_no_proof() {
    let mut bench = stands();
    bench.node.state(|s| {
        s.number_passes_on("mpath-vg1-0");
        let map = s.come_back("mpath-vg1-0");
        let number = DevNo { minor: 99, ..map };
        s.activate(number, "stranger", "", map);
    });
    let report = fence_again(&mut bench);
    assert_eq!(report.outcome, Outcome::NotProven, "{report:#?}");
    let message = &report.message;
    assert!(
        message.contains("stranger (253:99") && message.contains("remove it"),
        "{message}"
    );
    assert!(!message.contains("foreign-lv0"), "{message}");
}

/// What an earlier agent wrote: numbers only. They may still be what they were, so nothing is proven.
#[test]
fn a_record_of_numbers_only_is_no_proof_that_a_device_stands_elsewhere() {
    let mut bench = stands();
    forget_identities(&bench);
    bench.node.state(|s| s.number_passes_on("mpath-vg1-0"));
    let report = fence_again(&mut bench);
    assert_eq!(report.outcome, Outcome::NotProven, "{report:#?}");
    let message = &report.message;
    assert!(
        message.contains("foreign-lv0") && message.contains("find out"),
        "{message}"
    );
}

fn forget_identities(bench: &Bench) {
    let standings = bench.journal().0.standings();
    let forgotten = standings.update(&uuid_of("vg1"), |s| {
        for pv in &mut s.group.pvs {
            *pv = PvRecord {
                dev: pv.dev,
                ..PvRecord::default()
            };
        }
    });
    assert!(forgotten.expect("written"));
}

#[test]
fn what_is_remembered_tells_who_a_physical_volume_is() {
    let layout = Layout {
        groups: vec![Group {
            under: vec![
                Under::Map {
                    active: 0,
                    queueing: true,
                },
                Under::Partition {
                    active: 0,
                    queueing: true,
                },
                Under::Disk(false),
            ],
            ..Group::target("vg1")
        }],
    };
    let bench = Bench::new(&layout);
    let group = vg1(&bench);
    let disk = group.pvs.iter().find(|pv| pv.uuid.is_empty());
    let disk = disk.expect("a disk").dev;
    let mark = DiskMark {
        wwid: Some("naa.6001".into()),
        sequence: Some(7),
        partition: None,
    };
    bench.node.state(|s| s.marks.insert(disk, mark.clone()));
    let group: GroupRecord = stands::record(&bench.node.host(), &group, &[]);
    let mut who: Vec<_> = group
        .pvs
        .iter()
        .map(|pv| (pv.uuid.as_str(), &pv.disk))
        .collect();
    who.sort_by_key(|w| w.0);
    let none = DiskMark::default();
    assert_eq!(
        who,
        [
            ("", &mark),
            ("mpath-vg1-0", &none),
            ("part1-mpath-vg1-1", &none)
        ]
    );
}

/// The same for a disk without multipath.
#[test]
fn an_order_is_proven_though_the_number_of_a_disk_is_another_luns() {
    let layout = Layout {
        groups: vec![Group {
            under: vec![Under::Disk(false)],
            ..Group::target("vg1")
        }],
    };
    let mark = |wwid: &str, sequence| DiskMark {
        wwid: Some(wwid.to_owned()),
        sequence: Some(sequence),
        partition: None,
    };
    let mut bench = Bench::new(&layout);
    let disk = vg1(&bench).pvs[0].dev;
    bench.node.state(|s| s.marks.insert(disk, mark("naa.1", 1)));
    assert_eq!(bench.fence().outcome, Outcome::Proven);
    let host = bench.node.host();
    host.system
        .wait(&Bell::default(), 0, host.system.monotonic() + seconds(10));
    let number = DevNo {
        major: 253,
        minor: 99,
    };
    let other = DevNo {
        major: 8,
        minor: 208,
    };
    bench.node.state(|s| {
        s.deactivate("vg1-lvmlock");
        s.marks.insert(disk, mark("naa.2", 2));
        s.activate(number, "stranger", "LVM-foreign", disk);
    });
    assert_proven(&fence_again(&mut bench));
    // The LUN is back under another number, and the stranger on it.
    bench.node.state(|s| {
        s.marks.insert(other, mark("naa.1", 3));
        s.activate(number, "stranger", "LVM-foreign", other);
    });
    let report = fence_again(&mut bench);
    assert_eq!(report.outcome, Outcome::NotProven, "{report:#?}");
    // Or under its own, which is not told any more: it may be the volume group's.
    bench.node.state(|s| {
        s.marks.clear();
        s.activate(number, "stranger", "LVM-foreign", disk);
    });
    let report = fence_again(&mut bench);
    assert_eq!(report.outcome, Outcome::NotProven, "{report:#?}");
}
