//! The part of it that is sanlock's: is that host, in that generation, there; and then that it is dead. Blocks.

use std::time::Duration;

use crate::api::takeover::{DeclareDead, DeclareDeadResult};
use crate::fence::{Inventory, Lockspace, LockspaceState};
use crate::host::{Death, Host, HostState, Result};

/// How long sanlock may take at the least, whatever the I/O time-out.
const LEAST: Duration = Duration::from_secs(10);

/// What came of it, in words.
pub type Outcome = (DeclareDeadResult, String);

fn refused(why: impl Into<String>) -> Outcome {
    (DeclareDeadResult::Refused, why.into())
}

fn failed(why: impl Into<String>) -> Outcome {
    (DeclareDeadResult::Failed, why.into())
}

/// This node's own lockspace that belongs to the volume group of the task, if it can declare somebody dead there.
///
/// # Errors
/// Why it cannot.
pub fn place(task: &DeclareDead, inventory: &Inventory) -> std::result::Result<Lockspace, Outcome> {
    let lockspaces = inventory.lock_manager.lockspaces();
    let named = lockspaces.iter().find(|l| l.name == task.lockspace);
    let Some(own) = named else {
        return Err(failed(format!(
            "this node has not joined lockspace {}",
            task.lockspace
        )));
    };
    // Its name is made from the volume group's, and there may be two of one name.
    if own.vg_uuid != task.volume_group_uuid {
        return Err(refused(format!(
            "lockspace {} belongs to volume group {:?} here, not to {}",
            own.name, own.vg_uuid, task.volume_group_uuid
        )));
    }
    let fenced = inventory
        .volume_groups
        .iter()
        .any(|g| g.uuid == own.vg_uuid && (g.stands || g.fenced()));
    if own.frozen || fenced {
        return Err(failed("this node is being fenced itself"));
    }
    if own.state != LockspaceState::Healthy {
        return Err(failed(format!(
            "this node's own lease of lockspace {} is not well ({:?})",
            own.name, own.state
        )));
    }
    if u64::try_from(task.host_id) == Ok(own.host_id) {
        return Err(refused(format!(
            "host id {} is this node's own",
            task.host_id
        )));
    }
    Ok(own.clone())
}

/// How long sanlock may take to declare somebody dead: it reads and writes one sector, each within the I/O time-out.
#[must_use]
pub fn limit(own: &Lockspace) -> Duration {
    (Duration::from_secs(own.io_timeout.into()) * 3).clamp(LEAST, LEAST * 6)
}

/// Declares the host of the task dead, unless it is not exactly what the task says, and reads back what sanlock makes of it.
#[must_use]
pub fn declare(host: &Host, task: &DeclareDead, own: &Lockspace) -> Outcome {
    attempt(host, task, own).unwrap_or_else(|error| failed(error.to_string()))
}

fn attempt(host: &Host, task: &DeclareDead, own: &Lockspace) -> Result<Outcome> {
    let (Ok(host_id), Ok(generation)) =
        (u64::try_from(task.host_id), u64::try_from(task.generation))
    else {
        return Ok(refused("neither host id nor generation can be negative"));
    };
    // The volume group is known from a look of before. If the lockspace was joined anew since, it may be another's.
    let status = host.sanlock.status()?;
    let now = status.lockspaces.iter().find(|l| l.name == own.name);
    let same = now.is_some_and(|l| {
        let told = l.generation.zip(own.generation);
        l.host_id == own.host_id
            && told.is_none_or(|(now, then)| now == then)
            && l.state == LockspaceState::Healthy
    });
    if !same {
        return Ok(failed(format!(
            "this node's lockspace {} is not what it was a moment ago",
            own.name
        )));
    }
    let whom = format!(
        "host {host_id} generation {generation} of lockspace {}",
        own.name
    );
    let seen = host.sanlock.host(&own.name, host_id)?;
    if seen.generation != generation {
        return Ok(refused(format!(
            "it is not {whom} that was fenced: sanlock here sees generation {}",
            seen.generation
        )));
    }
    if seen.state == HostState::Free {
        return Ok((
            DeclareDeadResult::Free,
            format!("{whom} has given its lease back: its locks can be had"),
        ));
    }
    let declared = |how: &str| {
        (
            DeclareDeadResult::Declared,
            format!("{whom} {how}: its locks can be had"),
        )
    };
    if seen.declared_dead {
        return Ok(declared("was declared dead before"));
    }
    let death = Death {
        lockspace: own.name.clone(),
        own_host_id: own.host_id,
        host_id,
        generation,
    };
    host.sanlock.declare_dead(&death, limit(own))?;
    let after = host.sanlock.host(&own.name, host_id)?;
    if after.declared_dead && after.generation == generation {
        return Ok(declared("is declared dead"));
    }
    Ok(failed(format!(
        "sanlock took it, and shows {whom} as {:?} in generation {} all the same",
        after.state, after.generation
    )))
}
