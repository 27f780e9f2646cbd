//! One device, on a thread of its own: load the error table, swap, until the kernel has done it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fence::DevNo;
use crate::host::{Bell, Error, Host, Result};

const PAUSE: Duration = Duration::from_millis(10);

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The swap returned 0 after so long: nothing was in flight when the error table went live.
    Swapped(Duration),
    /// The error table was live already. The kernel makes a table live only after the suspend that waits for all I/O of the former one, so
    /// this is the work of a swap whose end nobody saw, or of somebody else's.
    Found,
    /// There is no such device any more.
    Gone,
    /// It did not work, for this reason.
    Failed(String),
}

/// Tries until the kernel has done it, or says something that trying again at once does not help, or `stop` is set.
///
/// A swap that hangs keeps its error table in the inactive slot, and so does one that was interrupted. It is left there: whoever resumes the
/// device next only completes the fence, while clearing it would race with the swap that still waits.
pub(super) fn attempt(host: &Host, dev: DevNo, uuid: &str, stop: &AtomicBool) -> Attempt {
    while !stop.load(Ordering::Relaxed) {
        match once(host, dev, uuid) {
            Ok(attempt) => return attempt,
            Err(Error::NoSuchDevice { .. }) => return Attempt::Gone,
            Err(Error::Interrupted { .. } | Error::Busy { .. }) => {
                let until = host.system.monotonic() + PAUSE;
                host.system.wait(&Bell::default(), 0, until);
            }
            Err(e) => return Attempt::Failed(e.to_string()),
        }
    }
    Attempt::Failed("the fence ended before it could be tried again".into())
}

fn once(host: &Host, dev: DevNo, uuid: &str) -> Result<Attempt> {
    let mapper = &host.device_mapper;
    // The number may be another device's by now: the UUID decides.
    let before = mapper.device(dev)?;
    if before.uuid != uuid {
        return Ok(Attempt::Gone);
    }
    if before.is_error_only() {
        return Ok(Attempt::Found);
    }
    // A device without a table has no size yet; the least that can be loaded denies it one.
    mapper.load_error(dev, before.sectors.max(1))?;
    if mapper.device(dev)?.uuid != uuid {
        mapper.clear_inactive(dev)?;
        return Ok(Attempt::Gone);
    }
    let started = host.system.monotonic();
    mapper.swap(dev)?;
    Ok(Attempt::Swapped(host.system.monotonic().since(started)))
}
