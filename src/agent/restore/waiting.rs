//! What an attempt says that waits.

use super::Obstacle;
use crate::fence::unfence::{Blocker, UnfenceOutcome, UnfenceReport};

pub(super) const INTERRUPTED: &str =
    "Interrupted, because the node is to be fenced. It goes on later";

/// It is not known how things stand, or was not looked at.
pub(super) fn unseen(report: UnfenceReport, obstacle: Obstacle) -> UnfenceReport {
    match obstacle {
        Obstacle::Interrupted => interrupted(report),
        Obstacle::Blocked(blockers) => waits(report, blockers),
        Obstacle::Failed(blocker) => waits(report, vec![*blocker]),
    }
}

/// Something speaks against it, and nothing was touched this time.
pub(super) fn waits(mut report: UnfenceReport, blockers: Vec<Blocker>) -> UnfenceReport {
    report.outcome = UnfenceOutcome::Waiting;
    report.message = message(&blockers);
    report.blockers = blockers;
    report.failures = 0;
    report
}

/// It was interrupted before anything was touched.
fn interrupted(report: UnfenceReport) -> UnfenceReport {
    // One that was done has nothing left of its own, and was asked about something else.
    let done = report.outcome == UnfenceOutcome::Done;
    let kept = if done {
        UnfenceReport {
            order: report.order,
            looked: report.looked,
            ..UnfenceReport::default()
        }
    } else {
        report
    };
    UnfenceReport {
        outcome: UnfenceOutcome::Waiting,
        message: INTERRUPTED.into(),
        ..kept
    }
}

/// The first few, in words.
pub(super) fn message(blockers: &[Blocker]) -> String {
    const TOLD: usize = 3;
    let mut words: Vec<String> = blockers
        .iter()
        .take(TOLD)
        .map(|b| b.message.clone())
        .collect();
    if blockers.len() > TOLD {
        words.push(format!("and {} more", blockers.len() - TOLD));
    }
    format!("Waiting: {}", words.join("; "))
}
