//! Carries a plan out.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::plan::{Finalizer, Plan, Request};
use super::records::GiveBack;
use crate::api::record::annotation;
use crate::api::remediation::FINALIZER;
use crate::api::{CONTROLLER_FIELD_MANAGER, StorageFenceRemediation, StorageFenceRequest};
use crate::controller::context::Context;
use crate::kubernetes::apply::{Result, Target, apply as put, apply_status, call};
use crate::kubernetes::events::Happening;

/// Writes what is to be written. Whether there was something.
///
/// # Errors
/// When the API server does not take it.
pub async fn apply(
    context: &Context,
    remediation: &StorageFenceRemediation,
    plan: &Plan,
) -> Result<bool> {
    let namespace = remediation.namespace().unwrap_or_default();
    let api: Api<StorageFenceRemediation> = Api::namespaced(context.client.clone(), &namespace);
    let name = remediation.name_any();
    let target = Target {
        name: &name,
        uid: remediation.metadata.uid.as_deref(),
        manager: CONTROLLER_FIELD_MANAGER,
    };
    // Before the request: a remediation that went away in between would leave it behind.
    if plan.finalizer == Finalizer::Put {
        let content = json!({ "metadata": { "finalizers": [FINALIZER] } });
        context.written.note(&put(&api, target, &content).await?);
    }
    see_to_request(context, &plan.request).await?;
    for record in &plan.give_back {
        give_back(context, record).await?;
    }
    if let Some(status) = &plan.status {
        context
            .written
            .note(&apply_status(&api, target, status).await?);
        tracing::info!(remediation = name, namespace, ?status, "status written");
    }
    if let Some(notice) = &plan.notice {
        let happening = Happening {
            warning: notice.warning,
            reason: notice.reason,
            action: "Remediate",
            note: &notice.note,
        };
        context.events.tell(remediation.object_ref(&()), &happening);
    }
    if plan.finalizer == Finalizer::Free {
        let content = json!({ "metadata": { "finalizers": [] } });
        match put(&api, target, &content).await {
            Ok(_) => tracing::info!(
                remediation = name,
                namespace,
                "a deleted remediation may go"
            ),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    let idle = plan.finalizer == Finalizer::Keep
        && matches!(plan.request, Request::Keep)
        && plan.give_back.is_empty();
    Ok(!idle || plan.status.is_some())
}

async fn see_to_request(context: &Context, request: &Request) -> Result<()> {
    let api: Api<StorageFenceRequest> = Api::all(context.client.clone());
    match request {
        Request::Keep => Ok(()),
        Request::Make(made) => {
            let what = format!("make request {}", made.name_any());
            let params = PostParams {
                field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            };
            match call(what, api.create(&params, made)).await {
                Ok(_) => Ok(()),
                // Ours, and the cache does not know it yet; or another's, which the next look tells.
                Err(error) if error.is_conflict() => Ok(()),
                Err(error) => Err(error),
            }
        }
        Request::Delete { name, uid } => {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            });
            match call(format!("delete request {name}"), api.delete(name, &params)).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                Err(error) => Err(error),
            }
        }
    }
}

/// Wants a record un-fenced. By a plain patch: what is applied by the controller's name is its finalizer, and a field that the next apply does not
/// name would go back to its default, which is to be fenced.
async fn give_back(context: &Context, record: &GiveBack) -> Result<()> {
    let name = &record.name;
    // UID and version make it fail on another of that name, and on one that somebody has changed meanwhile.
    let patch = json!({
        "metadata": {
            "uid": record.uid,
            "resourceVersion": record.version,
            "annotations": { annotation::UNFENCED_FOR: record.whom },
        },
        "spec": { "fenceState": "Unfenced", "unfenceAfterSeconds": record.after_seconds },
    });
    let params = PatchParams {
        field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api: Api<StorageFenceRequest> = Api::all(context.client.clone());
    let patch = Patch::Merge(&patch);
    match call(
        format!("un-fence request {name}"),
        api.patch(name, &params, &patch),
    )
    .await
    {
        Ok(_) => {
            tracing::info!(
                request = name,
                remediation = record.whom,
                "a record is given back with its remediation"
            );
            Ok(())
        }
        // It is looked at again: it has gone, or it is not what it was.
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
