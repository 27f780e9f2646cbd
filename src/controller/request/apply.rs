//! Carries a plan out.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Api, Resource, ResourceExt};

use super::plan::Plan;
use super::status::ControllerStatus;
use crate::api::{CONTROLLER_FIELD_MANAGER, StorageFenceRequest};
use crate::controller::context::Context;
use crate::controller::facts::Facts;
use crate::kubernetes::apply::{Error, Target, apply_status};
use crate::kubernetes::events::Happening;

/// Writes what is to be written, then tells. Returns whether something was written.
///
/// # Errors
/// When the API server does not take the status. Nothing is told then.
pub async fn apply(
    request: &StorageFenceRequest,
    facts: &Facts,
    plan: &Plan,
    context: &Context,
) -> Result<bool, Error> {
    let Some(status) = &plan.write else {
        return Ok(false);
    };
    write(request, status, context).await?;
    for notice in &plan.notices {
        let happening = Happening {
            warning: notice.warning,
            reason: &notice.reason,
            action: "Reconcile",
            note: &notice.note,
        };
        context.events.tell(request.object_ref(&()), &happening);
        if let Some(node) = facts.node.as_ref().filter(|_| notice.on_node) {
            let note = format!("{}: {}", request.name_any(), notice.note);
            let regarding = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(request.spec.node_name.clone()),
                uid: Some(node.uid.clone()),
                ..ObjectReference::default()
            };
            context.events.tell(
                regarding,
                &Happening {
                    note: &note,
                    ..happening
                },
            );
        }
    }
    Ok(true)
}

async fn write(
    request: &StorageFenceRequest,
    status: &ControllerStatus,
    context: &Context,
) -> Result<(), Error> {
    let name = request.name_any();
    let api = Api::<StorageFenceRequest>::all(context.client.clone());
    let target = Target {
        name: &name,
        uid: request.metadata.uid.as_deref(),
        manager: CONTROLLER_FIELD_MANAGER,
    };
    let stored = apply_status(&api, target, status).await?;
    context.written.note(&stored);
    tracing::info!(
        request = name,
        node = request.spec.node_name,
        phase = ?status.phase,
        message = status.message,
        "status written"
    );
    Ok(())
}
