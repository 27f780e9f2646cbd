//! How long the watchdog leaves, and how that is divided.
//!
//! All of it follows from one point in time, the last successful renewal of the lockspace, and two settings: sanlock's I/O time-out and the
//! watchdog's fire time-out (sanlock: src/timeouts.c, lockspace.c `check_our_lease`; wdmd/main.c `test_clients`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::inventory::{Lockspace, Watchdog};
use super::time::Monotonic;

/// Kept back for the release: sanlock's main loop and wdmd look once a second each, and removing a lockspace was measured at two seconds.
const RELEASE_MARGIN: Duration = Duration::from_secs(10);
/// Of a budget that is small or used up, at least this much goes into trying.
const LEAST_TRY: Duration = Duration::from_secs(3);

const fn seconds(n: u32) -> Duration {
    Duration::from_secs(n as u64)
}

/// How often wdmd tests its clients, in seconds (wdmd/main.c).
#[must_use]
pub const fn test_interval(fire_timeout: u32) -> u32 {
    match fire_timeout {
        60.. => 10,
        30.. => 5,
        10.. => 2,
        _ => 1,
    }
}

/// From the last renewal to the end of the lease: sanlock gives up the lockspace and starts killing.
#[must_use]
pub const fn lease_lifetime(io_timeout: u32) -> Duration {
    seconds(io_timeout.saturating_mul(8))
}

/// When the watchdog may reset the host, and when it will have done so at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetWindow {
    /// Not before.
    pub earliest: Monotonic,
    /// Not after.
    pub latest: Monotonic,
}

impl ResetWindow {
    /// For one lockspace.
    #[must_use]
    pub fn new(last_renewal: Monotonic, io_timeout: u32, fire_timeout: u32) -> Self {
        let latest = last_renewal + lease_lifetime(io_timeout) + seconds(fire_timeout);
        Self {
            earliest: latest - seconds(test_interval(fire_timeout)),
            latest,
        }
    }

    /// Of several lockspaces, the one that runs out first. None when it cannot be told: a renewal or the fire time-out is not known.
    #[must_use]
    pub fn of<'a>(
        lockspaces: impl IntoIterator<Item = &'a Lockspace>,
        watchdog: &Watchdog,
    ) -> Option<Self> {
        if !watchdog.known || watchdog.fire_timeout == 0 {
            return None;
        }
        let window = |l: &Lockspace| {
            l.last_renewal
                .map(|at| Self::new(at, l.io_timeout, watchdog.fire_timeout))
        };
        let windows: Option<Vec<Self>> = lockspaces.into_iter().map(window).collect();
        windows?.into_iter().min_by_key(|w| w.earliest)
    }

    /// What is left until the earliest reset.
    #[must_use]
    pub fn budget(&self, now: Monotonic) -> Duration {
        self.earliest.since(now)
    }
}

/// Whether the lease of a lockspace is not being renewed: renewals come every two I/O time-outs, and two of them are missing.
#[must_use]
pub fn overdue(lockspace: &Lockspace, now: Monotonic) -> bool {
    let late = seconds(lockspace.io_timeout.saturating_mul(4));
    lockspace
        .last_renewal
        .is_some_and(|at| now.since(at) > late)
}

/// What is left at worst when the paths are lost: they were lost right before a renewal, and renewals come every two I/O time-outs.
#[must_use]
pub fn worst_case(io_timeout: u32, fire_timeout: u32) -> Duration {
    ResetWindow::new(Monotonic::default(), io_timeout, fire_timeout)
        .earliest
        .0
        .saturating_sub(seconds(io_timeout.saturating_mul(2)))
}

/// Until when the swap of all tables has to be proven: what the order grants, but early enough before the reset to release the locks in time.
///
/// Proof that comes later is still proof: this only says when to report that it is missing.
#[must_use]
pub fn swap_deadline(
    started: Monotonic,
    drain_timeout: Duration,
    reset: Option<ResetWindow>,
) -> Monotonic {
    let granted = started + drain_timeout;
    let Some(reset) = reset else { return granted };
    let margin = RELEASE_MARGIN.min((reset.budget(started) / 4).max(LEAST_TRY));
    granted.min((reset.earliest - margin).max(started + LEAST_TRY))
}

/// The client by which sanlock keeps the watchdog armed for a lockspace.
#[must_use]
pub fn watchdog_client(lockspace: &str, host_id: u64) -> String {
    format!("sanlock_{lockspace}:{host_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (I/O time-out, fire time-out, earliest reset, latest reset, worst-case budget), seconds after the last renewal.
    const TABLE: [(u32, u32, u64, u64, u64); 5] = [
        (10, 60, 130, 140, 110),
        (5, 60, 90, 100, 80),
        (2, 60, 66, 76, 62),
        (5, 30, 65, 70, 55),
        (2, 10, 24, 26, 20),
    ];

    #[test]
    fn resets_come_when_the_timeline_says() {
        for (io, fire, earliest, latest, worst) in TABLE {
            let window = ResetWindow::new(Monotonic::from_secs(1000), io, fire);
            let at = (window.earliest, window.latest);
            let expected = (
                Monotonic::from_secs(1000 + earliest),
                Monotonic::from_secs(1000 + latest),
            );
            assert_eq!(at, expected, "io {io} fire {fire}");
            assert_eq!(
                worst_case(io, fire),
                Duration::from_secs(worst),
                "io {io} fire {fire}"
            );
        }
    }

    #[test]
    fn wdmd_tests_as_often_as_its_source_says() {
        for (fire, interval) in [
            (120, 10),
            (60, 10),
            (59, 5),
            (30, 5),
            (29, 2),
            (10, 2),
            (9, 1),
        ] {
            assert_eq!(test_interval(fire), interval, "fire {fire}");
        }
    }

    fn lockspace(last_renewal: Option<u64>) -> Lockspace {
        Lockspace {
            io_timeout: 10,
            last_renewal: last_renewal.map(Monotonic::from_secs),
            ..Lockspace::default()
        }
    }

    #[test]
    fn the_first_lockspace_to_run_out_counts_and_unknown_stays_unknown() {
        let known = Watchdog {
            known: true,
            fire_timeout: 60,
            ..Watchdog::default()
        };
        let two = [lockspace(Some(120)), lockspace(Some(100))];
        let window = ResetWindow::of(&two, &known).expect("known");
        assert_eq!(window.earliest, Monotonic::from_secs(230));
        assert_eq!(
            ResetWindow::of(&[lockspace(Some(1)), lockspace(None)], &known),
            None
        );
        assert_eq!(ResetWindow::of(&two, &Watchdog::default()), None);
        assert_eq!(ResetWindow::of(&[], &known), None);
    }

    #[test]
    fn the_deadline_leaves_time_to_release() {
        let minute = Duration::from_mins(1);
        let start = Monotonic::from_secs(1000);
        let reset = |earliest| {
            let earliest = Monotonic::from_secs(earliest);
            Some(ResetWindow {
                earliest,
                latest: earliest + Duration::from_secs(10),
            })
        };
        for (reset, drain, expected) in [
            (None, minute, 1060),
            (reset(1110), minute, 1060),
            (reset(1050), minute, 1040),
            // A small budget is shared, a used-up one does not keep from trying.
            (reset(1020), minute, 1015),
            (reset(1004), minute, 1003),
            (reset(900), minute, 1003),
            (reset(900), Duration::from_secs(1), 1001),
        ] {
            assert_eq!(
                swap_deadline(start, drain, reset),
                Monotonic::from_secs(expected),
                "{reset:?}"
            );
        }
    }
}
