//! Volume groups that the fence has released, and that were joined to their lockspace anew while it still waits for another one of the order. Their
//! volumes are in use under other locks and none of its business (S2); what it left behind there is the guard's to watch.

use super::Fence;
use super::incarnation::{Held, held};
use super::track::closed;
use crate::fence::report::{StepKind, StepResult, VolumeGroupReport};
use crate::fence::{DmDevice, Lockspace, LockspaceState};
use crate::host::SanlockStatus;

impl Fence<'_> {
    /// Notes which of the released ones are held anew, if sanlock has a lockspace of their name.
    pub(super) fn hand_on(&mut self, sanlock: &SanlockStatus) {
        let named = |group: usize| {
            let of = self.report.volume_groups.get(group);
            let name = of.and_then(|g| g.lockspace.as_deref());
            name.is_some_and(|name| alive(sanlock, name))
        };
        if self.released().into_iter().any(named) {
            self.hand_on_by();
        }
    }

    /// The same if something of theirs is open by that list. The lock manager is asked after it: a volume group is joined before a volume of it is
    /// activated under the new locks.
    pub(super) fn hand_on_open(&mut self, list: &[DmDevice]) {
        let mark = |dev| self.host.system.mark(dev);
        let open = |group: usize| {
            let group = self.groups.get(group);
            group.is_some_and(|g| !closed(g, list, &mark))
        };
        let mut all = self.released().into_iter().chain(self.dropping());
        if all.any(open) {
            self.hand_on_by();
        }
    }

    /// The same whatever is known.
    pub(super) fn hand_on_now(&mut self) {
        if !self.released().is_empty() {
            self.hand_on_by();
        }
    }

    /// Those that were released, and are not known to be handed on.
    fn released(&self) -> Vec<usize> {
        let all = self.report.volume_groups.iter().enumerate();
        all.filter(|(at, g)| g.released_after.is_some() && !self.handed_on.contains(at))
            .map(|(at, _)| at)
            .collect()
    }

    /// Those whose drop was sent, and was not seen to be done.
    fn dropping(&self) -> Vec<usize> {
        let sent = |at: &usize| self.result(StepKind::Release, *at) == Some(StepResult::Running);
        let all = self.report.volume_groups.iter().enumerate();
        all.filter(|(at, g)| g.released_after.is_none() && !self.handed_on.contains(at))
            .map(|(at, _)| at)
            .filter(sent)
            .collect()
    }

    fn hand_on_by(&mut self) {
        // sanlock after lvmlockd, which is silent while it drops a lockspace: what is gone by then was not joined again.
        let known: Vec<Lockspace> = self.lockspaces().unwrap_or_default();
        let sanlock = self.ask("asking sanlock for its status", |h| h.sanlock.status());
        let Ok(sanlock) = &sanlock else {
            return;
        };
        for group in self.released() {
            let Some(of) = self.report.volume_groups.get(group) else {
                continue;
            };
            let name = of.lockspace.as_deref().unwrap_or_default();
            // sanlock knows names only. What lvmlockd does not tell goes by the name, as does all while it is silent.
            let told = |l: &Lockspace| l.is_of(&of.uuid, name) && alive(sanlock, &l.name);
            if known.iter().any(told) || (!is_anothers(of, &known) && alive(sanlock, name)) {
                self.handed_on_by_now(group);
            }
        }
        for group in self.dropping() {
            let Some(of) = self.report.volume_groups.get(group) else {
                continue;
            };
            let name = of.lockspace.as_deref().unwrap_or_default();
            // Both have to tell: what grants locks again may be the same, which a new lvmlockd has adopted, and what is frozen is the fence's own.
            let granted = known.iter().any(|l| l.is_of(&of.uuid, name) && !l.frozen);
            if granted && matches!(held(of, sanlock), Held::Anew) {
                // What was opened again before it was let go of is not called released with proof.
                if self.result(StepKind::Verify, group) == Some(StepResult::Done) {
                    self.dropped_meanwhile(group);
                }
                self.handed_on_by_now(group);
            }
        }
    }

    /// It was let go of, since it was joined again: what the watchdog has is of that lockspace.
    fn dropped_meanwhile(&mut self, group: usize) {
        let at = self.elapsed();
        if let Some(of) = self.report.volume_groups.get_mut(group) {
            of.released_after.get_or_insert(at);
        }
        for kind in [StepKind::Release, StepKind::ConfirmRelease] {
            let step = self.step(kind, group);
            self.begin(step);
            let why = "the lockspace was dropped, and joined again since";
            self.end(step, StepResult::Done, why.into());
        }
    }

    /// Leaves it out from now on, and says so.
    pub(super) fn handed_on_by_now(&mut self, group: usize) {
        let of = self.report.volume_groups.get(group);
        let name = of.map_or("", |g| g.name.as_str());
        let note = format!(
            "Volume group {name} was joined to its lockspace again after its locks had been let go: what came into use since is not touched"
        );
        self.handed_on.insert(group);
        self.note(note);
    }
}

/// Whether its lockspace's name is another volume group's by now.
fn is_anothers(of: &VolumeGroupReport, known: &[Lockspace]) -> bool {
    let name = of.lockspace.as_deref().unwrap_or_default();
    let mut all = known.iter();
    all.any(|l| l.name == name && !l.is_of(&of.uuid, name))
}

/// Whether sanlock has a lockspace of that name that is not on its way out.
fn alive(sanlock: &SanlockStatus, name: &str) -> bool {
    let mut all = sanlock.lockspaces.iter();
    all.any(|l| l.name == name && l.state != LockspaceState::Removing)
}
