//! Which nodes can declare a fenced peer dead: by what their agents report. Pure. Each of them looks for itself again before it does.

use std::fmt;

use super::plan::Peer;
use crate::api::node_storage::{PhysicalVolumeStatus, PreflightResult, VolumeGroupStatus};
use crate::api::takeover::DeclareDead;
use crate::fence::preflight::DEAD_EXT;

/// Why a node cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is the fenced one, or does not have the volume group.
    Elsewhere,
    /// Its sanlock cannot, or is not known to be able to.
    TooOld(String),
    /// For now.
    Unwell(&'static str),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere => f.write_str("it does not report the volume group"),
            Self::TooOld(why) => f.write_str(why),
            Self::Unwell(why) => f.write_str(why),
        }
    }
}

/// Whether that node can carry that task out.
///
/// # Errors
/// Why it cannot.
pub fn fit(peer: &Peer, task: &DeclareDead) -> Result<(), Unfit> {
    let storage = &peer.storage;
    let of_uuid = |g: &&VolumeGroupStatus| g.uuid == task.volume_group_uuid;
    let group = storage.volume_groups.iter().find(of_uuid);
    let Some(group) = group.filter(|_| peer.name != task.node_name) else {
        return Err(Unfit::Elsewhere);
    };
    let unwell = |why| Err(Unfit::Unwell(why));
    if !peer.answers {
        return unwell("its agent does not answer");
    }
    if group.fenced || storage.fences.iter().any(|f| f.uuid == group.uuid) {
        return unwell("it is fenced itself");
    }
    let Some(lockspace) = group.lockspace.as_ref() else {
        return unwell("it has not joined the lockspace");
    };
    if lockspace.name != task.lockspace {
        return unwell("it has joined another lockspace of the volume group");
    }
    if lockspace.host_id == task.host_id {
        return unwell("it has the same host id");
    }
    if lockspace.state != "Healthy" {
        return unwell("its own lease is not well");
    }
    let works = |pv: &PhysicalVolumeStatus| pv.paths.iter().any(|path| path.active);
    if group.physical_volumes.is_empty() || !group.physical_volumes.iter().all(works) {
        return unwell("not every physical volume of the volume group has a working path there");
    }
    let check = storage.preflight.iter().find(|c| c.name == DEAD_EXT);
    match check {
        Some(check) if check.result == PreflightResult::Passed => Ok(()),
        Some(check) => Err(Unfit::TooOld(check.message.clone())),
        None => Err(Unfit::TooOld(
            "its agent does not tell what its sanlock can do".to_owned(),
        )),
    }
}
