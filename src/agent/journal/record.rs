//! What the lines of a journal say about a fence.

use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

use super::{Begun, line};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepReport, StepResult};

#[derive(Serialize, Deserialize)]
pub(super) enum Entry {
    Begun(Box<Begun>),
    /// Index into the report's steps, and the step as it stood.
    Step(usize, StepReport),
    Finished(Box<FenceReport>),
}

/// What a journal says about a fence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How it began.
    pub begun: Begun,
    /// The steps as far as they got: `Running` when the writer died in one.
    pub steps: Vec<StepReport>,
    /// What was said last: how it ended, or that it was not proven by its deadline. None when its writer died before.
    pub finished: Option<FenceReport>,
}

impl Record {
    /// What the bytes of a journal tell, up to the first line that is torn or makes no sense.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        // From memory nothing fails to be read.
        Self::read(bytes).unwrap_or_default()
    }

    /// The same of a file, of which one line at a time is held: each may have megabytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(lines: impl BufRead) -> io::Result<Option<Self>> {
        let mut record = None;
        line::read(lines, |json| Self::take(&mut record, json))?;
        Ok(record)
    }

    /// Takes in what the next line tells. Whether it makes sense.
    fn take(record: &mut Option<Self>, json: &str) -> bool {
        match (serde_json::from_str(json), record) {
            (Ok(Entry::Begun(begun)), record @ None) => {
                let steps = begun.report.steps.clone();
                *record = Some(Self {
                    begun: *begun,
                    steps,
                    finished: None,
                });
            }
            (Ok(Entry::Step(index, step)), Some(record)) => match record.steps.get_mut(index) {
                Some(known) => *known = step,
                None => return false,
            },
            (Ok(Entry::Finished(report)), Some(record)) => record.finished = Some(*report),
            _ => return false,
        }
        true
    }

    /// Whether anything may have been done that leaves a trace: without that, it can still be called off.
    #[must_use]
    pub fn touched(&self) -> bool {
        self.steps.iter().any(StepReport::may_have_left_a_trace)
    }

    /// Whether a successor has to complete it: its first step was begun, and it did not end, or ended without proof (which may be had now), or another
    /// went before while the lock manager kept its release waiting.
    #[must_use]
    pub fn unfinished(&self) -> bool {
        let begun = |s: &StepReport| {
            s.kind == StepKind::FreezeLocks && !matches!(s.result, StepResult::Planned)
        };
        let ended = |r: &FenceReport| r.outcome != Outcome::NotProven && !releases(r);
        self.steps.iter().any(begun) && !self.finished.as_ref().is_some_and(ended)
    }

    /// Whether it was reported as not proven: until then nothing goes before it.
    #[must_use]
    pub const fn given_up(&self) -> bool {
        self.finished.is_some()
    }
}

/// Whether a fence is proven and goes on to wait for the lock manager to let go: one that has given its turn away, and has not ended.
fn releases(report: &FenceReport) -> bool {
    report.outcome == Outcome::Proven
        && report.locks == LocksOutcome::NotConfirmed
        && report.finished_after.is_none()
}
