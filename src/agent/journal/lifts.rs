//! The un-fence that is going on: what a successor of a killed agent needs to go on with it (S4).
//!
//! A file of its own beside the journal, which tells of fences, and of one at a time. It is there from before the first device is touched until the
//! volume groups were given back. What stands fenced is told by [`Standings`](super::Standings), and by nobody else.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Standing, line};
use crate::fence::unfence::UnfenceReport;

const FILE: &str = "unfence";

/// An un-fence that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lift {
    /// The fences that it lifted: to be put back, should it be given up while devices of them are left.
    pub lifted: Vec<Standing>,
    /// What was done so far, and what is known of the volume groups.
    pub report: UnfenceReport,
}

impl Lift {
    /// Reads the file's bytes; None when they make no sense.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_str(line::decode(bytes).next()?).ok()
    }
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

    /// The one that was begun in this kernel and has not ended.
    ///
    /// # Errors
    /// When the file cannot be read. One that makes no sense is none; it cannot come from here, since files appear whole.
    pub fn left(&self) -> Result<Option<Lift>, Error> {
        let Some(bytes) = super::read(&self.path)? else {
            return Ok(None);
        };
        Ok(Lift::decode(&bytes).filter(|l| l.report.boot_id == self.boot_id))
    }

    /// Notes how far it has come.
    ///
    /// # Errors
    /// When it cannot be written; what was there is then still there.
    pub fn put(&self, lift: &Lift) -> Result<(), Error> {
        super::write_lines(&self.path, [lift])
    }

    /// It has ended, or was given up.
    ///
    /// # Errors
    /// When the file cannot be removed: a successor then looks whether there is anything left to be done.
    pub fn end(&self) -> Result<(), Error> {
        super::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_left_until_it_ends_or_the_kernel_is_another() {
        let dir = tempfile::tempdir().expect("tempdir");
        let lifts = Lifts::new(dir.path(), "boot");
        assert_eq!(lifts.left().expect("read"), None);
        let lift = Lift {
            lifted: Vec::new(),
            report: UnfenceReport {
                boot_id: "boot".into(),
                message: "half-way".into(),
                ..UnfenceReport::default()
            },
        };
        lifts.put(&lift).expect("put");
        assert_eq!(lifts.left().expect("read"), Some(lift));
        let rebooted = Lifts::new(dir.path(), "another");
        assert_eq!(rebooted.left().expect("read"), None);
        std::fs::write(dir.path().join(FILE), "torn").expect("write");
        assert_eq!(lifts.left().expect("read"), None);
        lifts.end().expect("end");
        lifts.end().expect("twice");
        assert_eq!(lifts.left().expect("read"), None);
    }
}
