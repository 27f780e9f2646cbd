//! Whether a node was fenced as a task says: by what that node's own agent has attested in the status of the request (S8). Pure.
//!
//! No other agent can have written it: the admission policy lets an agent write for the node in its token only (S10). So a task that is wrong, or a
//! NodeStorage that somebody edited, has nobody declared dead. Whoever may write any status, as the controller's account and administrators may, is
//! believed.

use crate::api::condition::find;
use crate::api::request::{FenceState, Takeover, VolumeGroupFence, condition_type};
use crate::api::takeover::DeclareDead;
use crate::api::{ConditionStatus, StorageFenceRequest};

/// What speaks against the task; None when all of it is attested. `request`: as the API server has it now, under the task's name.
#[must_use]
pub fn objection(task: &DeclareDead, request: Option<&StorageFenceRequest>) -> Option<String> {
    let name = &task.request;
    let Some(request) = request else {
        return Some(format!("there is no request {name}"));
    };
    if request.metadata.uid.as_deref() != Some(task.request_uid.as_str()) {
        return Some(format!("request {name} is another one, made later"));
    }
    let spec = &request.spec;
    if spec.node_name != task.node_name {
        return Some(format!(
            "request {name} is about node {}, not {}",
            spec.node_name, task.node_name
        ));
    }
    if spec.dry_run {
        return Some(format!("request {name} is a dry run"));
    }
    if spec.takeover != Takeover::Expedite {
        return Some(format!("request {name} does not ask for it (takeover)"));
    }
    if spec.fence_state != FenceState::Fenced || request.metadata.deletion_timestamp.is_some() {
        return Some(format!(
            "by request {name} node {} is to have its storage back",
            task.node_name
        ));
    }
    let status = request.status.as_ref();
    for type_ in [condition_type::FENCED, condition_type::LOCKS_RELEASED] {
        let said = status.and_then(|s| find(&s.conditions, type_));
        if said.map(|c| c.status) != Some(ConditionStatus::True) {
            let reason = said.map_or("said nothing", |c| c.reason.as_str());
            return Some(format!("request {name} is not {type_} ({reason})"));
        }
    }
    let Some(fence) = status.and_then(|s| s.node.as_ref()) else {
        return Some(format!("the agent of the node attests nothing in {name}"));
    };
    if fence.dry_run {
        return Some(format!("what request {name} tells is a plan"));
    }
    if fence.boot_id != task.boot_id {
        return Some(format!(
            "node {} was fenced in boot {}, not {}",
            task.node_name, fence.boot_id, task.boot_id
        ));
    }
    let of_uuid = |g: &&VolumeGroupFence| g.uuid == task.volume_group_uuid;
    let Some(group) = fence.volume_groups.iter().find(of_uuid) else {
        return Some(format!(
            "request {name} did not fence volume group {}",
            task.volume_group_uuid
        ));
    };
    if !group.locks_released {
        return Some(format!(
            "the locks of volume group {} are not released",
            group.name
        ));
    }
    let attested = (group.lockspace.as_deref(), group.host_id, group.generation);
    let asked = (
        Some(task.lockspace.as_str()),
        Some(task.host_id),
        Some(task.generation),
    );
    if attested != asked {
        return Some(format!(
            "what was fenced is lockspace {}, host id {}, generation {}; the task says {}, {}, {}",
            group.lockspace.as_deref().unwrap_or("unknown"),
            told(group.host_id),
            told(group.generation),
            task.lockspace,
            task.host_id,
            task.generation
        ));
    }
    None
}

fn told(number: Option<i64>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |n| n.to_string())
}
