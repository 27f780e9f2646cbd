use std::io::Write as _;

use super::*;
use crate::fence::Monotonic;
use crate::fence::report::VolumeGroupReport;
use crate::fence::report::{Outcome, StepKind, StepResult};

fn step(result: StepResult) -> StepReport {
    StepReport {
        kind: StepKind::FreezeLocks,
        volume_group: "vg\n1".into(),
        map: None,
        result,
        at: None,
        took: None,
        message: Some("line\nfeed \u{fc}".into()),
        untold: false,
    }
}

fn begun() -> Begun {
    Begun {
        order: Order {
            name: "r".into(),
            ..Order::default()
        },
        groups: vec![],
        reset: Some(ResetWindow::new(Monotonic::from_secs(1), 10, 60)),
        report: FenceReport {
            boot_id: "boot".into(),
            volume_groups: vec![VolumeGroupReport::default()],
            steps: vec![step(StepResult::Planned)],
            ..FenceReport::default()
        },
    }
}

fn left(dir: &Path) -> Option<Record> {
    Journal::open(dir, "boot").expect("open").1
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, nothing) = Journal::open(dir.path(), "boot").expect("open");
    assert_eq!(nothing, None);
    journal.begin(begun()).expect("begin");
    let record = left(dir.path()).expect("record");
    assert_eq!(record.begun, begun());
    assert!(!record.touched() && !record.unfinished());
    journal.step(0, &step(StepResult::Running)).expect("step");
    let record = left(dir.path()).expect("record");
    assert!(record.touched() && record.unfinished());
    let untold = StepReport {
        untold: true,
        ..step(StepResult::Running)
    };
    journal.step(0, &untold).expect("step");
    let record = left(dir.path()).expect("record");
    assert!(!record.touched() && record.unfinished());
    // Of an earlier version, which says nothing of that: it may have been told.
    let mut json = serde_json::to_value(&untold).expect("encode");
    json.as_object_mut().expect("a step").remove("untold");
    let older: StepReport = serde_json::from_value(json).expect("decode");
    assert!(older.may_have_left_a_trace());
    journal.step(0, &step(StepResult::Done)).expect("step");
    let mut report = begun().report;
    report.outcome = Outcome::Proven;
    journal.finish(&report).expect("finish");
    let record = left(dir.path()).expect("record");
    assert_eq!(record.steps, vec![step(StepResult::Done)]);
    assert_eq!(record.finished, Some(report));
    assert!(!record.unfinished());
}

#[test]
fn another_boot_leaves_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    journal.begin(begun()).expect("begin");
    assert_eq!(
        Journal::open(dir.path(), "next boot").expect("open").1,
        None
    );
}

#[test]
fn a_torn_line_is_left_out_wherever_it_was_torn() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    journal.begin(begun()).expect("begin");
    let whole = std::fs::metadata(dir.path().join(FILE))
        .expect("stat")
        .len();
    journal.step(0, &step(StepResult::Running)).expect("step");
    let bytes = std::fs::read(dir.path().join(FILE)).expect("read");
    for cut in 0..bytes.len() {
        let record = Record::decode(&bytes[..cut]);
        let begun = u64::try_from(cut).expect("length") >= whole;
        assert_eq!(record.is_some(), begun, "cut at {cut}");
        assert!(!record.is_some_and(|r| r.touched()), "cut at {cut}");
    }
    assert!(Record::decode(&bytes).is_some_and(|r| r.touched()));
}

#[test]
fn a_flipped_bit_is_seen() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    journal.begin(begun()).expect("begin");
    let whole = std::fs::metadata(dir.path().join(FILE))
        .expect("stat")
        .len();
    journal.step(0, &step(StepResult::Running)).expect("step");
    let bytes = std::fs::read(dir.path().join(FILE)).expect("read");
    for at in usize::try_from(whole).expect("length")..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let record = Record::decode(&bytes).expect("the first line is whole");
        assert!(!record.touched(), "bit flipped in byte {at}");
    }
}

#[test]
fn a_successor_writes_after_a_torn_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    journal.begin(begun()).expect("begin");
    journal.step(0, &step(StepResult::Running)).expect("step");
    let mut file = OpenOptions::new()
        .append(true)
        .open(dir.path().join(FILE))
        .expect("open");
    file.write_all(b"00000010 torn").expect("write");
    let (mut journal, record) = Journal::open(dir.path(), "boot").expect("open");
    journal.resume(&record.expect("record")).expect("resume");
    journal.finish(&begun().report).expect("finish");
    let record = left(dir.path()).expect("record");
    assert!(record.touched() && record.finished.is_some());
}

#[test]
fn a_journal_that_cannot_be_written_says_where_and_what_to_do() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    // A directory in the way fails for root too.
    std::fs::create_dir(dir.path().join("journal.new")).expect("mkdir");
    let error = journal.begin(begun()).expect_err("must fail").to_string();
    assert!(error.contains(&dir.path().display().to_string()), "{error}");
    assert!(error.contains("tmpfs"), "{error}");
    assert!(journal.step(0, &step(StepResult::Done)).is_err());
}

/// What cannot be written to its end: a tmpfs that is full takes a part of it.
struct Torn(std::cell::Cell<u32>);

impl serde::Serialize for Torn {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.set(self.0.get() + 1);
        let parts = (0..300).map(|n| {
            if n == 200 && self.0.get() == 2 {
                return Err(serde::ser::Error::custom("no space left"));
            }
            Ok("x".repeat(1000))
        });
        let parts = parts.collect::<Vec<_>>();
        let mut all = to.serialize_seq(None)?;
        for part in parts {
            serde::ser::SerializeSeq::serialize_element(&mut all, &part?)?;
        }
        serde::ser::SerializeSeq::end(all)
    }
}

#[test]
fn what_is_noted_after_a_torn_line_is_read_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    journal.begin(begun()).expect("begin");
    let size = || {
        let journal = std::fs::metadata(dir.path().join("journal"));
        journal.expect("journal").len()
    };
    let before = size();
    assert!(journal.append(&Torn(0.into())).is_err());
    assert_eq!(size(), before);
    journal.step(0, &step(StepResult::Done)).expect("step");
    let record = left(dir.path()).expect("record");
    assert_eq!(record.steps, [step(StepResult::Done)]);
}

#[test]
fn a_journal_that_cannot_be_replaced_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    // A directory in the way fails for root too.
    std::fs::create_dir_all(dir.path().join("journal").join("x")).expect("mkdir");
    assert!(journal.begin(begun()).is_err());
    assert!(!dir.path().join("journal.new").exists());
}

fn of(name: &str) -> Begun {
    Begun {
        order: Order {
            name: name.into(),
            uid: format!("uid-{name}"),
            ..Order::default()
        },
        ..begun()
    }
}

#[test]
fn an_unfinished_record_is_in_the_journal_or_aside_at_every_point() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut journal, _) = Journal::open(dir.path(), "boot").expect("open");
    let aside = |journal: &Journal| -> Vec<String> {
        let all = journal.set_aside().expect("read").into_iter();
        all.map(|r| r.begun.order.name).collect()
    };
    journal.begin(of("a")).expect("begin");
    journal.step(0, &step(StepResult::Running)).expect("step");
    // The next one begins, but cannot be written: both places have it, as in a kill before the journal is replaced.
    let in_the_way = dir.path().join("journal.new");
    std::fs::create_dir(&in_the_way).expect("mkdir");
    assert!(journal.begin(of("b")).is_err());
    assert!(journal.step(0, &step(StepResult::Done)).is_err());
    let a = left(dir.path()).expect("record");
    assert_eq!(
        (a.begun.clone(), aside(&journal)),
        (of("a"), vec!["a".to_owned()])
    );
    assert_eq!(a.steps, [step(StepResult::Running)]);
    std::fs::remove_dir(&in_the_way).expect("rmdir");
    journal.begin(of("b")).expect("begin");
    journal.step(0, &step(StepResult::Running)).expect("step");
    // It cannot be put back: it stays aside.
    std::fs::create_dir(&in_the_way).expect("mkdir");
    assert!(journal.resume(&a).is_err());
    assert_eq!(aside(&journal), ["a", "b"]);
    std::fs::remove_dir(&in_the_way).expect("rmdir");
    journal.resume(&a).expect("resume");
    assert_eq!(left(dir.path()), Some(a));
    assert_eq!(aside(&journal), ["b"]);
    // One that has ended need not be kept, and another boot knows none.
    let mut proven = begun().report;
    proven.outcome = Outcome::Proven;
    journal.finish(&proven).expect("finish");
    journal.begin(of("c")).expect("begin");
    assert_eq!(aside(&journal), ["b"]);
    let (other, _) = Journal::open(dir.path(), "next boot").expect("open");
    assert_eq!(other.set_aside().expect("read"), []);
}

proptest::proptest! {
    #[test]
    fn garbage_is_no_record_and_no_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        proptest::prop_assert_eq!(Record::decode(&bytes), None);
    }
}

/// What the fuzzer begins with is what these files are like.
#[test]
fn the_files_that_are_fuzzed_are_read() {
    let aside = include_bytes!("../../../fuzz/corpus/journal/by-hand-set-aside");
    let unfinished = super::aside::decode(aside).map(|r| r.unfinished());
    assert_eq!(unfinished.collect::<Vec<_>>(), [true, true]);
    let given_back = include_bytes!("../../../fuzz/corpus/journal/by-hand-given-back");
    let of_boot = super::given_back::decode(given_back).map(|e| e.boot_id == "gone");
    assert_eq!(of_boot.collect::<Vec<_>>(), [false, true]);
    let expedited = include_bytes!("../../../fuzz/corpus/journal/by-hand-rcu-expedited");
    assert!(super::expedited::decode(expedited).is_some_and(|(value, _)| value == 0));
}
