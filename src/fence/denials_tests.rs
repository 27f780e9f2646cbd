use super::*;
use crate::fence::outage::{Loss, Outages};
use crate::fence::{
    DevNo, LockManager, MultipathMap, PhysicalVolume, PvKind, VolumeGroup, Watchdog,
};

/// A node with one map over disks `sda`, `sdb`...: whether each works, and its state in sysfs.
fn look(milliseconds: u64, disks: &[(bool, &str)]) -> Inventory {
    let path = |(n, (active, state)): (u8, &(bool, &str))| Path {
        name: format!("sd{}", char::from(b'a' + n)),
        active: *active,
        device_state: (*state).into(),
        ..Path::default()
    };
    let map = MultipathMap {
        uuid: "m".into(),
        paths: (0..).zip(disks).map(path).collect(),
        ..MultipathMap::default()
    };
    Inventory {
        taken_at: Monotonic(Duration::from_millis(milliseconds)),
        boot_id: String::new(),
        volume_groups: vec![VolumeGroup {
            uuid: "u".into(),
            pvs: vec![PhysicalVolume {
                dev: DevNo::default(),
                uuid: String::new(),
                kind: PvKind::Multipath(map),
            }],
            ..VolumeGroup::default()
        }],
        lock_manager: LockManager::Running(vec![]),
        watchdog: Watchdog::default(),
    }
}

const UP: (bool, &str) = (true, "running");
const DOWN: (bool, &str) = (false, "running");

/// The log and the looks of a node, one after the other.
#[derive(Default)]
struct Node {
    denials: Denials,
    outages: Outages,
    at: u64,
    tag: u32,
}

impl Node {
    fn logs(&mut self, disk: &str, tag: u32, says: Says) {
        let line = Logged {
            disk: disk.into(),
            tag,
            says,
        };
        self.denials
            .note(&line, Monotonic(Duration::from_millis(self.at)));
    }

    /// A command fails, with that answer of its target.
    fn fails(&mut self, disk: &str, sense: Option<(bool, bool)>) {
        self.tag += 1;
        self.logs(disk, self.tag, Says::Failed);
        if let Some((illegal_request, no_such_unit)) = sense {
            self.logs(disk, self.tag, Says::Key { illegal_request });
            self.logs(disk, self.tag, Says::Sense { no_such_unit });
        }
    }

    fn denies(&mut self, disks: &[&str]) {
        for disk in disks {
            self.fails(disk, Some((true, true)));
        }
    }

    /// A second later.
    fn sees(&mut self, disks: &[(bool, &str)]) -> Option<Loss> {
        self.at += 1000;
        let mut inventory = look(self.at, disks);
        self.denials.mark(&mut inventory);
        self.outages.see(&inventory);
        let outage = self.outages.of("u").filter(|o| o.down());
        outage.map(|o| o.loss)
    }
}

#[test]
fn a_lun_that_every_target_denies_is_gone_for_good_while_its_disks_run() {
    let mut node = Node::default();
    assert_eq!(node.sees(&[UP, UP]), None);
    node.denies(&["sda", "sdb"]);
    // multipath does not fail a path for that answer; its checker does.
    assert_eq!(node.sees(&[UP, UP]), None, "a path that works keeps it");
    assert_eq!(node.sees(&[UP, DOWN]), None);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
    // Nobody asks any more: it stays what it was.
    node.at += 3_600_000;
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
}

#[test]
fn paths_that_fail_for_any_other_reason_may_return() {
    for sense in [
        None,
        // NOT READY, LOGICAL UNIT NOT ACCESSIBLE.
        Some((false, false)),
        // INVALID FIELD IN CDB.
        Some((true, false)),
        // The words of another key.
        Some((false, true)),
    ] {
        let mut node = Node::default();
        node.sees(&[UP, UP]);
        node.denies(&["sda"]);
        node.fails("sdb", sense);
        for _ in 0..3 {
            assert_eq!(
                node.sees(&[DOWN, DOWN]),
                Some(Loss::PathsDown),
                "{sense:?}: one denies it, the other does not"
            );
        }
        // And what was denied is not any more, once a command fails otherwise.
        node.denies(&["sda", "sdb"]);
        assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
        node.fails("sda", sense);
        for _ in 0..3 {
            assert_eq!(
                node.sees(&[DOWN, DOWN]),
                Some(Loss::PathsDown),
                "{sense:?}: now the way there is broken"
            );
        }
    }
}

#[test]
fn a_path_on_which_nothing_was_asked_may_return() {
    let mut node = Node::default();
    node.sees(&[UP, UP]);
    node.denies(&["sda"]);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::PathsDown));
    node.denies(&["sdb"]);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
}

#[test]
fn disks_that_let_no_command_through_are_judged_by_their_state() {
    let mut node = Node::default();
    node.sees(&[UP, UP]);
    node.denies(&["sda", "sdb"]);
    for (state, loss) in [
        ("running", Loss::DeviceGone),
        ("transport-offline", Loss::PathsDown),
        ("blocked", Loss::PathsDown),
        ("gone", Loss::DeviceGone),
    ] {
        assert_eq!(
            node.sees(&[DOWN, (false, state)]),
            Some(loss),
            "one of two is {state}"
        );
    }
}

#[test]
fn what_was_denied_before_a_path_worked_says_nothing_of_a_later_outage() {
    // The path failed and came back.
    let mut node = Node::default();
    node.sees(&[UP, UP]);
    node.denies(&["sda", "sdb"]);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
    assert_eq!(node.sees(&[UP, UP]), None);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::PathsDown));
    // It never failed: mapped again before the checker looked.
    let mut node = Node::default();
    node.sees(&[UP, UP]);
    node.denies(&["sda", "sdb"]);
    for _ in 0..=LINGER.as_secs() {
        node.sees(&[UP, UP]);
    }
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::PathsDown));
}

#[test]
fn lines_that_were_lost_may_have_said_something_else() {
    let mut node = Node::default();
    node.sees(&[UP, UP]);
    node.denies(&["sda", "sdb"]);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
    node.denials.forget();
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::PathsDown));
    node.denies(&["sda", "sdb"]);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
}

#[test]
fn a_disk_that_takes_the_name_of_another_is_not_denied() {
    let mut node = Node::default();
    node.sees(&[UP, UP]);
    node.denies(&["sda", "sdb"]);
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::DeviceGone));
    assert_eq!(node.sees(&[DOWN]), Some(Loss::DeviceGone), "sdb is removed");
    assert_eq!(node.sees(&[DOWN, DOWN]), Some(Loss::PathsDown));
}

#[test]
fn lines_of_commands_that_fail_at_the_same_time_are_told_apart() {
    use Says::{Failed, Key, Sense};
    let illegal = |illegal_request| Key { illegal_request };
    let no_unit = |no_such_unit| Sense { no_such_unit };
    let told = |lines: &[(u32, Says)]| {
        let mut node = Node::default();
        node.sees(&[UP]);
        for (tag, says) in lines {
            node.logs("sda", *tag, *says);
        }
        let first = node.sees(&[DOWN]);
        (first, node.sees(&[DOWN]))
    };
    let gone = (Some(Loss::DeviceGone), Some(Loss::DeviceGone));
    let down = (Some(Loss::PathsDown), Some(Loss::PathsDown));
    let denied = [(1, Failed), (1, illegal(true)), (1, no_unit(true))];
    assert_eq!(told(&denied), gone);
    // Two of them, their lines mixed.
    let mixed = [
        (1, Failed),
        (2, Failed),
        (1, illegal(true)),
        (2, illegal(true)),
        (2, no_unit(true)),
        (1, no_unit(true)),
    ];
    assert_eq!(told(&mixed), gone);
    // The other one has no sense data: the way there is broken.
    let without = [
        (1, Failed),
        (2, Failed),
        (1, illegal(true)),
        (1, no_unit(true)),
    ];
    assert_eq!(told(&without), down);
    // The key of one and the words of the other.
    let crossed = [
        (1, Failed),
        (1, illegal(true)),
        (2, Failed),
        (2, illegal(false)),
        (2, no_unit(true)),
        (1, no_unit(false)),
    ];
    assert_eq!(told(&crossed), down);
    // Of commands that did not fail.
    assert_eq!(told(&[(1, illegal(true)), (1, no_unit(true))]), down);
    // A tag is used again: the key is the new command's.
    let again = [
        (1, Failed),
        (1, illegal(true)),
        (1, Failed),
        (1, no_unit(true)),
    ];
    assert_eq!(told(&again), down);
}

#[test]
fn a_line_that_is_read_a_look_later_counts_then() {
    let mut node = Node::default();
    node.sees(&[UP]);
    node.logs("sda", 7, Says::Failed);
    assert_eq!(node.sees(&[DOWN]), Some(Loss::PathsDown));
    let illegal_request = true;
    node.logs("sda", 7, Says::Key { illegal_request });
    let no_such_unit = true;
    node.logs("sda", 7, Says::Sense { no_such_unit });
    assert_eq!(node.sees(&[DOWN]), Some(Loss::DeviceGone));
}
