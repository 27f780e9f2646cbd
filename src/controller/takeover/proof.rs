//! Whether there is something to expedite: what the fenced node's own agent attests. Pure. The peer's agent compares all of it again.

use super::plan::{OTHERWISE, Peer, verdict};
use crate::api::condition::find;
use crate::api::request::{FenceState, Takeover, VolumeGroupFence, condition_type, reason};
use crate::api::takeover::{DeclareDead, reason as why};
use crate::api::{ConditionStatus, StorageFenceRequest};
use crate::controller::request::validate::Verdict;

/// Whether the request asks for it, as it stands.
#[must_use]
pub fn wanted(request: &StorageFenceRequest) -> bool {
    let spec = &request.spec;
    spec.takeover == Takeover::Expedite
        && spec.fence_state == FenceState::Fenced
        && !spec.dry_run
        && request.metadata.deletion_timestamp.is_none()
}

/// One volume group whose fence is proven and whose locks are released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attested {
    /// Who is to be declared dead.
    Host(DeclareDead),
    /// Nobody held its locks any more when it was fenced, so nobody knows by whom they were held: its name.
    Unlocked(String),
}

/// One for each volume group that was released. `fenced`: the node, as it reports itself now.
///
/// # Errors
/// Why there is none: nothing is proven, not released, or not anymore.
pub fn proven(
    request: &StorageFenceRequest,
    fenced: Option<&Peer>,
) -> Result<Vec<Attested>, Verdict> {
    let not = |reason: &str, why: String| verdict(ConditionStatus::False, reason, why);
    let node = &request.spec.node_name;
    let status = request.status.as_ref();
    let said = |type_: &str| status.and_then(|s| find(&s.conditions, type_));
    let holds = |type_: &str| said(type_).is_some_and(|c| c.status == ConditionStatus::True);
    let fence_said = said(condition_type::FENCED);
    if !holds(condition_type::FENCED) {
        let word = fence_said.map_or("", |c| c.reason.as_str());
        return Err(match word {
            reason::NODE_RESTARTED => restarted(node),
            reason::NOT_PROVEN => not(
                reason::NOT_PROVEN,
                format!(
                    "the fence of node {node} is not proven, so nobody may declare it dead. {OTHERWISE}"
                ),
            ),
            _ => not(
                why::WAITING,
                format!(
                    "node {node} is declared dead as soon as its fence is proven and its locks are released"
                ),
            ),
        });
    }
    if !holds(condition_type::LOCKS_RELEASED) {
        let released = said(condition_type::LOCKS_RELEASED);
        return Err(match released.map_or("", |c| c.reason.as_str()) {
            reason::LOCKS_KEPT => not(
                reason::LOCKS_KEPT,
                format!("node {node} keeps its locks, so nobody may declare it dead. {OTHERWISE}"),
            ),
            _ => not(
                why::WAITING,
                format!(
                    "node {node} is fenced, and is declared dead as soon as its locks are seen to be released"
                ),
            ),
        });
    }
    let Some(fence) = status.and_then(|s| s.node.as_ref()) else {
        return Err(incomplete(node, "a report of the fence"));
    };
    if fence.boot_id.is_empty() {
        return Err(incomplete(node, "its boot ID"));
    }
    let now = fenced
        .filter(|p| p.answers)
        .map(|p| p.storage.boot_id.as_str());
    if now.is_some_and(|now| !now.is_empty() && now != fence.boot_id) {
        return Err(restarted(node));
    }
    let released = fence.volume_groups.iter().filter(|g| g.locks_released);
    let attested = released.map(|group| {
        // As the agent tells of what it had nothing to freeze of. A sanlock that does not tell a generation tells a host id.
        if group.host_id.is_none() && group.generation.is_none() {
            return Ok(Attested::Unlocked(group.name.clone()));
        }
        task(request, &fence.boot_id, group).map(Attested::Host)
    });
    match attested.collect::<Result<Vec<Attested>, Verdict>>() {
        Ok(attested) if attested.is_empty() => Err(not(
            why::WAITING,
            format!("no lockspace of node {node} is told to be released: nobody is declared dead"),
        )),
        other => other,
    }
}

fn task(
    request: &StorageFenceRequest,
    boot_id: &str,
    group: &VolumeGroupFence,
) -> Result<DeclareDead, Verdict> {
    let node = &request.spec.node_name;
    let name = &group.name;
    let missing = |what: &str| incomplete(node, &format!("{what} in volume group {name}"));
    let above_0 = |number: Option<i64>| number.filter(|n| *n > 0);
    Ok(DeclareDead {
        request_uid: request
            .metadata
            .uid
            .clone()
            .ok_or_else(|| missing("the request's UID"))?,
        request: request.metadata.name.clone().unwrap_or_default(),
        node_name: node.clone(),
        boot_id: boot_id.to_owned(),
        volume_group_uuid: group.uuid.clone(),
        lockspace: group
            .lockspace
            .clone()
            .ok_or_else(|| missing("its lockspace"))?,
        host_id: above_0(group.host_id).ok_or_else(|| missing("its host id"))?,
        generation: above_0(group.generation).ok_or_else(|| missing("its generation"))?,
    })
}

fn incomplete(node: &str, what: &str) -> Verdict {
    verdict(
        ConditionStatus::False,
        why::GENERATION_UNKNOWN,
        format!(
            "the agent of node {node} does not tell {what}, and nobody is declared dead without it. sanlock before 4 may not tell the generation: \
             update it there. {OTHERWISE}"
        ),
    )
}

fn restarted(node: &str) -> Verdict {
    verdict(
        ConditionStatus::False,
        reason::NODE_RESTARTED,
        format!(
            "node {node} was restarted since: nobody is declared dead for what was before. Its old locks are free once it has joined its lockspaces \
             again"
        ),
    )
}
