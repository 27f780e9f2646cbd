//! What `/sys/kernel/rcu_expedited` was before a fence raised it, so that whoever comes next can give it back (S4).

use std::path::{Path, PathBuf};

use super::{Error, line};

const FILE: &str = "rcu-expedited";

/// Such a file.
#[must_use]
pub fn encode(value: u32, boot_id: &str) -> Vec<u8> {
    line::encode(&format!("{value} {boot_id}"))
}

/// The value of such a file and the kernel that it is of; None when it makes no sense.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<(u32, &str)> {
    let (value, boot_id) = line::decode(bytes).next()?.split_once(' ')?;
    Some((value.parse().ok()?, boot_id))
}

/// Where it is kept, beside the journal.
#[derive(Clone, Debug)]
pub struct Expedited {
    path: PathBuf,
    boot_id: String,
}

impl Expedited {
    /// In the state directory. Reads nothing yet.
    #[must_use]
    pub(super) fn new(directory: &Path, boot_id: &str) -> Self {
        Self {
            path: directory.join(FILE),
            boot_id: boot_id.to_owned(),
        }
    }

    /// The value to be given back, if one was raised in this kernel and nobody has given it back yet. A file that makes no sense was torn by its
    /// writer's death, which comes before the raising: there is nothing to be given back.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn left(&self) -> Result<Option<u32>, Error> {
        let Some(bytes) = super::read(&self.path)? else {
            return Ok(None);
        };
        let noted = decode(&bytes);
        Ok(noted.and_then(|(value, boot)| (boot == self.boot_id).then_some(value)))
    }

    /// Notes it, before it is raised.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, value: u32) -> Result<(), Error> {
        let bytes = encode(value, &self.boot_id);
        std::fs::write(&self.path, bytes).map_err(|e| Error::of(&self.path, "written", e))
    }

    /// It has been given back.
    ///
    /// # Errors
    /// When the file cannot be removed: then the same value is given back once more.
    pub fn remove(&self) -> Result<(), Error> {
        super::remove(&self.path)
    }
}
