//! Device mapper's own bell: since Linux 4.14 the control file can be polled for events of all devices (a path that failed, a table that was
//! swapped, a device that came or went).
//!
//! Arm, look, wait, in this order: whatever happens after the arming is not missed, however long the look takes.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Control;
use crate::host::{DeviceEvents, Error, Paths, Result};

/// The bell. It has a control file of its own: what is armed belongs to the open file.
#[derive(Debug)]
pub struct Events {
    control: Control,
}

impl Events {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            control: Control::new(paths),
        }
    }

    /// On that control device.
    pub(super) const fn on(control: Control) -> Self {
        Self { control }
    }

    /// Counts from now on what happens.
    ///
    /// # Errors
    /// When the control device cannot be used.
    pub fn arm(&self) -> Result<()> {
        self.control.arm_poll()
    }

    /// What to poll for reading, together with other files.
    ///
    /// # Errors
    /// When the control device cannot be opened.
    pub fn file(&self) -> Result<Arc<File>> {
        self.control.file()
    }

    /// Whether something has happened since it was armed; waits for it until `limit`.
    ///
    /// # Errors
    /// When the control device cannot be used.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let file = self.control.file()?;
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, limit) {
            Ok(n) => Ok(n > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(Error::Unavailable {
                what: "device mapper, polling its control file".to_owned(),
                source: errno.into(),
                hint: "The node's state is read again every few seconds all the same",
            }),
        }
    }
}

impl DeviceEvents for Events {
    fn arm(&mut self) -> Result<()> {
        Self::arm(self)
    }

    fn wait(&mut self, limit: Duration) -> Result<bool> {
        Self::wait(self, limit)
    }
}
