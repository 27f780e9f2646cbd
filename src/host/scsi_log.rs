//! What the kernel's log says of SCSI commands that failed. A target that has no such LUN (any more) says so in its sense data, and that is kept
//! nowhere else: the disk stays `running` in sysfs.
//!
//! The lines are those of `scsi_print_result` and `scsi_print_sense` (Linux `drivers/scsi/scsi_logging.c`), as `scsi_io_completion` has them
//! printed of what it gives up, at most ten commands in five seconds. Commands that programs issue by themselves (multipathd's `tur`
//! checker) are not among them.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Error, Paths, Result};
use crate::fence::denials::{Logged, Says};

/// The kernel takes no more for one record (`CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;
/// Records that are read in one go; the rest waits for the next.
const AT_ONCE: usize = 4096;

/// What is logged of SCSI commands.
pub trait ScsiLog: Send {
    /// Hands out what has been logged since the last call. Whether that is all: the log overwrites what nobody has read.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, take: &mut dyn FnMut(&Logged)) -> Result<bool>;
}

/// Reads a record of `/dev/kmsg`: `LEVEL,SEQUENCE,TIME,FLAGS;TEXT`, then lines of its own. None when it is about something else, or not the
/// kernel's own.
#[must_use]
pub fn parse(record: &[u8]) -> Option<Logged> {
    let line = record.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (prefix, text) = line.split_once(';')?;
    // The facility is in the upper bits. Nobody else can log with that of the kernel, which is 0.
    let level: u32 = prefix.split(',').next()?.parse().ok()?;
    if level > 7 {
        return None;
    }
    // `sd 2:0:0:1: [sdb] tag#12 `, and then what it says.
    let (_, rest) = text.split_once(": [")?;
    let (disk, rest) = rest.split_once("] tag#")?;
    let (tag, said) = rest.split_once(' ')?;
    let name = !disk.is_empty() && disk.bytes().all(|b| b.is_ascii_alphanumeric());
    Some(Logged {
        disk: name.then(|| disk.to_owned())?,
        tag: tag.parse().ok()?,
        says: says(said.trim_end())?,
    })
}

/// Without `CONFIG_SCSI_CONSTANTS` the kernel has numbers for words.
fn says(said: &str) -> Option<Says> {
    if said.contains("Result: hostbyte=") {
        return Some(Says::Failed);
    }
    if let Some(key) = said.strip_prefix("Sense Key : ") {
        // That of an earlier command is `[deferred]`.
        let illegal = key.starts_with("Illegal Request ") || key.starts_with("0x5 ");
        return Some(Says::Key {
            illegal_request: illegal && key.contains("[current]"),
        });
    }
    let named = said.strip_prefix("Add. Sense: ");
    let numbered = said.starts_with("ASC=") || said.starts_with("<<vendor>>ASC=");
    (named.is_some() || numbered).then(|| Says::Sense {
        no_such_unit: named == Some("Logical unit not supported") || said == "ASC=0x25 ASCQ=0x0",
    })
}

/// `/dev/kmsg`.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
}

impl Kmsg {
    /// From now on: what was logged before may be of another life of the storage.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(paths: &Paths) -> Result<Self> {
        let path = paths.dev.join("kmsg");
        let unavailable = |source| Error::Unavailable {
            what: format!("the kernel's log, {}", path.display()),
            source,
            hint: "In a pod, mount the host's /dev; it takes `privileged: true`",
        };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let mut file = options.open(&path).map_err(unavailable)?;
        file.seek(SeekFrom::End(0)).map_err(unavailable)?;
        Ok(Self { file })
    }
}

impl ScsiLog for Kmsg {
    fn read(&mut self, take: &mut dyn FnMut(&Logged)) -> Result<bool> {
        let mut record = [0_u8; RECORD];
        let mut all = true;
        for _ in 0..AT_ONCE {
            // One read is one record.
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    if let Some(line) = record.get(..length).and_then(parse) {
                        take(&line);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Overwritten before it was read, or too long for any line of these.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => all = false,
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
                Err(source) => {
                    return Err(Error::Unavailable {
                        what: "the kernel's log".to_owned(),
                        source,
                        hint: "A LUN that was unmapped counts as one that may return",
                    });
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
#[path = "scsi_log_tests.rs"]
mod tests;
