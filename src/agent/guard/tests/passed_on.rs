//! What the guard says of devices on numbers that were a physical volume's.

use super::*;
use crate::fence::PvRecord;

const NUMBER: DevNo = DevNo {
    major: 253,
    minor: 99,
};

#[test]
fn nothing_is_said_of_a_volume_group_whose_map_has_got_the_number() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.node.state(|s| s.number_passes_on("mpath-vg1-0"));
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.reasons(), ["FencedByKillHook"]);
    // Nor by who asks for proof.
    let host = bench.node.host();
    let list = host.device_mapper.devices().expect("a list");
    let group = bench.standing().group;
    assert_eq!(
        executor::open_devices(&host, &list, &group),
        Vec::<String>::new()
    );
}

#[test]
fn a_stranger_on_a_physical_volume_that_came_back_under_another_number_is_told() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.node.state(|s| {
        s.number_passes_on("mpath-vg1-0");
        let map = s.come_back("mpath-vg1-0");
        s.activate(NUMBER, "stranger", "", map);
    });
    bench.watch(&mut guard, SPAN);
    assert_eq!(
        bench.reasons(),
        ["FencedByKillHook", "StrangerOnFencedGroup"]
    );
    let news = bench.news.lock().expect("lock");
    let note = &news.last().expect("news").note;
    assert!(note.starts_with("stranger stands on"), "{note}");
}

/// Nobody is told to remove a device of which only a number says that it is in the way; and it is not passed over either.
#[test]
fn where_only_the_number_is_remembered_it_is_told_as_what_it_is() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    let standings = bench.journal().standings();
    let forgotten = standings.update(&uuid_of("vg1"), |s| {
        for pv in &mut s.group.pvs {
            *pv = PvRecord {
                dev: pv.dev,
                ..PvRecord::default()
            };
        }
    });
    assert!(forgotten.expect("written"));
    bench.node.state(|s| s.number_passes_on("mpath-vg1-0"));
    bench.watch(&mut guard, SPAN);
    assert_eq!(
        bench.reasons(),
        ["FencedByKillHook", "PerhapsStrangerOnFencedGroup"]
    );
    let host = bench.node.host();
    let list = host.device_mapper.devices().expect("a list");
    let group = bench.standing().group;
    let open = executor::open_devices(&host, &list, &group);
    assert!(
        matches!(open.as_slice(), [one] if one.contains("foreign-lv0")),
        "{open:?}"
    );
}

#[test]
fn of_maps_no_disk_is_looked_at() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.node.state(|s| s.number_passes_on("mpath-vg1-0"));
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.node.state(|s| s.marks_read), 0);
}
