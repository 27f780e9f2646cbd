//! What an un-fence waits for, does and has done, as plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blockers::{Blocker, Health};
use super::{Standing, UnfenceOrder};
use crate::fence::report::StepResult;
use crate::fence::time::Monotonic;

/// The steps of an un-fence, in their only legal order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum UnfenceStepKind {
    /// Every device on the error target is removed, upper ones first. The first step that leaves a trace.
    RemoveDevices,
    /// A lockspace that the fence left behind frozen is dropped.
    DropLockspace,
    /// multipathd may queue again, as its configuration says.
    RestoreQueueing,
    /// `vgchange --lockstart`, by the name that the volume group has then.
    JoinLockspace,
    /// lvmlockd and sanlock were seen to have joined.
    ConfirmJoin,
}

impl UnfenceStepKind {
    /// All, in order.
    pub const ALL: [Self; 5] = [
        Self::RemoveDevices,
        Self::DropLockspace,
        Self::RestoreQueueing,
        Self::JoinLockspace,
        Self::ConfirmJoin,
    ];

    /// As it stands in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RemoveDevices => "RemoveDevices",
            Self::DropLockspace => "DropLockspace",
            Self::RestoreQueueing => "RestoreQueueing",
            Self::JoinLockspace => "JoinLockspace",
            Self::ConfirmJoin => "ConfirmJoin",
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfenceStep {
    /// Which.
    pub kind: UnfenceStepKind,
    /// Name of the volume group.
    pub volume_group: String,
    /// Its UUID: another one that is fenced may have that name too.
    #[serde(default)]
    pub uuid: String,
    /// How it ended.
    pub result: StepResult,
    /// When it began, after the start.
    pub at: Option<Duration>,
    /// How long it took.
    pub took: Option<Duration>,
    /// What was done to what, or why not.
    pub message: Option<String>,
}

/// One volume group of an un-fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// What is known of its fence.
    pub standing: Standing,
    /// Devices on the error target when the first step began.
    pub devices_total: usize,
    /// Of these, removed or gone.
    pub devices_removed: usize,
    /// Its paths.
    pub health: Health,
    /// Whether its lockspace is joined, or being joined: then its volumes may be in use.
    pub in_use: bool,
    /// Host id and generation of the lockspace that was seen to be joined.
    pub joined: Option<(u64, Option<u64>)>,
    /// What it is called by now, if another host has renamed it since it was fenced.
    #[serde(default)]
    pub renamed: Option<String>,
}

impl GroupReport {
    /// What it is called, as far as is known.
    #[must_use]
    pub fn name(&self) -> &str {
        self.renamed.as_ref().unwrap_or(&self.standing.name)
    }

    /// The same for people who know it by its former name.
    #[must_use]
    pub fn in_words(&self) -> String {
        match &self.renamed {
            Some(name) => format!("{} (called {name} by now)", self.standing.name),
            None => self.standing.name.clone(),
        }
    }
}

/// Where an un-fence stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnfenceOutcome {
    /// Something speaks against it; it is looked at again.
    #[default]
    Waiting,
    /// At work.
    Working,
    /// Nothing of the order stands fenced any more, and the lockspaces are joined.
    Done,
}

/// Everything about one un-fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfenceReport {
    /// What it is about.
    pub order: UnfenceOrder,
    /// Boot ID of the kernel.
    pub boot_id: String,
    /// When the last look ended; while one is at work, when it began.
    pub looked: Monotonic,
    /// When the first step began. None: nothing was touched yet.
    pub started: Option<Monotonic>,
    /// When it was done, after the start.
    pub finished_after: Option<Duration>,
    /// Volume groups.
    pub groups: Vec<GroupReport>,
    /// Steps, once there are any.
    pub steps: Vec<UnfenceStep>,
    /// What speaks against it.
    pub blockers: Vec<Blocker>,
    /// Where it stands.
    pub outcome: UnfenceOutcome,
    /// The same in words.
    pub message: String,
    /// Attempts in a row in which a step failed.
    pub failures: u32,
    /// Shortcomings that do not keep it from being done.
    pub notes: Vec<String>,
}

impl UnfenceReport {
    /// When to look again at the earliest. None: it is done.
    #[must_use]
    pub fn again_at(&self) -> Option<Monotonic> {
        /// Preconditions are cheap to look at.
        const LOOK: Duration = Duration::from_secs(2);
        /// A step that failed once will not succeed a moment later: 5, 10, 20, then every 30 s.
        const RETRY: Duration = Duration::from_secs(5);
        const RETRY_AT_MOST: Duration = Duration::from_secs(30);
        let pause = match self.failures {
            0 => LOOK,
            n => (RETRY * (1 << (n - 1).min(3))).min(RETRY_AT_MOST),
        };
        (self.outcome != UnfenceOutcome::Done).then(|| self.looked + pause)
    }
}

/// The steps for volume groups, all of them planned.
#[must_use]
pub fn steps(groups: &[GroupReport]) -> Vec<UnfenceStep> {
    let of = |kind: UnfenceStepKind| {
        groups.iter().map(move |g| UnfenceStep {
            kind,
            volume_group: g.standing.name.clone(),
            uuid: g.standing.uuid.clone(),
            result: StepResult::Planned,
            at: None,
            took: None,
            message: None,
        })
    };
    UnfenceStepKind::ALL.into_iter().flat_map(of).collect()
}
