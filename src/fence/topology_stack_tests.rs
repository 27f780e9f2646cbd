//! Stacks of devices: from top to bottom, whatever lies on what.

use super::*;

fn levels(devices: Vec<impl Into<Arc<DmDevice>>>) -> Vec<Vec<u32>> {
    let group = VolumeGroup {
        devices: devices.into_iter().map(Into::into).collect(),
        ..VolumeGroup::default()
    };
    swap_levels(&group)
        .iter()
        .map(|l| l.iter().map(|d| d.minor).collect())
        .collect()
}

#[test]
fn plain_volumes_are_one_level() {
    let o = san();
    assert_eq!(levels(o.devices[2..].to_vec()), [[2, 3]]);
    assert_eq!(levels(Vec::<DmDevice>::new()), Vec::<Vec<u32>>::new());
}

#[test]
fn thin_volumes_come_before_their_pool_and_that_before_its_data() {
    let stack = vec![
        device(
            0,
            "san-pool_tmeta",
            &lv_uuid(VG_A, 1, "-tmeta"),
            "linear",
            &[sd(0)],
        ),
        device(
            1,
            "san-pool_tdata",
            &lv_uuid(VG_A, 2, "-tdata"),
            "linear",
            &[sd(0)],
        ),
        device(
            2,
            "san-pool-tpool",
            &lv_uuid(VG_A, 3, "-tpool"),
            "thin-pool",
            &[dm(0), dm(1)],
        ),
        device(
            3,
            "san-pool",
            &lv_uuid(VG_A, 3, "-pool"),
            "linear",
            &[dm(2)],
        ),
        device(4, "san-thin1", &lv_uuid(VG_A, 4, ""), "thin", &[dm(2)]),
        device(5, "san-plain", &lv_uuid(VG_A, 5, ""), "linear", &[sd(0)]),
    ];
    assert_eq!(levels(stack), [vec![3, 4, 5], vec![2], vec![0, 1]]);
}

#[test]
fn snapshots_come_before_their_origin() {
    let mut snapshot = device(
        0,
        "san-snap",
        &lv_uuid(VG_A, 1, ""),
        "snapshot",
        &[dm(2), dm(3)],
    );
    snapshot.targets[0].params = "253:2 253:3 P 8".into();
    let mut origin = device(
        1,
        "san-base",
        &lv_uuid(VG_A, 2, ""),
        "snapshot-origin",
        &[dm(2)],
    );
    origin.targets[0].params = "253:2".into();
    let real = device(
        2,
        "san-base-real",
        &lv_uuid(VG_A, 2, "-real"),
        "linear",
        &[sd(0)],
    );
    let cow = device(
        3,
        "san-snap-cow",
        &lv_uuid(VG_A, 1, "-cow"),
        "linear",
        &[sd(0)],
    );
    assert_eq!(
        levels(vec![snapshot, origin, real, cow]),
        [vec![0], vec![1, 3], vec![2]]
    );
}

/// While one snapshot is merged back, its origin is no `snapshot-origin`.
#[test]
fn snapshots_come_before_an_origin_that_another_is_merged_into() {
    let mut snapshot = device(
        0,
        "san-snap",
        &lv_uuid(VG_A, 1, ""),
        "snapshot",
        &[dm(2), dm(3)],
    );
    snapshot.targets[0].params = "253:2 253:3 P 8".into();
    let mut origin = device(
        1,
        "san-base",
        &lv_uuid(VG_A, 2, ""),
        "snapshot-merge",
        &[dm(2), dm(4)],
    );
    origin.targets[0].params = "253:2 253:4 P 8".into();
    let layer = |n, name, suffix| device(n, name, &lv_uuid(VG_A, n, suffix), "linear", &[sd(0)]);
    let real = layer(2, "san-base-real", "-real");
    let cow = layer(3, "san-snap-cow", "-cow");
    let merging = layer(4, "san-old-cow", "-cow");
    assert_eq!(
        levels(vec![snapshot, origin, real, cow, merging]),
        [vec![0], vec![1, 3], vec![2, 4]]
    );
}

#[test]
fn a_circle_is_one_level() {
    let a = device(0, "san-a", &lv_uuid(VG_A, 1, ""), "linear", &[dm(1)]);
    let b = device(1, "san-b", &lv_uuid(VG_A, 2, ""), "linear", &[dm(0)]);
    assert_eq!(levels(vec![a, b]), [[0, 1]]);
}

proptest::proptest! {
    #[test]
    fn no_device_is_lost_and_none_comes_before_its_user(edges in proptest::collection::vec((0u32..12, 0u32..12), 0..40)) {
        let devices: Vec<DmDevice> = (0..12).map(|n| {
            // Only downwards, as the kernel builds it.
            let deps: Vec<DevNo> = edges.iter().filter(|(a, b)| *a == n && *b > n).map(|(_, b)| dm(*b)).collect();
            device(n, "san-x", &lv_uuid(VG_A, n, ""), "linear", &deps)
        }).collect();
        let levels = levels(devices.clone());
        let level_of = |n: u32| levels.iter().position(|l| l.contains(&n)).unwrap();
        proptest::prop_assert_eq!(levels.iter().map(Vec::len).sum::<usize>(), 12);
        for d in &devices {
            for below in &d.deps {
                proptest::prop_assert!(level_of(d.dev.minor) < level_of(below.minor));
            }
        }
    }
}
