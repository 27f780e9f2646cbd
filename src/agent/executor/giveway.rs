//! A fence that hangs gives way: what it waits for may never end, and no other volume group of the node is to be lost over that.
//!
//! Never before it was reported as not proven, and never by giving anything up: nothing is released, its threads stay in the kernel, and its record
//! stays unfinished, put aside for whoever resumes it ([`super::resume`]): this process, when the other fence has ended, or the next one.
//!
//! So does one that is proven, and that the lock manager keeps waiting beyond the reset that was known. Resumed, it is proven anew before anything is
//! dropped, and what was joined to its lockspace meanwhile is left alone.

use std::time::Duration;

use super::Fence;
use super::release::CONFIRM_LIMIT;
use super::swap::Swap;
use crate::agent::journal::{Begun, Record, Waits};
use crate::fence::Monotonic;
use crate::fence::report::{FenceReport, Outcome};

/// Two fences that hang take turns: each has at least this long, and until its deadline.
const LEAST_TURN: Duration = Duration::from_secs(10);
/// What a fence says that is not proven, and still tried.
pub(super) const TRIED_ON: &str = ". It is tried on for as long as the host lives";
/// The same while another fence has its turn.
const WAITS: &str = ". Another fence of this node has its turn now; then it is tried on";

/// The report of a fence that was not proven, or not released, when its writer last said something: that goes on to hold.
pub(super) fn reported(finished: Option<FenceReport>) -> Option<FenceReport> {
    let report = finished?;
    if report.outcome == Outcome::Proven {
        let locks_message = report.locks_message.trim_end_matches(WAITS).to_owned();
        return Some(FenceReport {
            finished_after: None,
            locks_message,
            ..report
        });
    }
    let report = Some(report).filter(|r| r.outcome == Outcome::NotProven)?;
    let message = report.message.trim_end_matches(WAITS);
    let message = message.trim_end_matches(TRIED_ON);
    Some(FenceReport {
        finished_after: None,
        message: format!("{message}{TRIED_ON}"),
        ..report
    })
}

impl Fence<'_> {
    /// Whether to leave the swap to let another go first.
    pub(super) fn gives_way(&mut self, swap: &Swap, now: Monotonic) -> bool {
        // Never before it was told, in this turn or in an earlier one.
        if self.report.outcome != Outcome::NotProven {
            return false;
        }
        self.gave_way = match self.journal.waits() {
            Waits::Nobody => false,
            // Its I/O may have ended while another had its turn: it looks first.
            Waits::First => swap.has_looked(now),
            Waits::Another => swap.is_given_up() && now.since(swap.began()) >= LEAST_TURN,
        };
        if self.gave_way {
            if swap.is_given_up() {
                self.not_proven(swap, now);
            }
            let message = self.report.message.trim_end_matches(TRIED_ON);
            self.report.message = format!("{message}{WAITS}");
        }
        self.gave_way
    }

    /// Whether to leave a release that the lock manager keeps waiting to let another go first, which may have less time. Before the reset that was known
    /// first only where it has had that long in an earlier turn, or where leases were renewed since, after [`CONFIRM_LIMIT`]; at once where it was
    /// `prolonged` beyond that reset; not before the lock manager was asked once more.
    pub(super) fn release_gives_way(
        &mut self,
        waited: Duration,
        holds: bool,
        prolonged: bool,
    ) -> bool {
        let turn = match self.journal.waits() {
            _ if !holds => return false,
            Waits::Nobody => return false,
            Waits::First => super::LOOK_AGAIN,
            Waits::Another => LEAST_TURN,
        };
        let enough = self.releases_again || prolonged;
        self.gave_way = waited >= turn && (enough || (waited >= CONFIRM_LIMIT && self.renewed()));
        self.gave_way
    }

    /// Whether the host is known to live longer than it was when the fence began: then nothing is lost by a release that waits.
    fn renewed(&self) -> bool {
        let now = self.current_reset();
        matches!((self.reset, now), (Some(then), Some(now)) if then.latest < now.latest)
    }

    /// Says that the release waits for its turn.
    pub(super) fn release_waits(&mut self) {
        self.report.locks_message.push_str(WAITS);
    }

    /// Its record, as it is now.
    pub(super) fn as_record(&self, finished: bool) -> Record {
        Record {
            begun: Begun {
                order: self.order.clone(),
                groups: self.groups.clone(),
                reset: self.reset,
                report: self.report.clone(),
            },
            steps: self.report.steps.clone(),
            finished: finished.then(|| self.report.clone()),
        }
    }

    pub(super) fn put_aside(&mut self) {
        let record = self.as_record(true);
        if let Err(e) = self.journal.give_way(record) {
            self.note_journal(&e);
        }
    }
}
