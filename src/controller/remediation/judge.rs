//! What is to be said of a remediation, in the contract's conditions. Pure.
//!
//! A health controller escalates at once when `Succeeded` is False, and waits while it is Unknown. So it is False as soon as it is clear that
//! there will be no fence, and True only with proof.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use super::cover::{Cover, cover};
use super::dereference::Facts;
use super::patience::{self, Wait};
use crate::api::condition::find;
use crate::api::remediation::{condition_type as ours, contract, reason};
use crate::api::request::{condition_type, reason as said};
use crate::api::{Condition, ConditionStatus, StorageFenceRemediation, StorageFenceRequest};
use crate::controller::facts::REFUSALS;

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Under way.
    Working,
    /// The node is fenced, with proof.
    Succeeded,
    /// There will be no fence, or none that helps.
    Failed,
}

/// Where it stands, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where it stands.
    pub stand: Stand,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// After this time it may be another, although nothing else changes.
    pub look_again: Option<Duration>,
}

impl Verdict {
    fn new(stand: Stand, reason: &str, message: impl Into<String>) -> Self {
        Self {
            stand,
            reason: reason.to_owned(),
            message: message.into(),
            look_again: None,
        }
    }

    /// It would be a failure, if there were no policy to wait for.
    fn unless(self, wait: Option<Wait>) -> Self {
        let Some(wait) = wait.filter(|_| self.stand == Stand::Failed) else {
            return self;
        };
        let message = format!("{}. Not given up yet: {}", self.message, wait.what);
        Self {
            look_again: Some(wait.left),
            ..Self::new(Stand::Working, reason::STARTED, message)
        }
    }
}

/// Whether the health controller has stopped waiting.
#[must_use]
pub fn timed_out(remediation: &StorageFenceRemediation) -> bool {
    let annotations = remediation.metadata.annotations.as_ref();
    annotations.is_some_and(|a| a.contains_key(contract::TIMED_OUT))
}

/// Whether it has succeeded already: what was proven stays said.
#[must_use]
pub fn has_succeeded(remediation: &StorageFenceRemediation) -> bool {
    let conditions = remediation.status.as_ref().map(|s| s.conditions.as_slice());
    conditions
        .and_then(|c| find(c, ours::SUCCEEDED))
        .is_some_and(|c| c.status == ConditionStatus::True)
}

/// Judges.
#[must_use]
pub fn judge(remediation: &StorageFenceRemediation, facts: &Facts, now: Timestamp) -> Verdict {
    let node = match &facts.node {
        Ok(node) => node,
        Err(why) => {
            let message =
                format!("the node that is meant cannot be told: {why}. Nothing was touched");
            return Verdict::new(Stand::Failed, reason::NODE_NOT_FOUND, message);
        }
    };
    let verdict = judge_request(node, remediation, facts, now);
    if timed_out(remediation) && !has_succeeded(remediation) {
        let message = format!(
            "the health controller has stopped waiting, so nothing is begun any more. When it did: {}",
            verdict.message
        );
        return Verdict::new(Stand::Failed, reason::TIMED_OUT, message);
    }
    verdict
}

fn judge_request(
    node: &str,
    remediation: &StorageFenceRemediation,
    facts: &Facts,
    now: Timestamp,
) -> Verdict {
    if !facts.node_exists {
        let message = format!("there is no node {node}. Nothing was touched");
        return Verdict::new(Stand::Failed, reason::NODE_NOT_FOUND, message);
    }
    if facts.name_taken {
        let message = format!(
            "a StorageFenceRequest that is not ours has the name that ours for node {node} would have. Delete it: kubectl get sfr"
        );
        return Verdict::new(Stand::Failed, reason::NAME_TAKEN, message);
    }
    let Some(request) = &facts.request else {
        let message = format!("a StorageFenceRequest for node {node} is being made");
        return Verdict::new(Stand::Working, reason::STARTED, message);
    };
    if let Some(other) = &facts.governed_by {
        return judge_other(node, remediation, request, other, facts, now);
    }
    let mut ours = judge_word(request);
    ours.message.insert_str(0, &of(request));
    if [said::NOTHING_AFFECTED, said::PATHS_REMAIN].contains(&ours.reason.as_str()) {
        let view = view(remediation, facts, now);
        return ours.unless(view.and_then(patience::for_own));
    }
    ours
}

fn view<'a>(
    remediation: &'a StorageFenceRemediation,
    facts: &'a Facts,
    now: Timestamp,
) -> Option<patience::View<'a>> {
    Some(patience::View {
        remediation,
        storage: facts.storage.as_ref()?,
        policies: &facts.policies,
        now,
    })
}

/// Whose word it is.
fn of(request: &StorageFenceRequest) -> String {
    format!("request {}: ", request.name_any())
}

/// What the older request that governs the node means for ours. Who asked for a fence does not matter to the node; what it fences does.
fn judge_other(
    node: &str,
    remediation: &StorageFenceRemediation,
    request: &StorageFenceRequest,
    other: &StorageFenceRequest,
    facts: &Facts,
    now: Timestamp,
) -> Verdict {
    let mut theirs = judge_word(other);
    let mut wait = None;
    let short = match theirs.stand {
        Stand::Working => None,
        Stand::Failed => Some(format!("does not fence it ({})", theirs.message)),
        Stand::Succeeded => match cover(remediation, other, facts.storage.as_ref()) {
            Cover::Whole => None,
            Cover::Unknown if has_succeeded(remediation) => None,
            Cover::Unknown => return nobody_tells(node, request, other),
            Cover::Short(why) => Some(format!("fences it, but {why}")),
            Cover::Lacks(groups) => {
                let view = view(remediation, facts, now);
                wait = view.and_then(|view| patience::for_all(view, &groups));
                Some(format!(
                    "fences it, but it does not fence volume group {}, which this remediation means",
                    groups.join(", ")
                ))
            }
        },
    };
    if let Some(predecessor) = &facts.predecessor
        && short.is_some()
    {
        let message = format!(
            "waits for the older request {} of remediation {predecessor}, which was given up or deleted, to be taken back",
            other.name_any()
        );
        return Verdict::new(Stand::Working, reason::STARTED, message);
    }
    let Some(short) = short else {
        theirs.message.insert_str(0, &of(other));
        return theirs;
    };
    let message = format!(
        "the older request {name} governs node {node} and {short}. Delete it to let this one have its turn: kubectl delete sfr {name}",
        name = other.name_any()
    );
    Verdict::new(Stand::Failed, said::OTHER_REQUEST_GOVERNS, message).unless(wait)
}

/// Another's fence is proven, and no agent says whether it is all that ours means.
fn nobody_tells(node: &str, request: &StorageFenceRequest, other: &StorageFenceRequest) -> Verdict {
    if let Some(agent) = no_agent(request) {
        return Verdict::new(Stand::Failed, said::NO_AGENT, agent.message.clone());
    }
    let message = format!(
        "the older request {} governs node {node} and is proven; whether any other volume group has lost its paths is not known until the \
         node's agent answers",
        other.name_any()
    );
    Verdict::new(Stand::Working, reason::STARTED, message)
}

/// What the controller says of a request whose agent did not come in time.
fn no_agent(request: &StorageFenceRequest) -> Option<&Condition> {
    let conditions = &request.status.as_ref()?.conditions;
    find(conditions, condition_type::AGENT_READY).filter(|agent| agent.reason == said::NO_AGENT)
}

/// What a request's conditions mean here.
fn judge_word(request: &StorageFenceRequest) -> Verdict {
    let empty = Vec::new();
    let conditions = request.status.as_ref().map_or(&empty, |s| &s.conditions);
    let current = |c: &&Condition| {
        c.observed_generation.is_none() || c.observed_generation == request.metadata.generation
    };
    if let Some(fenced) = find(conditions, condition_type::FENCED) {
        if fenced.status == ConditionStatus::True {
            return judge_locks(fenced, find(conditions, condition_type::LOCKS_RELEASED));
        }
        let failed = |reason: &str| Verdict::new(Stand::Failed, reason, fenced.message.clone());
        match fenced.reason.as_str() {
            said::NOT_PROVEN => return failed(reason::NOT_PROVEN),
            // Whatever was proven ended with that kernel; the controller that asked sees how the node is now.
            said::NODE_RESTARTED => return failed(said::NODE_RESTARTED),
            // The paths are back: the health controller will see that, and has nothing to escalate.
            said::CALLED_OFF => {
                return Verdict::new(Stand::Working, reason::CALLED_OFF, fenced.message.clone());
            }
            refusal if REFUSALS.contains(&refusal) && current(&fenced) => return failed(refusal),
            said::IN_PROGRESS => {
                return Verdict::new(Stand::Working, reason::STARTED, fenced.message.clone());
            }
            _ => {}
        }
    }
    if let Some(agent) = no_agent(request) {
        return Verdict::new(Stand::Failed, said::NO_AGENT, agent.message.clone());
    }
    let message = request.status.as_ref().and_then(|s| s.message.clone());
    let message = message.unwrap_or_else(|| "nobody has looked at it yet".to_owned());
    Verdict::new(Stand::Working, reason::STARTED, message)
}

/// It is fenced: what of the locks?
fn judge_locks(fenced: &Condition, locks: Option<&Condition>) -> Verdict {
    let Some(locks) = locks else {
        return Verdict::new(Stand::Working, reason::STARTED, fenced.message.clone());
    };
    let message = format!(
        "{}. {}",
        fenced.message.trim_end_matches('.'),
        locks.message
    );
    match (locks.status, locks.reason.as_str()) {
        (ConditionStatus::True, _) | (_, said::LOCKS_KEPT) => {
            Verdict::new(Stand::Succeeded, reason::FINISHED, message)
        }
        (_, said::IN_PROGRESS) => Verdict::new(Stand::Working, reason::STARTED, message),
        _ => Verdict::new(Stand::Failed, reason::LOCKS_HELD, message),
    }
}
