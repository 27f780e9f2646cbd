//! Waits until the kernel tells of something that may concern a path: device mapper's bell and uevents, whichever comes first.
//!
//! Neither is needed for the truth, which is read from the kernel again and again; they make it known at once. So one of them that is missing
//! is told and done without.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::device_mapper::Events;
use super::uevent::Uevents;
use super::{Error, Paths, Result};

/// What was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Something that may concern a path: it is time to look.
    pub paths: bool,
    /// A device of device mapper came, went, or got another table: what was read of them before is not good any more.
    pub devices: bool,
}

/// Both sources.
#[derive(Debug)]
pub struct KernelEvents {
    device_mapper: Events,
    uevents: Option<Uevents>,
}

impl KernelEvents {
    /// Opens what there is. Without uevents, the reason is told in the log.
    #[must_use]
    pub fn open(paths: &Paths) -> Self {
        let uevents = Uevents::open()
            .inspect_err(|error| {
                tracing::warn!(%error, "no uevents: disks that come and go are noticed at the next look only");
            })
            .ok();
        Self {
            device_mapper: Events::new(paths),
            uevents,
        }
    }

    /// Whether every change of a device of device mapper will be heard. Its bell alone does not ring for one that is resumed with the table it had.
    #[must_use]
    pub const fn hears_devices(&self) -> bool {
        self.uevents.is_some()
    }

    /// Waits for something that may concern a path or a device of device mapper, at most `limit`. What was heard.
    ///
    /// What happens between two calls is not missed: sockets keep it, and the bell counts.
    ///
    /// # Errors
    /// When device mapper cannot be used (not loaded, say) and there are no uevents either, or polling fails.
    pub fn wait(&self, limit: Duration) -> Result<Heard> {
        let file = match (self.device_mapper.file(), &self.uevents) {
            (Ok(file), _) => Some(file),
            // It may be loaded later: asked again at the next call.
            (Err(_), Some(_)) => None,
            (Err(error), None) => return Err(error),
        };
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(2);
        if let Some(file) = &file {
            polled.push(PollFd::new(file.as_fd(), PollFlags::POLLIN));
        }
        if let Some(uevents) = &self.uevents {
            polled.push(PollFd::new(uevents.fd(), PollFlags::POLLIN));
        }
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(Error::Unavailable {
                    what: "the kernel's events, polling".to_owned(),
                    source: errno.into(),
                    hint: "The node's state is read again every few seconds all the same",
                });
            }
        }
        let readable = |at: usize| polled.get(at).is_some_and(|p| p.any().unwrap_or_default());
        let rung = file.is_some() && readable(0);
        let told = match &self.uevents {
            Some(uevents) if readable(usize::from(file.is_some())) => uevents.drain()?,
            _ => Heard::default(),
        };
        if rung {
            // Before the look that follows: what happens during that look rings again.
            self.device_mapper.arm()?;
        }
        Ok(Heard {
            paths: rung || told.paths,
            devices: rung || told.devices,
        })
    }
}
