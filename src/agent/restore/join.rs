//! Joining the lockspaces again, by the host's own LVM tools, and seeing that it was done.
//!
//! Another host may have renamed a volume group while it stood fenced here, and a third one may have its name by now. So LVM is asked right before
//! for the name that belongs to the UUID, which is all that a fence goes by.

use std::time::Duration;

use super::look::now;
use super::{Lifting, Obstacle, Step};
use crate::agent::executor::limited::Pending;
use crate::fence::DmDevice;
use crate::fence::report::StepResult;
use crate::fence::unfence::{GroupReport, LockState, UnfenceStepKind, lock_state};
use crate::host::lvm::dashed;
use crate::host::{Bell, Host, Result};

/// How long joining may take. Twenty seconds are usual; 160 when the node's name in the lockspace changed since (sanlock then waits until its
/// former owner counts as dead); the rest is for LVM itself on a busy node.
const LIMIT: Duration = Duration::from_secs(240);
/// How long LVM may take to find a volume group.
const FIND: Duration = Duration::from_mins(1);
/// How long until the lock manager shows what was joined.
const CONFIRM: Duration = Duration::from_secs(20);

impl Lifting<'_> {
    /// Starts the lockspaces of all groups that are not joined, side by side.
    pub(super) fn join_lockspaces(&mut self) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::JoinLockspace;
        let inventory = match self.inventory()? {
            Ok(inventory) => inventory,
            Err(e) => return Err(self.fail_all(KIND, &e.to_string())),
        };
        self.nothing_is_left(None)?;
        // From here on it forks.
        self.go_on()?;
        let bell = Bell::default();
        let mut finds = Vec::new();
        for group in self.groups() {
            match lock_state(&group.standing, &inventory) {
                LockState::Joined { .. } | LockState::Joining => {
                    let why = "it is joined, or being joined, already".to_owned();
                    self.end(KIND, &group, StepResult::Skipped, why);
                }
                _ => {
                    self.begin(KIND, &group);
                    let (uuid, vg) = (group.standing.uuid.clone(), group.name().to_owned());
                    let find = move |h: &Host| h.lvm.names_of(&uuid, &vg, FIND);
                    let about = &group.standing.uuid;
                    let pending =
                        Pending::start_about(self.host, &bell, "asking LVM for", about, find);
                    finds.push((group, pending));
                }
            }
        }
        let mut starts = Vec::new();
        self.side_by_side(finds, |me, group, names| {
            let vg = me.found(group, names)?;
            me.go_on()?;
            // Once more: to find the name takes LVM its time, and from here on the old leases count as free for everybody. Of this one only: another
            // may have been started meanwhile, and be in use under its new locks.
            me.nothing_is_left(Some(group))?;
            let uuid = group.standing.uuid.clone();
            let start = {
                let vg = vg.clone();
                move |h: &Host| h.lvm.start_lockspace(&uuid, &vg, LIMIT)
            };
            let pending = Pending::start(me.host, &bell, "vgchange --lockstart", start);
            starts.push(((group.clone(), vg), pending));
            Ok(())
        })?;
        self.side_by_side(starts, |me, (group, vg), result| {
            me.started(group, vg, result)
        })
    }

    /// Of all groups that were not in use at the look, or of one.
    fn nothing_is_left(&mut self, of: Option<&GroupReport>) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::JoinLockspace;
        let of_it = |d: &DmDevice| of.is_none_or(|group| group.standing.owns(d));
        let left = self.list().map(|mut devices| {
            devices.retain(of_it);
            self.first_left(&devices)
        });
        match left {
            Ok(None) => Ok(()),
            Ok(Some(blocker)) => Err(Obstacle::Blocked(vec![blocker])),
            Err(e) => Err(match of {
                Some(group) => self.fail(KIND, group, &e.to_string()),
                None => self.fail_all(KIND, &e.to_string()),
            }),
        }
    }

    /// Takes the answers of calls that go on side by side, each as it comes.
    fn side_by_side<Of: Clone, T: Send + 'static>(
        &mut self,
        mut calls: Vec<(Of, Pending<T>)>,
        mut take: impl FnMut(&mut Self, &Of, Result<T>) -> Step,
    ) -> Step {
        while !calls.is_empty() {
            let mut ended = Vec::new();
            calls.retain(|(of, call)| match call.take() {
                None => true,
                Some(result) => {
                    ended.push((of.clone(), result));
                    false
                }
            });
            for (of, result) in ended {
                take(self, &of, result)?;
            }
            if !calls.is_empty() {
                self.pause()?;
            }
        }
        Ok(())
    }

    /// The name that the volume group has by now, if it is clear which.
    fn found(&mut self, group: &GroupReport, names: Result<Vec<String>>) -> Step<String> {
        const KIND: UnfenceStepKind = UnfenceStepKind::JoinLockspace;
        let uuid = dashed(&group.standing.uuid);
        let why = match names {
            Err(e) => e.to_string(),
            Ok(mut names) => match (names.pop(), names.as_slice()) {
                (Some(name), []) => {
                    self.call_it(group, &name);
                    return Ok(name);
                }
                (Some(name), others) => format!(
                    "the disks do not agree what the volume group with UUID {uuid} is called: {}, {name}. A copy of one of its disks, or a disk that \
                     was away when it was renamed? See vgs -o vg_name,vg_uuid,pv_name, and mend it there",
                    others.join(", ")
                ),
                (None, _) => format!(
                    "LVM on the host finds no volume group with UUID {uuid}, by whatever name. See vgs -o vg_name,vg_uuid and pvs -a; if there is a \
                     devices file, lvmdevices. If another host has removed it, nothing is left to be joined: delete the request with \
                     deletionPolicy: Retain"
                ),
            },
        };
        Err(self.fail(KIND, group, &why))
    }

    /// Notes what a volume group is called by now.
    fn call_it(&mut self, group: &GroupReport, name: &str) {
        let mut all = self.report.groups.iter_mut();
        if let Some(report) = all.find(|g| g.standing.uuid == group.standing.uuid) {
            report.renamed = (report.standing.name != name).then(|| name.to_owned());
        }
        self.publish();
    }

    fn started(&mut self, group: &GroupReport, vg: &str, result: Result<()>) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::JoinLockspace;
        match result {
            Ok(()) => {
                let done = format!("vgchange --lockstart {vg}");
                self.end(KIND, group, StepResult::Done, done);
                Ok(())
            }
            Err(e) => {
                // Its word is not the last: the lockspace may be there all the same.
                let joined = self.inventory()?.is_ok_and(|i| {
                    matches!(lock_state(&group.standing, &i), LockState::Joined { .. })
                });
                if joined {
                    let done = format!("joined, though vgchange --lockstart said: {e}");
                    self.end(KIND, group, StepResult::Done, done);
                    return Ok(());
                }
                Err(self.fail(KIND, group, &e.to_string()))
            }
        }
    }

    /// The lockspaces are seen in lvmlockd and sanlock, each in another generation than the fence's.
    pub(super) fn confirm(&mut self) -> Step {
        const KIND: UnfenceStepKind = UnfenceStepKind::ConfirmJoin;
        let until = now(self.host) + CONFIRM;
        loop {
            let inventory = self.inventory()?;
            let mut missing = None;
            for (at, group) in self.groups().into_iter().enumerate() {
                self.begin(KIND, &group);
                let state = match &inventory {
                    Ok(inventory) => lock_state(&group.standing, inventory),
                    Err(e) => {
                        missing = Some((group, e.to_string()));
                        continue;
                    }
                };
                match state {
                    LockState::Joined {
                        renamed,
                        host_id,
                        generation,
                    } if renamed.is_some() || is_new(&group, host_id, generation) => {
                        if let Some(report) = self.report.groups.get_mut(at) {
                            report.joined = Some((host_id, generation));
                            if let Some(vg) = renamed {
                                report.renamed = (vg != report.standing.name).then_some(vg);
                            }
                        }
                        let done = match generation {
                            Some(n) => format!("host id {host_id}, generation {n}"),
                            None => format!("host id {host_id}"),
                        };
                        self.end(KIND, &group, StepResult::Done, done);
                    }
                    other => missing = Some((group, in_words(&other).to_owned())),
                }
            }
            let Some((group, why)) = missing else {
                return Ok(());
            };
            if now(self.host) >= until {
                return Err(self.fail(KIND, &group, &why));
            }
            self.pause()?;
        }
    }

    fn fail_all(&mut self, kind: UnfenceStepKind, why: &str) -> Obstacle {
        let mut last = Obstacle::Interrupted;
        for group in self.groups() {
            last = self.fail(kind, &group, why);
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
        LockState::Frozen { .. } | LockState::FrozenByOthers { .. } => "the lockspace is frozen",
        LockState::Removing => "the lockspace is being removed",
        LockState::Joining => "the lockspace is still being joined",
        LockState::Joined { .. } => {
            "the lockspace is still of the generation that was fenced: it was never left"
        }
        LockState::Orphaned => "sanlock has the lockspace, lvmlockd does not know it",
    }
}
