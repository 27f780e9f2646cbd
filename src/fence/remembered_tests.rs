use std::cell::RefCell;

use super::*;

fn dm(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

fn sd(minor: u32) -> DevNo {
    DevNo { major: 8, minor }
}

fn device(minor: u32, uuid: &str, deps: &[DevNo]) -> DmDevice {
    DmDevice {
        dev: dm(minor),
        name: format!("d{minor}").into(),
        uuid: uuid.into(),
        deps: deps.to_vec().into(),
        ..DmDevice::default()
    }
}

fn vg() -> String {
    "v".repeat(32)
}

fn own(minor: u32, deps: &[DevNo]) -> DmDevice {
    device(minor, &format!("LVM-{}{}", vg(), "l".repeat(32)), deps)
}

fn foreign(minor: u32, deps: &[DevNo]) -> DmDevice {
    let uuid = format!("LVM-{}{}", "f".repeat(32), "l".repeat(32));
    device(minor, &uuid, deps)
}

fn mark(wwid: Option<&str>, sequence: Option<u64>, partition: Option<u32>) -> DiskMark {
    DiskMark {
        wwid: wwid.map(str::to_owned),
        sequence,
        partition,
    }
}

fn by_uuid(dev: DevNo, uuid: &str) -> PvRecord {
    PvRecord {
        dev,
        uuid: uuid.into(),
        ..PvRecord::default()
    }
}

fn by_mark(dev: DevNo, disk: DiskMark) -> PvRecord {
    PvRecord {
        dev,
        disk,
        ..PvRecord::default()
    }
}

fn found(list: &[DmDevice], pvs: &[PvRecord], disks: &[(DevNo, DiskMark)]) -> Vec<(u32, bool)> {
    let mark = |dev| {
        let disk = disks.iter().find(|d| d.0 == dev);
        disk.map_or_else(DiskMark::default, |d| d.1.clone())
    };
    let all = strangers(list, &vg(), pvs, &mark);
    all.iter().map(|s| (s.device.dev.minor, s.surely)).collect()
}

#[test]
fn a_record_of_numbers_is_read_and_one_with_identities_is_read_by_who_knows_numbers() {
    let old: Vec<PvRecord> =
        serde_json::from_str(r#"[{"major":253,"minor":0},{"major":8,"minor":16}]"#).expect("read");
    let numbers = |of: &[PvRecord]| of.iter().map(|pv| pv.dev).collect::<Vec<_>>();
    assert_eq!(numbers(&old), [dm(0), sd(16)]);
    assert!(
        old.iter()
            .all(|pv| pv.uuid.is_empty() && pv.disk.is_empty())
    );
    let text = serde_json::to_string(&old).expect("written");
    assert_eq!(text, r#"[{"major":253,"minor":0},{"major":8,"minor":16}]"#);
    let new = [
        by_uuid(dm(3), "mpath-a"),
        by_mark(sd(17), mark(Some("naa.1"), Some(u64::MAX), Some(1))),
    ];
    let text = serde_json::to_string(&new).expect("written");
    assert_eq!(
        serde_json::from_str::<Vec<PvRecord>>(&text).expect("read"),
        new
    );
    let by_earlier: Vec<DevNo> = serde_json::from_str(&text).expect("read");
    assert_eq!(by_earlier, [dm(3), sd(17)]);
}

#[test]
fn a_map_counts_by_its_uuid_under_whatever_number() {
    let pvs = [by_uuid(dm(1), "mpath-a")];
    let there = [device(1, "mpath-a", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&there, &pvs, &[]), [(9, true)]);
    let passed_on = [device(1, "mpath-b", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&passed_on, &pvs, &[]), []);
    let back = [
        device(1, "mpath-b", &[sd(0)]),
        device(5, "mpath-a", &[sd(16)]),
        foreign(8, &[dm(1)]),
        foreign(9, &[dm(5)]),
    ];
    assert_eq!(found(&back, &pvs, &[]), [(9, true)]);
    // Of another partition of the same map neither.
    let pvs = [by_uuid(dm(1), "part1-mpath-a")];
    let parts = [
        device(0, "mpath-a", &[sd(0)]),
        device(1, "part2-mpath-a", &[dm(0)]),
        device(2, "part1-mpath-a", &[dm(0)]),
        foreign(8, &[dm(1)]),
        foreign(9, &[dm(2)]),
    ];
    assert_eq!(found(&parts, &pvs, &[]), [(9, true)]);
}

#[test]
fn what_is_not_known_may_be_it_and_is_not_surely() {
    // Only a number, as earlier agents wrote it.
    let bare = [by_uuid(dm(1), "")];
    let list = [device(1, "mpath-b", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&list, &bare, &[]), [(9, false)]);
    // Nobody in the list has the number.
    let pvs = [by_uuid(dm(1), "mpath-a")];
    assert_eq!(found(&[foreign(9, &[dm(1)])], &pvs, &[]), [(9, false)]);
    // Something made by hand has it.
    let list = [device(1, "", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&list, &pvs, &[]), [(9, false)]);
    // The UUID of an encrypted disk holds a name, which it may be opened by next time.
    let crypt = [by_uuid(dm(1), "CRYPT-LUKS2-1-a")];
    let list = [device(1, "CRYPT-LUKS2-1-b", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&list, &crypt, &[]), [(9, false)]);
    let list = [device(1, "mpath-b", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&list, &crypt, &[]), []);
}

#[test]
fn what_its_own_devices_lead_to_is_a_physical_volume_whatever_is_remembered() {
    let list = [
        device(1, "mpath-b", &[sd(0)]),
        own(2, &[dm(1)]),
        own(3, &[dm(2)]),
        foreign(8, &[dm(2)]),
        foreign(9, &[dm(1)]),
    ];
    assert_eq!(found(&list, &[by_uuid(dm(1), "mpath-a")], &[]), [(9, true)]);
    assert_eq!(found(&list, &[], &[]), [(9, true)]);
}

#[test]
fn a_disk_is_told_by_its_wwid_and_by_its_sequence() {
    let a = || Some("naa.a");
    let b = || Some("naa.b");
    for (then, now, same) in [
        (
            mark(a(), Some(1), None),
            mark(a(), Some(1), None),
            Same::Surely,
        ),
        (
            mark(a(), Some(1), None),
            mark(a(), Some(2), None),
            Same::Surely,
        ),
        (
            mark(a(), None, Some(1)),
            mark(a(), None, Some(1)),
            Same::Surely,
        ),
        (mark(a(), None, Some(1)), mark(a(), None, Some(2)), Same::No),
        (mark(a(), Some(1), None), mark(b(), Some(2), None), Same::No),
        (mark(a(), None, None), mark(b(), None, None), Same::No),
        // What did the array do to it?
        (
            mark(a(), Some(1), None),
            mark(b(), Some(1), None),
            Same::Perhaps,
        ),
        (
            mark(None, Some(1), None),
            mark(None, Some(1), None),
            Same::Surely,
        ),
        (
            mark(a(), Some(1), None),
            mark(None, Some(1), None),
            Same::Surely,
        ),
        // It may have come back.
        (
            mark(None, Some(1), None),
            mark(None, Some(2), None),
            Same::Perhaps,
        ),
        (
            mark(a(), Some(1), None),
            mark(None, Some(2), None),
            Same::Perhaps,
        ),
        (mark(a(), Some(1), None), DiskMark::default(), Same::Perhaps),
        (DiskMark::default(), mark(a(), Some(1), None), Same::Perhaps),
    ] {
        let pv = by_mark(sd(0), then.clone());
        assert_eq!(pv.has_mark(&now), same, "{then:?} {now:?}");
    }
}

#[test]
fn a_lun_without_multipath_is_looked_for_where_it_is_not_any_more() {
    let pvs = [by_mark(sd(0), mark(Some("naa.a"), Some(1), None))];
    let list = [foreign(8, &[sd(0)]), foreign(9, &[sd(16)])];
    let same = (sd(0), mark(Some("naa.a"), Some(1), None));
    let other = (sd(0), mark(Some("naa.b"), Some(2), None));
    let back = (sd(16), mark(Some("naa.a"), Some(3), None));
    assert_eq!(found(&list, &pvs, &[same]), [(8, true)]);
    assert_eq!(found(&list, &pvs, std::slice::from_ref(&other)), []);
    assert_eq!(found(&list, &pvs, &[other, back]), [(9, true)]);
    assert_eq!(found(&list, &pvs, &[]), [(8, false)]);
    // As a map by now: that is the physical volume, and who stands on it is the stranger.
    let map = [device(1, "mpath-3a", &[sd(0)]), foreign(9, &[dm(1)])];
    assert_eq!(found(&map, &pvs, &[]), [(9, true)]);
}

#[test]
fn a_wwid_is_the_maps_name_as_multipathd_makes_it() {
    for (wwid, map) in [
        ("naa.600140", "mpath-3600140"),
        ("eui.0011223344556677", "mpath-20011223344556677"),
        ("nvme.1af4-31-51-00000001", "mpath-nvme.1af4-31-51-00000001"),
        (
            "eui.00112233445566778899aabbccddeeff",
            "mpath-eui.00112233445566778899aabbccddeeff",
        ),
    ] {
        let pv = by_mark(sd(0), mark(Some(wwid), None, None));
        assert!(pv.is(&device(1, map, &[])), "{wwid}");
        let part = by_mark(sd(1), mark(Some(wwid), None, Some(1)));
        assert!(!part.is(&device(1, map, &[])));
        assert!(part.is(&device(1, &format!("part1-{map}"), &[])));
    }
}

#[test]
fn so_long_as_nothing_is_strange_only_its_own_disks_are_looked_at_and_once() {
    let read = RefCell::new(Vec::new());
    let mark = |dev| {
        read.borrow_mut().push(dev);
        mark(Some("naa.a"), Some(1), None)
    };
    let pvs = [
        by_uuid(dm(1), "mpath-a"),
        by_mark(sd(0), mark(sd(0))),
        by_mark(sd(16), mark(sd(16))),
    ];
    read.borrow_mut().clear();
    let list: Vec<DmDevice> = (2..100).map(|n| foreign(n, &[sd(16 * n)])).collect();
    assert!(strangers(&list, &vg(), &pvs, &mark).is_empty());
    assert_eq!(*read.borrow(), [sd(0), sd(16)]);
}
