use super::*;
use crate::fence::Target;

const SAN: &str = "sansansansansansansansansansansa";
const NAS: &str = "nasnasnasnasnasnasnasnasnasnasna";

fn dev(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

/// An open device of a volume group, by default on the error target.
fn device(minor: u32, name: &str, group: &str) -> DmDevice {
    DmDevice {
        dev: dev(minor),
        name: name.into(),
        uuid: format!("LVM-{group}{minor:032}").into(),
        sectors: 8,
        open_count: 1,
        targets: vec![Target {
            start: 0,
            length: 8,
            kind: "error".into(),
            params: smol_str::SmolStr::default(),
        }]
        .into(),
        ..DmDevice::default()
    }
}

fn on(minor: u32, name: &str, below: &[u32]) -> DmDevice {
    let mut device = device(minor, name, SAN);
    device.uuid = format!("CRYPT-{name}").into();
    device.targets[0].kind = "crypt".into();
    device.deps = below.iter().map(|b| dev(*b)).collect();
    device
}

fn set(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|a| (*a).to_owned()).collect()
}

fn held(minor: u32, pod: &str) -> Opener {
    Opener {
        dev: dev(minor),
        who: "process 1 (x)".into(),
        pod_uid: (!pod.is_empty()).then(|| pod.to_owned()),
    }
}

fn seen(doors: &Doors, openers: &[Opener]) -> Affected {
    let mut affected = Affected::default();
    for opener in openers {
        affected.found(doors, opener);
    }
    affected
}

#[test]
fn a_pod_is_affected_by_what_is_cut_off_and_by_what_lies_on_it() {
    let mut in_use = device(5, "san-new", SAN);
    in_use.targets[0].kind = "linear".into();
    let mut closed = device(6, "san-closed", SAN);
    closed.open_count = 0;
    let lease = device(7, "san-lvmlock", SAN);
    let all = [
        on(9, "luks-upper", &[8]),
        on(8, "luks", &[1]),
        device(1, "san-a", SAN),
        device(2, "nas-a", NAS),
        on(10, "both", &[1, 2]),
        // Of a volume group that does not stand fenced.
        device(3, "other-a", "otherotherotherotherotherotherot"),
        on(4, "luks-other", &[3]),
        in_use,
        closed,
        lease.clone(),
    ];
    let doors = Doors::of(
        &set(&[SAN, NAS]),
        &BTreeSet::from([lease.uuid.into()]),
        &all,
    );
    let names: Vec<&str> = doors.0.values().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["san-a", "nas-a", "luks", "luks-upper", "both"]);
    let openers: Vec<Opener> = (1..=10)
        .map(|n| held(n, &format!("p{n}")))
        .chain([held(1, ""), held(2, "p1")])
        .collect();
    let affected = seen(&doors, &openers);
    let of_san = affected.of(&set(&[SAN]));
    assert_eq!(
        of_san.keys().map(String::as_str).collect::<Vec<_>>(),
        ["p1", "p10", "p8", "p9"]
    );
    assert_eq!(of_san["p1"], set(&["san-a"]));
    let of_both = affected.of(&set(&[SAN, NAS]));
    assert_eq!(of_both["p1"], set(&["nas-a", "san-a"]));
    assert!(
        affected
            .of(&set(&["otherotherotherotherotherotherot"]))
            .is_empty()
    );
}

#[test]
fn after_half_a_search_who_was_seen_before_is_there_as_long_as_the_device_is_open() {
    let (a, b) = (device(1, "san-a", SAN), device(2, "san-b", SAN));
    let none = BTreeSet::new();
    let doors = Doors::of(&set(&[SAN]), &none, &[a.clone(), b.clone()]);
    let before = seen(&doors, &[held(1, "p1"), held(2, "p1"), held(2, "p2")]);
    let closed = DmDevice { open_count: 0, ..b };
    let doors = Doors::of(&set(&[SAN]), &none, &[a, closed]);
    let mut now = seen(&doors, &[held(1, "p3")]);
    now.keep(&before, &doors);
    let of_san = now.of(&set(&[SAN]));
    assert_eq!(of_san.len(), 2, "{of_san:?}");
    assert_eq!(of_san["p1"], set(&["san-a"]));
    assert_eq!(of_san["p3"], set(&["san-a"]));
}
