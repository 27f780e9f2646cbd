//! What each request's list of affected pods should say. Pure.

use std::collections::BTreeSet;

use crate::agent::decide::Uid;
use crate::agent::journal::Standing;
use crate::agent::report::{AgentPart, count, cut};
use crate::api::condition::find;
use crate::api::eviction::{AffectedPod, AffectedPods, PODS, VOLUMES};
use crate::api::request::condition_type;
use crate::api::{ConditionStatus, StorageFenceRequest};
use crate::fence::affected::Affected;
use crate::fence::report::LocksOutcome;

/// A request of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its UID.
    pub uid: Uid,
    /// Its name.
    pub name: String,
    /// UUIDs of the volume groups that stand fenced for it in this boot, as its status says or is about to say. Empty: none do.
    pub groups: BTreeSet<String>,
    /// What the API server holds.
    pub stored: Option<AffectedPods>,
}

impl Subject {
    /// Of a request, whose status says `part` or is about to.
    #[must_use]
    pub fn of(uid: &str, request: &StorageFenceRequest, part: &AgentPart, boot_id: &str) -> Self {
        let fenced = find(&part.conditions, condition_type::FENCED);
        let stands = fenced.is_some_and(|c| c.status == ConditionStatus::True);
        let node = part.node.as_ref();
        let node = node.filter(|n| stands && n.boot_id == boot_id && !n.dry_run);
        let groups = node.iter().flat_map(|n| &n.volume_groups);
        Self {
            uid: uid.to_owned(),
            name: request.metadata.name.clone().unwrap_or_default(),
            groups: groups.map(|g| g.uuid.clone()).collect(),
            stored: request
                .status
                .as_ref()
                .and_then(|s| s.affected_pods.clone()),
        }
    }

    /// Whether its fence stands, and its locks are settled: only then is anything searched.
    #[must_use]
    pub fn stands(&self, standing: &[Standing]) -> Stands {
        let of = |uuid: &String| standing.iter().find(|s| s.group.uuid == *uuid);
        let all: Option<Vec<&Standing>> = self.groups.iter().map(of).collect();
        match all {
            Some(all) if all.is_empty() => Stands::No,
            Some(all) if all.iter().any(|s| s.locks == LocksOutcome::Pending) => Stands::NotYet,
            Some(_) => Stands::Yes,
            None => Stands::No,
        }
    }
}

/// Whether a fence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// No: nobody is affected.
    No,
    /// Its locks are being released. That comes first.
    NotYet,
    /// Yes.
    Yes,
}

/// The list.
#[must_use]
pub fn list(
    affected: &Affected,
    groups: &BTreeSet<String>,
    boot_id: &str,
    incomplete: bool,
) -> AffectedPods {
    let all = affected.of(groups);
    AffectedPods {
        boot_id: boot_id.to_owned(),
        total: count(all.len()),
        pods: all
            .into_iter()
            .take(PODS)
            .map(|(uid, volumes)| AffectedPod {
                uid: cut(&uid, 64),
                volumes: volumes.iter().take(VOLUMES).map(|v| cut(v, 128)).collect(),
            })
            .collect(),
        incomplete,
    }
}
