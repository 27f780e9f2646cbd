//! The custom resource definitions, as the API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use storage_fence::api::crds;

use crate::bed::{Bed, refusal};
use crate::objects::request;
use crate::support::{Context, Result};
use crate::wait::{ensure, ensure_eq};

pub async fn the_crds_are_established(bed: &Bed) -> Result {
    let stored = bed.all::<CustomResourceDefinition>();
    for ours in crds::definitions() {
        let name = ours.metadata.name.unwrap_or_default();
        let crd = stored.get(&name).await.context(&name)?;
        let conditions = crd.status.and_then(|s| s.conditions).unwrap_or_default();
        let says = |type_: &str| {
            let found = conditions.iter().find(|c| c.type_ == type_);
            found.map_or("absent", |c| c.status.as_str())
        };
        ensure_eq(&format!("{name} Established"), says("Established"), "True")?;
        ensure_eq(
            &format!("{name} NamesAccepted"),
            says("NamesAccepted"),
            "True",
        )?;
        // What the API server does not like about a schema without refusing it.
        ensure_eq(
            &format!("{name} NonStructuralSchema"),
            says("NonStructuralSchema"),
            "absent",
        )?;
    }
    Ok(())
}

/// What may not be stored, and a piece of what is said about it.
fn bad_specs() -> Vec<(Value, &'static str)> {
    let many: Vec<String> = (0..33).map(|n| format!("vg{n}")).collect();
    let named = |names: Value| json!({ "volumeGroups": { "mode": "Named", "names": names } });
    vec![
        (
            json!({ "volumeGroups": { "mode": "Named" } }),
            "names is required with mode Named",
        ),
        (named(json!([])), "names is required with mode Named"),
        (
            json!({ "volumeGroups": { "names": ["san"] } }),
            "only allowed there",
        ),
        (
            json!({ "volumeGroups": { "mode": "AllShared", "names": ["san"] } }),
            "only allowed there",
        ),
        (named(json!(many)), "must have at most 32 items"),
        (named(json!([""])), "at least 1 chars long"),
        (named(json!(["-san"])), "should match"),
        (named(json!(["a/b"])), "should match"),
        (named(json!(["x".repeat(128)])), "may not be more than 127"),
        (
            json!({ "volumeGroups": { "mode": "Some" } }),
            "Unsupported value: \"Some\"",
        ),
        (json!({ "whenPathsRemain": "Perhaps" }), "Unsupported value"),
        (json!({ "fenceState": "Half" }), "Unsupported value"),
        (json!({ "releaseLocks": "Soon" }), "Unsupported value"),
        (
            json!({ "drainTimeoutSeconds": 0 }),
            "greater than or equal to 1",
        ),
        (
            json!({ "drainTimeoutSeconds": 601 }),
            "less than or equal to 600",
        ),
        (json!({ "dryRun": "yes" }), "must be of type boolean"),
        (
            json!({ "reason": "x".repeat(1025) }),
            "may not be more than 1024",
        ),
    ]
}

pub async fn the_rules_of_the_schema_hold(bed: &Bed) -> Result {
    let requests = kube::Api::<kube::api::DynamicObject>::all_with(
        bed.client.clone(),
        &kube::api::ApiResource::erase::<storage_fence::api::StorageFenceRequest>(&()),
    );
    let raw = |name: &str, spec: &Value| -> Result<kube::api::DynamicObject> {
        let mut object = serde_json::to_value(request(name, "n1", json!({}))?)?;
        object["spec"] = spec.clone();
        object["spec"]["nodeName"] = json!("n1");
        Ok(serde_json::from_value(object)?)
    };
    let never = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for (spec, wanted) in bad_specs() {
        let (code, text) = refusal(requests.create(&never, &raw("bad", &spec)?).await)
            .context(format!("{spec}"))?;
        ensure(
            code == 422 && text.contains(wanted),
            format!("{spec} is refused with '{wanted}': {text}"),
        )?;
    }
    // And what is right is not refused for being near to it.
    for spec in [
        json!({}),
        json!({ "volumeGroups": { "mode": "Named", "names": ["san", "a+b_c.d-e"] }, "drainTimeoutSeconds": 600 }),
        json!({ "volumeGroups": { "mode": "AllShared" }, "drainTimeoutSeconds": 1, "reason": "x".repeat(1024) }),
    ] {
        requests
            .create(&never, &raw("good", &spec)?)
            .await
            .context(format!("{spec}"))?;
    }

    let made = bed.ask("rules", "rules-1", json!({})).await?;
    ensure_eq("the stored default", made.spec.drain_timeout_seconds, 60)?;
    let change = |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let api = bed.requests();
        async move { api.patch("rules", &PatchParams::default(), &patch).await }
    };
    let (code, text) = refusal(change(json!({ "nodeName": "rules-2" })).await)?;
    ensure(code == 422 && text.contains("nodeName is immutable"), text)?;
    let changed = change(json!({ "reason": "another", "dryRun": true })).await?;
    ensure_eq("nodeName", changed.spec.node_name.as_str(), "rules-1")?;
    bed.withdraw("rules").await?;
    Ok(())
}

pub async fn kubectl_shows_finds_and_explains(bed: &Bed) -> Result {
    for (name, node) in [("shown-a", "shown-1"), ("shown-b", "shown-2")] {
        bed.ask(name, node, json!({})).await?;
    }
    let columns = |table: &str| -> Vec<String> {
        let head = table.lines().next().unwrap_or_default();
        head.split_whitespace().map(str::to_owned).collect()
    };
    let table = bed.kubectl(&["get", "sfr"]).await?;
    ensure_eq(
        "columns of sfr",
        columns(&table).join(" ").as_str(),
        "NAME NODE STATE PHASE FENCED RELEASED REASON AGE",
    )?;
    let row = table
        .lines()
        .find(|l| l.starts_with("shown-a"))
        .context("no row")?;
    ensure(row.contains("shown-1") && row.contains("Fenced"), row)?;

    let node = json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "NodeStorage",
        "metadata": { "name": "shown-1" }, "spec": {},
    });
    let storages = bed.all::<storage_fence::api::NodeStorage>();
    storages
        .create(&PostParams::default(), &serde_json::from_value(node)?)
        .await?;
    let table = bed.kubectl(&["get", "nst"]).await?;
    ensure_eq(
        "columns of nst",
        columns(&table).join(" ").as_str(),
        "NAME READY VGS LVS PATHS FENCED WATCHDOG AGE",
    )?;
    let both = bed.kubectl(&["get", "storagefence", "-o", "name"]).await?;
    for wanted in [
        "storagefencerequest.storagefence.io/shown-a",
        "nodestorage.storagefence.io/shown-1",
    ] {
        ensure(
            both.contains(wanted),
            format!("category storagefence has {wanted}: {both}"),
        )?;
    }

    let found = bed
        .requests()
        .list(&ListParams::default().fields("spec.nodeName=shown-2"))
        .await?;
    let names: Vec<_> = found
        .iter()
        .filter_map(|r| r.metadata.name.as_deref())
        .collect();
    ensure_eq("found by spec.nodeName", names, vec!["shown-b"])?;

    for (field, wanted) in [
        (
            "sfr.spec.whenPathsRemain",
            "a volume group with a working path is not touched",
        ),
        ("sfr.spec.volumeGroups.names", "with mode Named only"),
        (
            "sfr.status.node.bootId",
            "after a reboot none of this holds any more",
        ),
        (
            "nst.status.volumeGroups.lockspace.hostId",
            "This host's id in it",
        ),
    ] {
        let text = bed.kubectl(&["explain", field]).await?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure(
            text.contains(wanted),
            format!("kubectl explain {field} says '{wanted}': {text}"),
        )?;
    }
    for name in ["shown-a", "shown-b"] {
        bed.withdraw(name).await?;
    }
    storages.delete("shown-1", &DeleteParams::default()).await?;
    Ok(())
}

pub async fn the_status_is_written_apart(bed: &Bed) -> Result {
    let made = bed.ask("apart", "apart-1", json!({})).await?;
    let both = json!({ "spec": { "reason": "changed" }, "status": { "message": "changed" } });
    let params = PatchParams::default();
    let by_spec = bed
        .requests()
        .patch("apart", &params, &Patch::Merge(&both))
        .await?;
    ensure_eq(
        "generation after a change of the spec",
        by_spec.metadata.generation,
        Some(2),
    )?;
    ensure(
        by_spec.status.is_none(),
        "a write of the object leaves the status alone",
    )?;
    let both = json!({ "spec": { "reason": "again" }, "status": { "message": "changed" } });
    let by_status = bed
        .requests()
        .patch_status("apart", &params, &Patch::Merge(&both))
        .await?;
    let message = by_status.status.and_then(|s| s.message);
    ensure_eq("message", message.as_deref(), Some("changed"))?;
    ensure_eq("reason", by_status.spec.reason.as_deref(), Some("changed"))?;
    ensure_eq(
        "generation after a change of the status",
        by_status.metadata.generation,
        Some(2),
    )?;
    ensure(made.metadata.generation == Some(1), "it begins with 1")?;
    bed.withdraw("apart").await?;
    Ok(())
}
