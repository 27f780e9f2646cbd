//! When volume groups were given back by an un-fence: a record of before is about a former life of theirs, and nothing of it is to be completed.
//!
//! A file of its own, because an un-fence has no turn: journal and records set aside may be written by a kill hook at the same time. Only the agent
//! writes here, one un-fence after the other.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Record, line};
use crate::fence::Monotonic;

const FILE: &str = "given-back";

/// A volume group that was given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of the kernel that it was given back in.
    pub boot_id: String,
    /// Of the volume group.
    pub uuid: String,
    /// When.
    pub at: Monotonic,
}

/// The entries of such a file, up to the first line that is torn.
pub fn decode(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    line::decode(bytes).filter_map(|json| serde_json::from_str(json).ok())
}

/// The file.
#[derive(Clone, Debug)]
pub struct GivenBack {
    path: PathBuf,
    boot_id: String,
}

impl GivenBack {
    pub(super) fn new(directory: &Path, boot_id: &str) -> Self {
        Self {
            path: directory.join(FILE),
            boot_id: boot_id.to_owned(),
        }
    }

    fn all(&self) -> Result<Vec<Entry>, Error> {
        let bytes = super::read(&self.path)?.unwrap_or_default();
        let ours = |e: &Entry| e.boot_id == self.boot_id;
        Ok(decode(&bytes).filter(ours).collect())
    }

    /// The volume groups with these UUIDs were given back at that time.
    ///
    /// # Errors
    /// When it cannot be written; a fence of them that was not proven is then tried on.
    pub fn note<'a>(
        &self,
        uuids: impl Iterator<Item = &'a str>,
        at: Monotonic,
    ) -> Result<(), Error> {
        let mut all = self.all()?;
        for uuid in uuids {
            all.retain(|e| e.uuid != uuid);
            all.push(Entry {
                boot_id: self.boot_id.clone(),
                uuid: uuid.to_owned(),
                at,
            });
        }
        super::write_lines(&self.path, &all)
    }

    /// Whether all that a fence was about was given back after it had begun. What cannot be read says no.
    pub(super) fn covers(&self, record: &Record) -> bool {
        let groups = &record.begun.groups;
        let Ok(all) = self.all() else { return false };
        let began = record.begun.report.started;
        let since = |uuid: &str| all.iter().any(|e| e.uuid == uuid && e.at > began);
        !groups.is_empty() && groups.iter().all(|g| since(&g.uuid))
    }
}
