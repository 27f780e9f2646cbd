//! When the book takes a list for a proof, and what it says while it has none.

use super::*;
use crate::fence::Target;

fn device(kind: &str) -> DmDevice {
    DmDevice {
        uuid: format!("LVM-{}{}", "v".repeat(32), "l".repeat(32)).into(),
        sectors: 8,
        targets: vec![Target {
            length: 8,
            kind: kind.into(),
            ..Target::default()
        }]
        .into(),
        ..DmDevice::default()
    }
}

#[test]
fn a_list_that_was_begun_before_the_last_swap_ended_is_no_proof() {
    let now = Monotonic::default();
    let mut groups = [GroupRecord {
        name: "vg".into(),
        uuid: "v".repeat(32),
        ..GroupRecord::default()
    }];
    let mark: ReadMark<'_> = &|_| crate::fence::DiskMark::default();
    let mut book = Book::default();
    book.plan(0, &[Arc::new(device("linear"))], now);
    let jobs = book.start(now);
    assert_eq!((jobs.len(), book.start(now).len()), (1, 0), "nothing twice");
    let before = book.epoch();
    let swapped = Letter::Ended(0, Attempt::Swapped(Duration::ZERO));
    book.told(swapped, now);
    let list = [device("error")];
    assert!(
        book.see(&mut groups, &list, before, mark, now, now)
            .is_none()
    );
    let since = book.epoch();
    assert!(
        book.see(&mut groups, &list, since, mark, now, now)
            .is_some()
    );
    // And a plan is none either, without a list.
    let mut planned = Book::default();
    planned.plan(0, &[Arc::new(device("error"))], now);
    assert!(!planned.all_settled() && planned.planned_settled());
}

#[test]
fn that_devices_could_not_be_listed_is_said_only_where_a_list_was_asked_for() {
    let mut book = Book::default();
    book.plan(0, &[Arc::new(device("linear"))], Monotonic::default());
    assert_eq!(book.shortcomings(0), [""]);
    book.ask();
    assert_eq!(
        book.shortcomings(0),
        ["", "the devices could not be listed"]
    );
}
