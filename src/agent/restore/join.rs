//! Joining the lockspaces again, by the host's own LVM tools, and seeing that it was done.

use std::time::Duration;

use super::look::now;
use super::{Lifting, Obstacle, Step};
use crate::agent::executor::limited::Pending;
use crate::fence::report::StepResult;
use crate::fence::unfence::{GroupReport, LockState, UnfenceStepKind, lock_state};
use crate::host::{Bell, Result};

/// How long joining may take. Twenty seconds are usual; 160 when the node's name in the lockspace changed since (sanlock then waits until its
/// former owner counts as dead); the rest is for LVM itself on a busy node.
const LIMIT: Duration = Duration::from_secs(240);
/// How long until the lock manager shows what was joined.
const CONFIRM: Duration = Duration::from_secs(20);

impl Lifting<'_> {
    /// Starts the lockspaces of all groups that are not joined, side by side.
    pub(super) fn join_lockspaces(&mut self) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::JoinLockspace;
        let inventory = match self.inventory() {
            Ok(inventory) => inventory,
            Err(e) => return Err(self.fail_all(KIND, &e.to_string())),
        };
        // Once more: from here on the old leases count as free for everybody.
        match self.list().map(|devices| self.first_left(&devices)) {
            Ok(None) => {}
            Ok(Some(blocker)) => return Err(Obstacle::Blocked(vec![blocker])),
            Err(e) => return Err(self.fail_all(KIND, &e.to_string())),
        }
        let bell = Bell::default();
        let mut starts = Vec::new();
        for group in self.groups() {
            let name = group.standing.name.clone();
            match lock_state(&group.standing, &inventory) {
                LockState::Joined { .. } | LockState::Joining => {
                    let why = "it is joined, or being joined, already".to_owned();
                    self.end(KIND, &name, StepResult::Skipped, why);
                }
                _ => {
                    self.begin(KIND, &name);
                    let vg = name.clone();
                    let start = move |h: &crate::host::Host| h.lvm.start_lockspace(&vg, LIMIT);
                    let what = "vgchange --lockstart";
                    starts.push((group, Pending::start(self.host, &bell, what, start)));
                }
            }
        }
        while !starts.is_empty() {
            let mut ended = Vec::new();
            starts.retain(|(group, start)| match start.take() {
                None => true,
                Some(result) => {
                    ended.push((group.clone(), result));
                    false
                }
            });
            for (group, result) in ended {
                self.started(&group, result)?;
            }
            if !starts.is_empty() {
                self.pause()?;
            }
        }
        Ok(())
    }

    fn started(&mut self, group: &GroupReport, result: Result<()>) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::JoinLockspace;
        let name = &group.standing.name;
        match result {
            Ok(()) => {
                let done = format!("vgchange --lockstart {name}");
                self.end(KIND, name, StepResult::Done, done);
                Ok(())
            }
            Err(e) => {
                // Its word is not the last: the lockspace may be there all the same.
                let joined = self.inventory().is_ok_and(|i| {
                    matches!(lock_state(&group.standing, &i), LockState::Joined { .. })
                });
                if joined {
                    let done = format!("joined, though vgchange --lockstart said: {e}");
                    self.end(KIND, name, StepResult::Done, done);
                    return Ok(());
                }
                Err(self.fail(KIND, name, &e.to_string()))
            }
        }
    }

    /// The lockspaces are seen in lvmlockd and sanlock, each in another generation than the fence's.
    pub(super) fn confirm(&mut self) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::ConfirmJoin;
        let until = now(self.host) + CONFIRM;
        loop {
            let inventory = self.inventory();
            let mut missing = None;
            for (at, group) in self.groups().into_iter().enumerate() {
                let name = group.standing.name.clone();
                self.begin(KIND, &name);
                let state = match &inventory {
                    Ok(inventory) => lock_state(&group.standing, inventory),
                    Err(e) => {
                        missing = Some((name, e.to_string()));
                        continue;
                    }
                };
                match state {
                    LockState::Joined {
                        host_id,
                        generation,
                    } if is_new(&group, host_id, generation) => {
                        if let Some(report) = self.report.groups.get_mut(at) {
                            report.joined = Some((host_id, generation));
                        }
                        let done = match generation {
                            Some(n) => format!("host id {host_id}, generation {n}"),
                            None => format!("host id {host_id}"),
                        };
                        self.end(KIND, &name, StepResult::Done, done);
                    }
                    other => missing = Some((name, in_words(&other).to_owned())),
                }
            }
            let Some((name, why)) = missing else {
                return Ok(());
            };
            if now(self.host) >= until {
                return Err(self.fail(KIND, &name, &why));
            }
            self.pause()?;
        }
    }

    fn fail_all(&mut self, kind: UnfenceStepKind, why: &str) -> Obstacle {
        let mut last = Obstacle::Interrupted;
        for group in self.groups() {
            last = self.fail(kind, &group.standing.name, why);
        }
        last
    }
}

/// Whether it is not the incarnation that the fence froze. Generations that are not told do not speak against it: it is not frozen, and only
/// dropping and joining again thaws one.
fn is_new(group: &GroupReport, host_id: u64, generation: Option<u64>) -> bool {
    let same_host = group.standing.host_id == Some(host_id);
    let same = matches!((group.standing.generation, generation), (Some(a), Some(b)) if a == b);
    !(same_host && same)
}

fn in_words(state: &LockState) -> &'static str {
    match state {
        LockState::Absent => "the lock manager does not show the lockspace",
        LockState::Frozen | LockState::FrozenByOthers => "the lockspace is frozen",
        LockState::Removing => "the lockspace is being removed",
        LockState::Joining => "the lockspace is still being joined",
        LockState::Joined { .. } => {
            "the lockspace is still of the generation that was fenced: it was never left"
        }
        LockState::Orphaned => "sanlock has the lockspace, lvmlockd does not know it",
    }
}
