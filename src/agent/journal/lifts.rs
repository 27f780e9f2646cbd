//! The un-fences that were begun: what a successor of a killed agent needs to go on with them (S4).
//!
//! A file of its own beside the journal, which tells of fences, and of one at a time. It is there from before the first device is touched until the
//! volume groups were given back. Several requests may be half-way, since one whose step failed lets another have its turn: one line each, and a
//! volume group is in the line of the one that took it on last. What stands fenced is told by [`Standings`](super::Standings), and by nobody else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Standing, line};
use crate::fence::Monotonic;
use crate::fence::unfence::UnfenceReport;

const FILE: &str = "unfence";

/// One line of the file: an un-fence that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lift {
    /// The fences that it lifted: to be put back, should it be given up while devices of them are left.
    pub lifted: Vec<Standing>,
    /// What was done so far, and what is known of the volume groups.
    pub report: UnfenceReport,
}

impl Lift {
    /// Reads the first line of the file's bytes; None when it makes no sense.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_str(line::decode(bytes).next()?).ok()
    }

    /// Without the volume groups that were fenced later than it was begun; None when it was about no others.
    pub(super) fn before(self, fences: &[(String, Monotonic)]) -> Option<Self> {
        let report = &self.report;
        let later: BTreeSet<String> = since(report, fences).map(str::to_owned).collect();
        self.without(&later.iter().map(String::as_str).collect())
    }

    /// The UUIDs of its volume groups.
    fn uuids(&self) -> impl Iterator<Item = &str> {
        let groups = self.report.groups.iter();
        groups.map(|g| g.standing.uuid.as_str())
    }

    /// Without those volume groups; None when it was about no others.
    fn without(mut self, uuids: &BTreeSet<&str>) -> Option<Self> {
        let theirs = |uuid: &String| uuids.contains(uuid.as_str());
        self.lifted.retain(|s| !theirs(&s.group.uuid));
        self.report.groups.retain(|g| !theirs(&g.standing.uuid));
        self.report.steps.retain(|s| !theirs(&s.uuid));
        (!self.report.groups.is_empty()).then_some(self)
    }
}

/// Of an un-fence's volume groups those that were fenced since it was begun.
fn since<'a>(
    unfence: &'a UnfenceReport,
    fences: &'a [(String, Monotonic)],
) -> impl Iterator<Item = &'a str> {
    let begun = unfence.started.unwrap_or_default();
    let later = fences.iter().filter(move |(_, at)| *at > begun);
    let of_it = |uuid: &str| unfence.groups.iter().any(|g| g.standing.uuid == uuid);
    later
        .map(|(uuid, _)| uuid.as_str())
        .filter(move |uuid| of_it(uuid))
}

/// Whether there is one.
pub(super) fn any_since(unfence: &UnfenceReport, fences: &[(String, Monotonic)]) -> bool {
    since(unfence, fences).next().is_some()
}

/// Where it is kept.
#[derive(Clone, Debug)]
pub struct Lifts {
    path: PathBuf,
    boot_id: String,
}

impl Lifts {
    /// In the state directory. Reads nothing yet.
    #[must_use]
    pub fn new(directory: &Path, boot_id: &str) -> Self {
        Self {
            path: directory.join(FILE),
            boot_id: boot_id.to_owned(),
        }
    }

    /// Those that were begun in this kernel and have not ended; the one that was at work last comes last.
    ///
    /// # Errors
    /// When the file cannot be read. A line that makes no sense ends it; it cannot come from here, since files appear whole.
    pub fn all(&self) -> Result<Vec<Lift>, Error> {
        let bytes = super::read(&self.path)?.unwrap_or_default();
        let lifts = line::decode(&bytes).map_while(|json| serde_json::from_str(json).ok());
        Ok(lifts
            .filter(|l: &Lift| l.report.boot_id == self.boot_id)
            .collect())
    }

    /// The one of these that was at work last.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn left(&self) -> Result<Option<Lift>, Error> {
        Ok(self.all()?.pop())
    }

    /// Notes how far one has come. What others have left of its volume groups is its own from then on.
    ///
    /// # Errors
    /// When it cannot be written, or what is there cannot be read; what was there is then still there.
    pub fn put(&self, lift: &Lift) -> Result<(), Error> {
        let mut all = self.without(lift.uuids())?;
        all.push(lift.clone());
        super::write_lines(&self.path, &all)
    }

    /// Un-fences of those volume groups have ended, or were given up.
    ///
    /// # Errors
    /// When the file cannot be changed: a successor then looks whether there is anything left to be done.
    pub fn end<'a>(&self, uuids: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let left = self.without(uuids)?;
        if left.is_empty() {
            return super::remove(&self.path);
        }
        super::write_lines(&self.path, &left)
    }

    /// What is left but for those volume groups.
    fn without<'a>(&self, uuids: impl Iterator<Item = &'a str>) -> Result<Vec<Lift>, Error> {
        let uuids: BTreeSet<&str> = uuids.collect();
        let all = self.all()?.into_iter();
        Ok(all.filter_map(|lift| lift.without(&uuids)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::unfence::{GroupReport, Standing as Known};

    fn lift(message: &str, uuids: &[&str]) -> Lift {
        let group = |uuid: &&str| GroupReport {
            standing: Known {
                uuid: (*uuid).into(),
                ..Known::default()
            },
            ..GroupReport::default()
        };
        Lift {
            lifted: Vec::new(),
            report: UnfenceReport {
                boot_id: "boot".into(),
                message: message.into(),
                groups: uuids.iter().map(group).collect(),
                ..UnfenceReport::default()
            },
        }
    }

    #[test]
    fn one_is_left_until_it_ends_or_the_kernel_is_another() {
        let dir = tempfile::tempdir().expect("tempdir");
        let lifts = Lifts::new(dir.path(), "boot");
        assert_eq!(lifts.left().expect("read"), None);
        let lift = lift("half-way", &["a"]);
        lifts.put(&lift).expect("put");
        assert_eq!(lifts.left().expect("read"), Some(lift));
        let rebooted = Lifts::new(dir.path(), "another");
        assert_eq!(rebooted.left().expect("read"), None);
        std::fs::write(dir.path().join(FILE), "torn").expect("write");
        assert_eq!(lifts.left().expect("read"), None);
        lifts.end(["a"].into_iter()).expect("end");
        lifts.end(["a"].into_iter()).expect("twice");
        assert_eq!(lifts.left().expect("read"), None);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn one_volume_group_is_of_the_one_that_took_it_on_last() {
        let dir = tempfile::tempdir().expect("tempdir");
        let lifts = Lifts::new(dir.path(), "boot");
        let messages = || {
            let all = lifts.all().expect("read").into_iter();
            let of = |l: Lift| {
                let uuids: Vec<String> = l.uuids().map(str::to_owned).collect();
                (l.report.message, uuids.concat())
            };
            all.map(of).collect::<Vec<_>>()
        };
        let is = |message: &str, uuids: &str| (message.to_owned(), uuids.to_owned());
        lifts.put(&lift("first", &["a", "b"])).expect("put");
        lifts.put(&lift("second", &["c"])).expect("put");
        assert_eq!(messages(), [is("first", "ab"), is("second", "c")]);
        lifts.put(&lift("third", &["b", "c"])).expect("put");
        assert_eq!(messages(), [is("first", "a"), is("third", "bc")]);
        // The one at work comes last.
        lifts.put(&lift("first", &["a"])).expect("put");
        assert_eq!(messages(), [is("third", "bc"), is("first", "a")]);
        lifts.end(["a"].into_iter()).expect("end");
        assert_eq!(messages(), [is("third", "bc")]);
        lifts.end(["c", "b"].into_iter()).expect("end");
        assert!(!dir.path().join(FILE).exists());
    }
}
