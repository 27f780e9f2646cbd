//! Whether a fence that another request had made is the one that a remediation asks for. Pure.

use kube::ResourceExt;

use crate::api::condition::find;
use crate::api::node_storage::VolumeGroupStatus;
use crate::api::request::{ReleaseLocks, VolumeGroupMode, condition_type};
use crate::api::{
    ConditionStatus, NodeStorageStatus, StorageFenceRemediation, StorageFenceRequest,
};
use crate::controller::facts::all_paths_gone;

/// How far it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cover {
    /// All that is asked for.
    Whole,
    /// It is not what is asked for, for this reason.
    Short(String),
    /// These volume groups are missing.
    Lacks(Vec<String>),
    /// Nobody is there who could tell.
    Unknown,
}

/// How far the fence of `other`, which is proven, is what `remediation` asks for. `storage`: what the node's agent says now, if one answers.
#[must_use]
pub fn cover(
    remediation: &StorageFenceRemediation,
    other: &StorageFenceRequest,
    storage: Option<&NodeStorageStatus>,
) -> Cover {
    let name = other.name_any();
    // Locks that are released although ours would keep them are no less of a fence, and nobody can take them back.
    if remediation.spec.release_locks == ReleaseLocks::AfterProof && !released(other) {
        return Cover::Short(format!(
            "the locks are to be released once the fence is proven, and {name} keeps them, so the watchdog may reset the host"
        ));
    }
    let node = other.status.as_ref().and_then(|s| s.node.as_ref());
    let fenced = node.map_or(&[][..], |n| &n.volume_groups);
    let proven = || {
        fenced
            .iter()
            .filter(|g| g.devices_proven == g.devices_total)
    };
    let selection = &remediation.spec.volume_groups;
    let mut missing: Vec<&str> = if selection.mode == VolumeGroupMode::Named {
        let named = selection.names.iter().map(String::as_str);
        named
            .filter(|name| !proven().any(|g| g.name == *name))
            .collect()
    } else {
        let Some(storage) = storage else {
            return Cover::Unknown;
        };
        // With a lockspace, the watchdog hangs on it. What another request had fenced before stands fenced all the same.
        let open =
            |g: &&VolumeGroupStatus| g.shared && !g.fenced && !proven().any(|p| p.uuid == g.uuid);
        let meant = |g: &&VolumeGroupStatus| {
            selection.mode == VolumeGroupMode::AllShared || all_paths_gone(g)
        };
        let groups = storage.volume_groups.iter();
        groups
            .filter(open)
            .filter(meant)
            .map(|g| g.name.as_str())
            .collect()
    };
    if missing.is_empty() {
        return Cover::Whole;
    }
    missing.sort_unstable();
    missing.dedup();
    Cover::Lacks(missing.into_iter().map(str::to_owned).collect())
}

fn released(request: &StorageFenceRequest) -> bool {
    let conditions = request.status.as_ref().map(|s| s.conditions.as_slice());
    conditions
        .and_then(|c| find(c, condition_type::LOCKS_RELEASED))
        .is_some_and(|c| c.status == ConditionStatus::True)
}

#[cfg(test)]
#[path = "cover_tests.rs"]
mod tests;
