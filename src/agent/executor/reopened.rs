//! Whether what was proven to be closed still is, right before locks are given away (S1).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::telling::telling;
use super::track::{Proof, open_groups};
use super::{Fence, LIST_LIMIT, limited};
use crate::fence::DmDevice;
use crate::fence::remembered::ReadMark;
use crate::fence::report::{DeviceOutcome, Outcome, StepKind, StepResult};

impl Fence<'_> {
    /// Whether everything is closed, by a proof that is no older than that: had anew if need be. None: the devices cannot be listed just now.
    pub(super) fn still_closed(&mut self, proof: &mut Proof, age: Duration) -> Option<bool> {
        let now = self.host.system.monotonic();
        if proof.age(now) <= age {
            return Some(true);
        }
        // Tried again, it gets nothing done.
        let signs = proof.first_look().then(|| self.journal.signs());
        let list = limited::call(
            self.host,
            "listing the devices",
            LIST_LIMIT,
            move |h| match &signs {
                Some(signs) => telling(h, signs).device_mapper.devices(),
                None => h.device_mapper.devices(),
            },
        );
        let list = match list {
            Ok(list) => list,
            Err(e) => {
                self.note(format!(
                    "Listing the devices before the release failed and was tried again: {e}"
                ));
                return None;
            }
        };
        self.hand_on_open(&list);
        let mark = |dev| self.host.system.mark(dev);
        match proof.again(&self.groups, &self.handed_on, &list, &mark, now) {
            Ok(again) => *proof = again,
            Err(open) => {
                self.tell_open(open, &list);
                return Some(false);
            }
        }
        Some(true)
    }

    /// Of a fence that was proven in an earlier turn, by that list.
    pub(super) fn tell_reopened(&mut self, list: &[DmDevice], mark: ReadMark<'_>) {
        let open = open_groups(&self.groups, &self.handed_on, list, mark);
        if !open.is_empty() {
            self.tell_open(open, list);
        }
    }

    fn tell_open(&mut self, groups: BTreeSet<usize>, list: &[DmDevice]) {
        for group in groups {
            self.not_proven_any_more(group, list);
        }
        self.publish();
    }

    /// Until it is again.
    fn not_proven_any_more(&mut self, group: usize, list: &[DmDevice]) {
        let name = self.groups.get(group).map_or("", |g| g.name.as_str());
        let open = format!("A device of volume group {name} could reach the SAN again");
        let why =
            format!("{open} after it had been proven: it is closed, and all of it proven again");
        let leads: HashSet<&str> = list
            .iter()
            .filter(|d| !d.is_error_only())
            .map(|d| d.uuid.as_str())
            .collect();
        let told = self.report.volume_groups.get_mut(group);
        for device in told.into_iter().flat_map(|g| Arc::make_mut(&mut g.devices)) {
            if leads.contains(device.uuid.as_str()) {
                device.outcome = DeviceOutcome::Planned;
            }
        }
        let verify = self.step(StepKind::Verify, group);
        if let Some(step) = verify.and_then(|at| self.report.steps.get_mut(at)) {
            (step.result, step.took) = (StepResult::Running, None);
            step.message = Some(why.clone());
        }
        self.write(verify);
        self.report.outcome = Outcome::InProgress;
        self.report.message = why;
        self.note(if self.unguarded.contains(&group) {
            format!(
                "{open} when nobody held its locks any more: another host may use its volumes. Nothing is called released before it is closed; \
                 if it is not, reset this host"
            )
        } else {
            format!("{open} before the locks were released: it is closed first")
        });
    }
}
