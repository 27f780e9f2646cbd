//! Clients that behave as node-health controllers do: medik8s' NHC (v0.12) and Cluster API's MachineHealthCheck. They have the rights that our
//! ClusterRole gives those that collect them by its labels, and read of a status what those read.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use storage_fence::api::condition::find;
use storage_fence::api::{
    ConditionStatus, StorageFenceRemediation, StorageFenceRemediationTemplate,
};

use crate::bed::{Bed, client};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, until};

/// Where templates and remediations are.
pub const NAMESPACE: &str = "node-health";
/// API of medik8s' NHC.
pub const NHC: &str = "remediation.medik8s.io/v1alpha1";
/// API of Cluster API.
pub const CAPI: &str = "cluster.x-k8s.io/v1beta2";
/// The controllers' own kinds.
const DEFINITIONS: &str = "tests/reconcilers/health-crds/";

/// What a health controller can tell from the conditions' types and statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing that it knows.
    Nothing,
    /// It waits.
    Processing,
    /// It is done, and waits for the node to become healthy.
    Succeeded,
    /// It escalates at once.
    Failed,
}

/// One of them, with a template.
pub struct HealthController<'a> {
    bed: &'a Bed,
    /// Its access: what our role gives it.
    pub client: Client,
    namespace: String,
    template: String,
    owner: Option<DynamicObject>,
}

/// The namespace, the controllers' own kinds, and the roles that collect rights, as these projects install them.
pub async fn prepare(bed: &Bed) -> Result {
    let namespace = json!({ "metadata": { "name": NAMESPACE } });
    made(
        bed,
        NAMESPACE,
        "v1",
        "Namespace",
        &bed.all::<Namespace>(),
        namespace,
    )
    .await?;
    for kind in [
        "nodehealthchecks.remediation.medik8s.io",
        "machinehealthchecks.cluster.x-k8s.io",
        "machines.cluster.x-k8s.io",
    ] {
        let there = bed.all::<CustomResourceDefinition>().get_opt(kind).await?;
        is_ours("CustomResourceDefinition", kind, there.as_ref())?;
    }
    bed.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        DEFINITIONS,
    ])
    .await?;
    bed.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=240s",
        "-f",
        DEFINITIONS,
    ])
    .await?;
    for (role, label, user) in [
        (
            "node-healthcheck-operator-aggregation",
            "rbac.ext-remediation/aggregate-to-ext-remediation",
            "nhc",
        ),
        (
            "capi-aggregated-manager-role",
            "cluster.x-k8s.io/aggregate-to-manager",
            "mhc",
        ),
    ] {
        const RBAC: &str = "rbac.authorization.k8s.io/v1";
        let rules = json!({ "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { label: "true" } }] } });
        made(
            bed,
            role,
            RBAC,
            "ClusterRole",
            &bed.all::<ClusterRole>(),
            rules,
        )
        .await?;
        let binding = json!({
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
        });
        made(
            bed,
            role,
            RBAC,
            "ClusterRoleBinding",
            &bed.all::<ClusterRoleBinding>(),
            binding,
        )
        .await?;
        // The role's rules are collected a moment after the role is there.
        let theirs = HealthController::of(bed, user, NAMESPACE, "", None)?;
        until(&format!("{user} has its rights"), LIMIT, async || {
            let seen = theirs.remediations().list(&ListParams::default()).await;
            Ok(seen.map(drop).map_err(|e| e.to_string()))
        })
        .await?;
    }
    Ok(())
}

/// What a developer's cluster has already is not replaced.
fn is_ours<K: Resource>(kind: &str, name: &str, there: Option<&K>) -> Result {
    if there.is_some_and(|o| !o.labels().contains_key(crate::node::LABEL)) {
        return Err(format!("{kind} {name} is there already, and is not ours to replace: a health controller is installed in this cluster").into());
    }
    Ok(())
}

async fn made<K: Resource + Clone + DeserializeOwned + std::fmt::Debug>(
    bed: &Bed,
    name: &str,
    api_version: &str,
    kind: &str,
    api: &Api<K>,
    mut object: Value,
) -> Result {
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object["metadata"]["name"] = json!(name);
    object["metadata"]["labels"] = json!({ crate::node::LABEL: "" });
    let params = PatchParams::apply("test").force();
    is_ours(kind, name, api.get_opt(name).await?.as_ref())?;
    // What was being deleted may have to go first.
    until(&format!("{kind} {name} is made"), LIMIT, async || {
        bed.controllers.all_alive()?;
        let made = api.patch(name, &params, &Patch::Apply(&object)).await;
        Ok(made.map(drop).map_err(|e| e.to_string()))
    })
    .await
}

impl<'a> HealthController<'a> {
    /// NHC, with a NodeHealthCheck and a template of that name.
    pub async fn nhc(bed: &'a Bed, name: &str) -> Result<Self> {
        template(bed, name, json!({})).await?;
        let how = json!({ "remediationTemplate": reference(name) });
        Self::checking(bed, name, how).await
    }

    /// NHC with two templates of this kind: when the first has failed or taken too long, it makes a remediation from the second, whose spec has this
    /// besides.
    pub async fn escalating(bed: &'a Bed, name: &str, second: Value) -> Result<[Self; 2]> {
        let later = format!("{name}-2");
        template(bed, name, json!({})).await?;
        template(bed, &later, second).await?;
        let how = json!({ "escalatingRemediations": [
            { "order": 1, "timeout": "60s", "remediationTemplate": reference(name) },
            { "order": 2, "timeout": "60s", "remediationTemplate": reference(&later) },
        ]});
        let first = Self::checking(bed, name, how).await?;
        let second = Self::of(bed, "nhc", NAMESPACE, &later, first.owner.clone())?;
        second.sees_template(supports_several).await?;
        Ok([first, second])
    }

    async fn checking(bed: &'a Bed, name: &str, mut spec: Value) -> Result<Self> {
        spec["selector"] = json!({ "matchLabels": { crate::node::LABEL: "" } });
        spec["maxUnhealthy"] = json!("100%");
        let check = json!({
            "apiVersion": NHC, "kind": "NodeHealthCheck", "metadata": { "name": name }, "spec": spec,
        });
        let checks = foreign(&bed.client, NHC, "NodeHealthCheck", None);
        let check = make(&checks, check).await?;
        let nhc = Self::of(bed, "nhc", NAMESPACE, name, Some(check))?;
        // NHC generates names for templates that say that they support that.
        nhc.sees_template(supports_several).await?;
        Ok(nhc)
    }

    /// One that is called like that user, and makes remediations from a template that is there.
    pub fn of(
        bed: &'a Bed,
        user: &str,
        namespace: &str,
        template: &str,
        owner: Option<DynamicObject>,
    ) -> Result<Self> {
        let mut access = bed.config.clone();
        access.auth_info.impersonate = Some(user.to_owned());
        Ok(Self {
            bed,
            client: client(&access)?,
            namespace: namespace.to_owned(),
            template: template.to_owned(),
            owner,
        })
    }

    fn remediations(&self) -> Api<StorageFenceRemediation> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A node is unhealthy: NHC makes a remediation for it.
    pub async fn remediate(&self, node: &str) -> Result<StorageFenceRemediation> {
        let owner = self.owner.as_ref().context("only NHC knows nodes")?;
        self.create(json!({
            "generateName": format!("{node}-"),
            "annotations": {
                "remediation.medik8s.io/node-name": node,
                "remediation.medik8s.io/template-name": self.template,
            },
            "labels": { "app.kubernetes.io/part-of": "node-healthcheck-controller" },
            "ownerReferences": [{
                "apiVersion": NHC, "kind": "NodeHealthCheck", "name": owner.name_any(), "uid": owner.uid(), "controller": false,
            }],
        }))
        .await
    }

    /// Makes a remediation from the template: its kind without the suffix, and a copy of spec.template.spec.
    pub async fn create(&self, metadata: impl Serialize) -> Result<StorageFenceRemediation> {
        let templates = foreign(
            &self.client,
            "storagefence.io/v1alpha1",
            "StorageFenceRemediationTemplate",
            Some(&self.namespace),
        );
        let template = templates.get(&self.template).await?;
        let types = template.types.context("a template without a kind")?;
        let made = json!({
            "apiVersion": types.api_version,
            "kind": types.kind.strip_suffix("Template").context("no Template")?,
            "metadata": metadata,
            "spec": template.data["spec"]["template"]["spec"],
        });
        let made = serde_json::from_value(made)?;
        let remediations = self.remediations();
        // The role's rules are collected a moment after the role is there.
        until(
            "the health controller may make a remediation",
            LIMIT,
            async || {
                Ok(remediations
                    .create(&PostParams::default(), &made)
                    .await
                    .map_err(|e| e.to_string()))
            },
        )
        .await
    }

    /// NHC has waited long enough, and writes that into the whole object.
    pub async fn time_out(&self, name: &str) -> Result {
        until("NHC marks the remediation", LIMIT, async || {
            let mut stored = self.remediations().get(name).await?;
            let annotations = stored.annotations_mut();
            annotations.insert(
                "remediation.medik8s.io/nhc-timed-out".into(),
                "2026-01-01T00:00:00Z".into(),
            );
            match self
                .remediations()
                .replace(name, &PostParams::default(), &stored)
                .await
            {
                Ok(_) => Ok(Ok(())),
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    Ok(Err(status.message.clone()))
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The node is healthy.
    pub async fn delete(&self, name: &str) -> Result {
        self.remediations()
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// The remediation, while it is there.
    pub async fn get(&self, name: &str) -> Result<Option<StorageFenceRemediation>> {
        Ok(self.remediations().get_opt(name).await?)
    }

    /// What the conditions say to a health controller.
    #[expect(
        clippy::unused_self,
        reason = "a health controller reads it, in its words"
    )]
    pub fn phase(&self, remediation: &StorageFenceRemediation) -> Phase {
        let conditions = remediation.status.as_ref().map(|s| s.conditions.as_slice());
        let of = |type_| conditions.and_then(|c| find(c, type_)).map(|c| c.status);
        match (of("Processing"), of("Succeeded")) {
            (Some(ConditionStatus::True), Some(ConditionStatus::Unknown)) => Phase::Processing,
            (Some(ConditionStatus::False), Some(ConditionStatus::True)) => Phase::Succeeded,
            (Some(ConditionStatus::False), Some(ConditionStatus::False)) => Phase::Failed,
            _ => Phase::Nothing,
        }
    }

    /// Reason of Succeeded.
    #[expect(
        clippy::unused_self,
        reason = "a health controller reads it, in its words"
    )]
    pub fn reason(&self, remediation: &StorageFenceRemediation) -> String {
        let conditions = remediation.status.as_ref().map(|s| s.conditions.as_slice());
        let succeeded = conditions.and_then(|c| find(c, "Succeeded"));
        succeeded.map(|c| c.reason.clone()).unwrap_or_default()
    }

    /// Waits until a remediation is so far.
    pub async fn sees(&self, name: &str, phase: Phase) -> Result<StorageFenceRemediation> {
        self.until(name, &format!("{phase:?}"), |r| self.phase(r) == phase)
            .await
    }

    /// Waits until a remediation gives that reason.
    pub async fn sees_reason(&self, name: &str, reason: &str) -> Result<StorageFenceRemediation> {
        self.until(name, reason, |r| self.reason(r) == reason).await
    }

    async fn until(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&StorageFenceRemediation) -> bool,
    ) -> Result<StorageFenceRemediation> {
        until(&format!("remediation {name}: {what}"), LIMIT, async || {
            self.bed.controllers.all_alive()?;
            let remediation = self.remediations().get(name).await?;
            Ok(if is_so(&remediation) {
                Ok(remediation)
            } else {
                Err(format!("{:?}", remediation.status))
            })
        })
        .await
    }

    /// Waits until a remediation is gone: only then NHC counts the node as healthy.
    pub async fn gone(&self, name: &str) -> Result {
        until(&format!("remediation {name} is gone"), LIMIT, async || {
            let there = self.get(name).await?;
            Ok(there.map_or(Ok(()), |r| {
                Err(format!("{:?} {:?}", r.metadata.finalizers, r.status))
            }))
        })
        .await
    }

    /// Waits until the template is so.
    pub async fn sees_template(
        &self,
        is_so: impl Fn(&StorageFenceRemediationTemplate) -> bool,
    ) -> Result<StorageFenceRemediationTemplate> {
        // NHC may read templates, but that is for later.
        let templates: Api<StorageFenceRemediationTemplate> =
            Api::namespaced(self.bed.client.clone(), &self.namespace);
        until(&format!("template {}", self.template), LIMIT, async || {
            self.bed.controllers.all_alive()?;
            let template = templates.get(&self.template).await?;
            Ok(if is_so(&template) {
                Ok(template)
            } else {
                Err(format!("{:?}", template.status))
            })
        })
        .await
    }
}

/// A template of that name, beside the remediations that are made from it; `more` on top of a spec that waits for nothing.
pub async fn template(bed: &Bed, name: &str, more: Value) -> Result {
    let templates: Api<StorageFenceRemediationTemplate> =
        Api::namespaced(bed.client.clone(), NAMESPACE);
    let mut spec = more;
    spec["unfenceAfterSeconds"] = json!(0);
    let template = serde_json::from_value(json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRemediationTemplate",
        "metadata": { "name": name }, "spec": { "template": { "spec": spec } },
    }))?;
    templates.create(&PostParams::default(), &template).await?;
    Ok(())
}

fn reference(template: &str) -> Value {
    json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRemediationTemplate", "name": template, "namespace": NAMESPACE,
    })
}

fn supports_several(template: &StorageFenceRemediationTemplate) -> bool {
    template
        .annotations()
        .contains_key("remediation.medik8s.io/multiple-templates-support")
}

/// The API of a kind that is not ours.
pub fn foreign(
    client: &Client,
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = kube::api::GroupVersionKind::gvk(group, version, kind);
    let resource = kube::api::ApiResource::from_gvk(&kind);
    if let Some(namespace) = namespace {
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    }
}

/// Makes one.
pub async fn make(api: &Api<DynamicObject>, object: Value) -> Result<DynamicObject> {
    let object: DynamicObject = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await?)
}
