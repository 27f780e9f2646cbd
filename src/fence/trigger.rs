//! Whether what is seen of a volume group sets a policy off, and when to ask again. Pure: every clock comes in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::budget::ResetWindow;
use super::inventory::{Lockspace, LockspaceState, VolumeGroup, Watchdog};
use super::outage::{Loss, Outage};
use super::time::Monotonic;

/// What sets a policy off: any one of these. None: that one does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// No path has worked for so long.
    pub all_paths_down: Option<Duration>,
    /// The devices have been gone for good for so long.
    pub device_gone: Option<Duration>,
    /// The lease was renewed longer ago than this.
    pub renewals_failing: Option<Duration>,
    /// Less than this is left until the earliest reset.
    pub budget_below: Option<Duration>,
    /// A condition of the Node has held for so long.
    pub conditions: Vec<ConditionRule>,
}

/// One condition of the Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionRule {
    /// Its type.
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// For how long.
    pub held: Duration,
}

/// A condition of the Node as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCondition {
    /// Its type.
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Since when, for telling this time from the next; whatever clock it is.
    pub since: String,
    /// For how long.
    pub held: Duration,
}

/// What is seen of one volume group.
#[derive(Clone, Copy, Debug)]
pub struct Signs<'a> {
    /// When.
    pub now: Monotonic,
    /// When the node was looked at. What was renewed since is not known: a lease is as old as it was then, or one that is renewed would be taken for
    /// one that is not, wherever looks are rarer or slower than the renewals leave time for.
    pub looked: Monotonic,
    /// Its outage, if there is one.
    pub outage: Option<&'a Outage>,
    /// Its lockspace. Without one there is no lease to renew.
    pub lockspace: Option<&'a Lockspace>,
    /// The watchdog.
    pub watchdog: &'a Watchdog,
    /// Conditions of the Node; empty when they are not known at present.
    pub conditions: &'a [NodeCondition],
}

/// What set a policy off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// No path has worked for the time that was given.
    AllPathsDown,
    /// The devices are gone for good.
    DeviceGone,
    /// The lease is not renewed.
    RenewalsFailing,
    /// The watchdog is about to reset the host.
    BudgetBelow,
    /// A condition of the Node.
    Condition(String),
}

impl Cause {
    /// As it stands in records.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::AllPathsDown => "AllPathsDown",
            Self::DeviceGone => "PermanentDeviceLoss",
            Self::RenewalsFailing => "RenewalsFailing",
            Self::BudgetBelow => "WatchdogBudgetBelow",
            Self::Condition(_) => "NodeCondition",
        }
    }

    /// Whether it says that no path works, so that one that does speaks against it.
    #[must_use]
    pub fn is_about_paths(&self) -> bool {
        matches!(self, Self::AllPathsDown | Self::DeviceGone)
    }

    /// Whether it is about the lease, which is lost whatever the paths look like.
    #[must_use]
    pub fn is_about_the_lease(&self) -> bool {
        matches!(self, Self::RenewalsFailing | Self::BudgetBelow)
    }
}

/// A trigger that went off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Which.
    pub cause: Cause,
    /// Of which episode: the same outage, the same missed renewal, the same transition. One that was answered is not answered again.
    pub episode: String,
    /// What was seen, for people.
    pub seen: String,
}

/// What comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that a rule is about.
    Quiet,
    /// Something is wrong, for not long enough yet: worth another look after this time.
    Waits(Duration),
    /// A rule went off.
    Due(Alarm),
}

/// Whether the lease of a lockspace is not being renewed: sanlock says so, or the last renewal is further back than one that takes its whole
/// time-out (a renewal whose write hangs is not called failed before the lease is lost). `looked`: when sanlock was asked.
#[must_use]
pub fn renewals_fail(lockspace: &Lockspace, looked: Monotonic) -> bool {
    /// Renewals come every two I/O time-outs, and one may take another; then a little for the clocks, which count whole seconds.
    const OVERDUE: u32 = 3;
    const CLOCKS: u32 = 2;
    match lockspace.state {
        LockspaceState::RenewalFailing | LockspaceState::Expired => true,
        LockspaceState::Healthy => {
            let limit = lockspace
                .io_timeout
                .saturating_mul(OVERDUE)
                .saturating_add(CLOCKS);
            let limit = Duration::from_secs(limit.into());
            lockspace
                .last_renewal
                .is_some_and(|at| looked.since(at) > limit)
        }
        LockspaceState::Adding | LockspaceState::Removing => false,
    }
}

/// What a rule says: quiet, so much longer, or due.
fn after(held: Duration, wanted: Duration, alarm: impl FnOnce() -> Alarm) -> Verdict {
    if held >= wanted {
        Verdict::Due(alarm())
    } else {
        Verdict::Waits(wanted.saturating_sub(held))
    }
}

/// Asks every rule. The first that is due, in the order of [`Rules`] but with what is gone for good before what is merely down; otherwise the
/// shortest wait.
#[must_use]
pub fn evaluate(rules: &Rules, signs: &Signs<'_>) -> Verdict {
    let rules = [
        device_gone(rules, signs),
        all_paths_down(rules, signs),
        renewals(rules, signs),
        budget(rules, signs),
    ]
    .into_iter()
    .chain(conditions(rules, signs));
    let mut wait: Option<Duration> = None;
    for verdict in rules {
        match verdict {
            Verdict::Due(alarm) => return Verdict::Due(alarm),
            Verdict::Waits(more) => wait = Some(wait.map_or(more, |w| w.min(more))),
            Verdict::Quiet => {}
        }
    }
    wait.map_or(Verdict::Quiet, Verdict::Waits)
}

fn all_paths_down(rules: &Rules, signs: &Signs<'_>) -> Verdict {
    // While a path works, however shortly, nothing is fenced; the outage may go on to count all the same.
    let (Some(wanted), Some(outage)) = (rules.all_paths_down, signs.outage.filter(|o| o.down()))
    else {
        return Verdict::Quiet;
    };
    let held = signs.now.since(outage.since);
    after(held, wanted, || Alarm {
        cause: Cause::AllPathsDown,
        episode: episode_of_outage(outage),
        seen: format!("no path has worked for {} s", held.as_secs()),
    })
}

fn device_gone(rules: &Rules, signs: &Signs<'_>) -> Verdict {
    let gone = signs
        .outage
        .filter(|o| o.down() && o.loss == Loss::DeviceGone);
    let (Some(wanted), Some(outage)) = (rules.device_gone, gone) else {
        return Verdict::Quiet;
    };
    let held = signs.now.since(outage.loss_since);
    after(held, wanted, || Alarm {
        cause: Cause::DeviceGone,
        episode: episode_of_outage(outage),
        seen: format!(
            "its devices have been gone for good for {} s",
            held.as_secs()
        ),
    })
}

fn episode_of_outage(outage: &Outage) -> String {
    format!("outage@{}", outage.since.0.as_millis())
}

/// The lockspace, if its lease is not being renewed, and when it last was.
fn failing<'a>(signs: &Signs<'a>) -> Option<(&'a Lockspace, Monotonic)> {
    let lockspace = signs.lockspace.filter(|l| renewals_fail(l, signs.looked))?;
    Some((lockspace, lockspace.last_renewal?))
}

fn renewals(rules: &Rules, signs: &Signs<'_>) -> Verdict {
    let (Some(wanted), Some((_, renewed))) = (rules.renewals_failing, failing(signs)) else {
        return Verdict::Quiet;
    };
    let held = signs.looked.since(renewed);
    after(held, wanted, || Alarm {
        cause: Cause::RenewalsFailing,
        episode: format!("renewal@{}", renewed.0.as_secs()),
        seen: format!("sanlock has not renewed its lease for {} s", held.as_secs()),
    })
}

fn budget(rules: &Rules, signs: &Signs<'_>) -> Verdict {
    let (Some(limit), Some((lockspace, renewed))) = (rules.budget_below, failing(signs)) else {
        return Verdict::Quiet;
    };
    // What cannot be told is not below anything.
    let Some(left) = ResetWindow::of([lockspace], signs.watchdog).map(|w| w.budget(signs.now))
    else {
        return Verdict::Quiet;
    };
    if left >= limit {
        return Verdict::Waits(left.saturating_sub(limit) + Duration::from_millis(1));
    }
    Verdict::Due(Alarm {
        cause: Cause::BudgetBelow,
        episode: format!("renewal@{}", renewed.0.as_secs()),
        seen: format!(
            "{} s are left until the watchdog may reset the host",
            left.as_secs()
        ),
    })
}

fn conditions(rules: &Rules, signs: &Signs<'_>) -> Vec<Verdict> {
    let of = |rule: &ConditionRule| {
        let same = |c: &&NodeCondition| c.type_ == rule.type_ && c.status == rule.status;
        let Some(found) = signs.conditions.iter().find(same) else {
            return Verdict::Quiet;
        };
        after(found.held, rule.held, || Alarm {
            cause: Cause::Condition(rule.type_.clone()),
            episode: format!("{}={}@{}", found.type_, found.status, found.since),
            seen: format!(
                "condition {} of the Node has been {} for {} s",
                found.type_,
                found.status,
                found.held.as_secs()
            ),
        })
    };
    rules.conditions.iter().map(of).collect()
}

/// Whether a policy is asked about a volume group at all: it has a lockspace that is not on its way out, or is open though nobody holds its locks;
/// and it does not stand fenced.
#[must_use]
pub fn can_be_fenced(group: &VolumeGroup) -> bool {
    let joined = group
        .lockspace
        .as_ref()
        .is_some_and(|l| l.state != LockspaceState::Removing && l.state != LockspaceState::Adding);
    (joined || group.unlocked) && !group.fenced()
}

#[cfg(test)]
#[path = "trigger_tests.rs"]
mod tests;
