//! Has the node looked at as soon as the kernel tells of something that may concern a path, instead of at the next regular look.
//!
//! What happened is never taken from the event itself: it may be lost, late or about the past. It only says that it is time to look.

use std::time::Duration;

use super::observer::Observer;
use crate::host::{KernelEvents, Paths};

/// Between two looks that events asked for. An outage comes as a storm of events, one for each path and each command that fails: what comes
/// within this time is seen by one look.
const GATHER: Duration = Duration::from_millis(50);
/// How long to wait for an event in one go.
const WAIT: Duration = Duration::from_mins(1);
/// Before the kernel is asked for events again after it would not give any.
const AFTER_AN_ERROR: Duration = Duration::from_secs(10);

/// Begins to listen, on a thread of its own, for as long as the process lives.
///
/// # Errors
/// When the system has no thread to give.
pub fn start(paths: Paths, observer: Observer) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("kernel-events".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            let events = KernelEvents::open(&paths);
            // From here on, and not from the first event on: until then each look would read every device.
            observer.hear(events.hears_devices(), true);
            let mut told = None;
            loop {
                match events.wait(WAIT) {
                    Ok(heard) => {
                        observer.hear(events.hears_devices(), heard.devices);
                        if heard.paths {
                            observer.look();
                            std::thread::sleep(GATHER);
                        }
                    }
                    Err(error) => {
                        observer.hear(false, true);
                        // Once for each kind of trouble: it is asked again and again.
                        let why = error.to_string();
                        if told.as_ref() != Some(&why) {
                            tracing::warn!(why, "no events from the kernel; outages are noticed at the next look only");
                            told = Some(why);
                        }
                        std::thread::sleep(AFTER_AN_ERROR);
                    }
                }
            }
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::host::simulated::{Layout, Simulation};

    /// Nothing may happen on a node for as long as it likes.
    #[test]
    fn changes_are_heard_of_from_the_beginning() {
        let host = Simulation::in_real_time(&Layout { groups: vec![] }).host();
        let pause = Duration::from_mins(5);
        let observer = Observer::start(host, None, pause, |_| ()).expect("a thread");
        let nothing = tempfile::tempdir().expect("tempdir");
        let paths = Paths::under(nothing.path());
        let expected = KernelEvents::open(&paths).hears_devices();
        start(paths, observer.clone()).expect("a thread");
        let began = Instant::now();
        while observer.hears() != expected || observer.heard() == 0 {
            assert!(began.elapsed() < WAIT / 2, "not told");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
