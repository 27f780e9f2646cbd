//! What is to be done about a remediation: its finalizer, its request, records that it gives back, its status, and what is told. Pure.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;

use super::dereference::Facts;
use super::judge::{Stand, Verdict, has_succeeded, timed_out};
use super::records::{
    GiveBack, Owed, had_succeeded, held_by, note, note_returning, owed, references,
};
use super::{ASK_AGAIN, full_name};
use crate::api::condition::{find, set, since, whole_seconds};
use crate::api::remediation::{
    FINALIZER, REMEDIATION_ANNOTATION, REMEDIATION_UID_LABEL, StorageFenceRemediationStatus,
    condition_type, reason,
};
use crate::api::request::condition_type as requests;
use crate::api::request::reason::{UNFENCE_WAITING, UNFENCING};
use crate::api::{Condition, ConditionStatus, StorageFenceRemediation, StorageFenceRequest};

/// What becomes of the finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalizer {
    /// Nothing.
    Keep,
    /// It is put on.
    Put,
    /// It is taken off.
    Free,
}

/// What becomes of the request.
#[derive(Clone, Debug)]
pub enum Request {
    /// Nothing.
    Keep,
    /// It is made.
    Make(Box<StorageFenceRequest>),
    /// This one is deleted.
    Delete {
        /// Its name.
        name: String,
        /// Its UID: no other one.
        uid: String,
    },
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether a person should look.
    pub warning: bool,
    /// One word, from those that the health controllers' remediators share.
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

/// All of it, in the order in which it is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The request goes before the finalizer is freed, and comes after it was put on.
    pub finalizer: Finalizer,
    /// The request.
    pub request: Request,
    /// Records of policies that are to be given back with it.
    pub give_back: Vec<GiveBack>,
    /// The status to write. None: it is stored already.
    pub status: Option<StorageFenceRemediationStatus>,
    /// To be told when that is written.
    pub notice: Option<Notice>,
    /// Look again after this time whatever the watches say.
    pub look_again: Option<Duration>,
}

/// NODE-PART_OF_UID: for people to recognise, and no other remediation's.
#[must_use]
pub fn request_name(remediation: &StorageFenceRemediation, node: &str) -> String {
    let uid = remediation.uid().unwrap_or_default();
    let (node, uid) = (
        node.get(..240).unwrap_or(node),
        uid.get(..8).unwrap_or(&uid),
    );
    format!("{}-{uid}", node.trim_end_matches(['.', '-']))
}

/// Plans.
#[must_use]
pub fn plan(
    remediation: &StorageFenceRemediation,
    facts: &Facts,
    verdict: &Verdict,
    now: Timestamp,
) -> Plan {
    if remediation.metadata.deletion_timestamp.is_some() {
        return on_deletion(remediation, facts, verdict, now);
    }
    let request = match (&facts.request, &facts.node) {
        (None, Ok(node)) if wants_request(remediation, facts) => make(remediation, node),
        (Some(request), _) if timed_out(remediation) && may_be_withdrawn(remediation, request) => {
            delete(request)
        }
        _ => Request::Keep,
    };
    let finalizer = if has_finalizer(remediation) || matches!(request, Request::Keep) {
        Finalizer::Keep
    } else {
        Finalizer::Put
    };
    let look_again = facts.node.is_err().then_some(ASK_AGAIN);
    let look_again = look_again.or(verdict.look_again);
    let status = status(remediation, facts, verdict, now);
    let stored = remediation.status.as_ref();
    if stored == Some(&status) {
        return Plan {
            finalizer,
            request,
            give_back: Vec::new(),
            status: None,
            notice: None,
            look_again,
        };
    }
    Plan {
        finalizer,
        request,
        give_back: Vec::new(),
        notice: notice(remediation, &status, verdict),
        status: Some(status),
        look_again,
    }
}

/// Deletion says that the node is healthy: the request goes, records on which its success rested are given back, and the remediation stays until
/// that is done, so that the health controller does not count the node as healthy before. It does not stay for what another request holds back.
fn on_deletion(
    remediation: &StorageFenceRemediation,
    facts: &Facts,
    verdict: &Verdict,
    now: Timestamp,
) -> Plan {
    // Nobody is left who could give anything back, and nothing is to be given back: a remediation that stayed would block its health controller.
    let pointless = facts.node.is_err() || !facts.node_exists || rebooted(remediation, facts);
    if let Some(status) = take_up(remediation, facts, verdict, now).filter(|_| !pointless) {
        return Plan {
            finalizer: Finalizer::Keep,
            request: Request::Keep,
            give_back: Vec::new(),
            status: Some(status),
            notice: None,
            look_again: Some(ASK_AGAIN),
        };
    }
    let request = match &facts.request {
        Some(request) if request.metadata.deletion_timestamp.is_none() => delete(request),
        _ => Request::Keep,
    };
    let mut owed = owed(remediation, &facts.records);
    if pointless {
        owed = Owed::default();
    }
    let own = facts.request.as_ref();
    let nothing = own.is_none() && owed.is_nothing();
    // What another request holds back may take for ever: it is given back when that one goes, by what its own spec and finalizer say. Before, the own
    // request must be deleted, and the spec of every record be written.
    let asked = matches!(request, Request::Keep) && owed.give_back.is_empty();
    let holder = held_by(own, &owed, &facts.requests).filter(|_| !pointless && asked);
    let done = pointless || nothing || holder.is_some();
    let status = if done {
        None
    } else {
        waiting(remediation, facts, &owed, now)
    };
    Plan {
        finalizer: if done && has_finalizer(remediation) {
            Finalizer::Free
        } else {
            Finalizer::Keep
        },
        request,
        // The end of the wait is told by a watch: a request's, or the Node's. That somebody was faster to change a record may not be.
        look_again: (!owed.give_back.is_empty()).then_some(ASK_AGAIN),
        give_back: owed.give_back,
        status,
        notice: holder.map(stays_fenced),
    }
}

/// The status that says that the deletion was seen, and names the records which came to stand before it and that nobody had noted. It is written before
/// anything else is done: it is what a successor goes by, and what comes to stand later answers another outage. None: it was written already, or there
/// is nothing to wait for.
fn take_up(
    remediation: &StorageFenceRemediation,
    facts: &Facts,
    verdict: &Verdict,
    now: Timestamp,
) -> Option<StorageFenceRemediationStatus> {
    if !facts.is_news {
        return None;
    }
    let mut status = remediation.status.clone().unwrap_or_default();
    if verdict.stand == Stand::Succeeded
        || has_succeeded(remediation)
        || had_succeeded(remediation, facts.request.as_ref())
    {
        note(&mut status.records, &facts.unnoted);
    }
    if facts.request.is_none() && status.records.is_empty() {
        return None;
    }
    let message = "deleted, and stays until what was fenced for it was given back";
    let processing = (condition_type::PROCESSING, ConditionStatus::True);
    let processing = condition(remediation, processing, UNFENCING, message, now);
    set(&mut status.conditions, processing);
    Some(status)
}

/// Why a deleted remediation goes before its node has its storage back.
fn stays_fenced(holder: &StorageFenceRequest) -> Notice {
    let name = holder.name_any();
    let node = &holder.spec.node_name;
    let note = format!(
        "deleted, and not waited for any longer: request {name} keeps node {node} fenced. What was fenced for this remediation is given back when \
         that request is deleted or set to fenceState Unfenced: kubectl get sfr {name}"
    );
    Notice {
        warning: true,
        reason: "RemediationStopped",
        note,
    }
}

/// What a deleted remediation waits for, in the words of its request and of the records: who still holds what, say. Whether it has succeeded
/// stays said as it was: that is about the fence. None: it is stored already.
fn waiting(
    remediation: &StorageFenceRemediation,
    facts: &Facts,
    owed: &Owed<'_>,
    now: Timestamp,
) -> Option<StorageFenceRemediationStatus> {
    let request = facts.request.iter();
    // Before that it speaks of the fence.
    let request = request.filter(|r| r.metadata.deletion_timestamp.is_some());
    let all: Vec<&StorageFenceRequest> = request.chain(owed.under_way.iter().copied()).collect();
    if all.is_empty() {
        return None;
    }
    let waits = |r: &&StorageFenceRequest| {
        let said = r.status.as_ref();
        said.and_then(|s| find(&s.conditions, requests::FENCED))
            .is_some_and(|f| f.reason == UNFENCE_WAITING)
    };
    let reason = if all.iter().any(waits) {
        UNFENCE_WAITING
    } else {
        UNFENCING
    };
    let words: Vec<String> = all
        .iter()
        .map(|r| {
            let said = r.status.as_ref().and_then(|s| s.message.as_deref());
            let said = said.unwrap_or("nobody has looked at it yet");
            format!("Request {}: {said}", r.name_any())
        })
        .collect();
    let message = format!(
        "deleted, and stays until the node has its storage back. {}",
        words.join(". ")
    );
    let mut status = remediation.status.clone().unwrap_or_default();
    status.observed_generation = remediation.metadata.generation;
    let processing = condition(
        remediation,
        (condition_type::PROCESSING, ConditionStatus::True),
        reason,
        &message,
        now,
    );
    set(&mut status.conditions, processing);
    note_returning(&mut status.records, owed);
    (remediation.status.as_ref() != Some(&status)).then_some(status)
}

fn rebooted(remediation: &StorageFenceRemediation, facts: &Facts) -> bool {
    let then = remediation
        .status
        .as_ref()
        .and_then(|s| s.node_boot_id.as_ref());
    let then = then.cloned().or_else(|| boot_id(facts));
    matches!((then, &facts.node_boot_id), (Some(then), Some(now)) if then != *now)
}

/// Whether ours is on it.
#[must_use]
pub fn has_finalizer(remediation: &StorageFenceRemediation) -> bool {
    remediation.finalizers().iter().any(|f| f == FINALIZER)
}

fn wants_request(remediation: &StorageFenceRemediation, facts: &Facts) -> bool {
    facts.node_exists && !facts.name_taken && !timed_out(remediation) && !has_succeeded(remediation)
}

/// A request that has not come to anything yet. One that the agent is at work on cannot be stopped any more; one that is proven must stay: it is
/// what tells of the fence.
#[must_use]
pub fn may_be_withdrawn(
    remediation: &StorageFenceRemediation,
    request: &StorageFenceRequest,
) -> bool {
    let fenced = request
        .status
        .as_ref()
        .and_then(|s| find(&s.conditions, requests::FENCED));
    let touched = fenced.is_some_and(|f| {
        f.status != ConditionStatus::False || f.reason == crate::api::request::reason::NOT_PROVEN
    });
    !touched && !has_succeeded(remediation) && request.metadata.deletion_timestamp.is_none()
}

fn delete(request: &StorageFenceRequest) -> Request {
    Request::Delete {
        name: request.name_any(),
        uid: request.uid().unwrap_or_default(),
    }
}

/// The request: the remediation's spec with the node's name. It cannot be owned in the API's sense, since its owner has a namespace and it has none.
fn make(remediation: &StorageFenceRemediation, node: &str) -> Request {
    let mut spec = serde_json::to_value(&remediation.spec).unwrap_or_default();
    spec["nodeName"] = json!(node);
    spec["reason"] = json!(format!(
        "StorageFenceRemediation {}",
        full_name(remediation)
    ));
    let object = json!({
        "metadata": {
            "name": request_name(remediation, node),
            "labels": { REMEDIATION_UID_LABEL: remediation.uid() },
            "annotations": { REMEDIATION_ANNOTATION: full_name(remediation) },
        },
        "spec": spec,
    });
    // The spec's fields are a request's own types: there is nothing that could not be read.
    serde_json::from_value(object).map_or(Request::Keep, |made| Request::Make(Box::new(made)))
}

/// The boot that was fenced, by the request, or by the records that count instead.
fn boot_id(facts: &Facts) -> Option<String> {
    let mut all = facts.request.iter().chain(&facts.records);
    all.find_map(|request| {
        let node = request.status.as_ref()?.node.as_ref()?;
        Some(node.boot_id.clone()).filter(|id| !id.is_empty())
    })
}

fn status(
    remediation: &StorageFenceRemediation,
    facts: &Facts,
    verdict: &Verdict,
    now: Timestamp,
) -> StorageFenceRemediationStatus {
    let before = remediation.status.clone().unwrap_or_default();
    let found = facts
        .node
        .as_ref()
        .ok()
        .filter(|_| facts.node_exists)
        .cloned();
    let node = before.node_name.or(found);
    let request = facts.request.as_ref().map(ResourceExt::name_any);
    let (processing, succeeded) = match verdict.stand {
        Stand::Working => (ConditionStatus::True, ConditionStatus::Unknown),
        Stand::Succeeded => (ConditionStatus::False, ConditionStatus::True),
        Stand::Failed => (ConditionStatus::False, ConditionStatus::False),
    };
    let stamped = |type_: &str, status| {
        let said = (verdict.reason.as_str(), verdict.message.as_str());
        let mut new = condition(remediation, (type_, status), said.0, said.1, now);
        new.last_transition_time = since(find(&before.conditions, type_), status, now);
        new
    };
    StorageFenceRemediationStatus {
        observed_generation: remediation.metadata.generation,
        node_name: node,
        node_boot_id: boot_id(facts).or(before.node_boot_id),
        request: request.or(before.request),
        records: if verdict.stand == Stand::Succeeded {
            references(&facts.records)
        } else {
            before.records
        },
        conditions: vec![
            stamped(condition_type::PROCESSING, processing),
            stamped(condition_type::SUCCEEDED, succeeded),
        ],
    }
}

fn condition(
    remediation: &StorageFenceRemediation,
    (type_, status): (&str, ConditionStatus),
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status,
        observed_generation: remediation.metadata.generation,
        last_transition_time: whole_seconds(now),
        reason: reason.to_owned(),
        message: message.chars().take(4096).collect(),
    }
}

/// Told on transitions only.
fn notice(
    remediation: &StorageFenceRemediation,
    status: &StorageFenceRemediationStatus,
    verdict: &Verdict,
) -> Option<Notice> {
    let succeeded = |s: &StorageFenceRemediationStatus| {
        find(&s.conditions, condition_type::SUCCEEDED).map(|c| (c.status, c.reason.clone()))
    };
    let before = remediation.status.as_ref().and_then(succeeded);
    let after = succeeded(status);
    let same_stand = before.as_ref().map(|b| b.0) == after.as_ref().map(|a| a.0);
    if before == after || (same_stand && verdict.stand == Stand::Working) {
        return None;
    }
    let (warning, reason) = match verdict.stand {
        Stand::Working => (false, "RemediationStarted"),
        Stand::Succeeded => (false, "RemediationFinished"),
        Stand::Failed if verdict.reason == reason::TIMED_OUT => (true, "RemediationStopped"),
        Stand::Failed => (true, "RemediationCannotStart"),
    };
    Some(Notice {
        warning,
        reason,
        note: format!("{}: {}", verdict.reason, verdict.message),
    })
}
