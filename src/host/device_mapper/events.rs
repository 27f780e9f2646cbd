//! Device mapper's own bell: since Linux 4.14 the control file can be polled for events of all devices (a path that failed, a device that came
//! or went; not a table that was swapped: that is a uevent only).
//!
//! Arm, look, wait, in this order: whatever happens after the arming is not missed, however long the look takes.

use std::fs::File;
use std::sync::Arc;

use super::Control;
use crate::host::{Paths, Result};

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
}
