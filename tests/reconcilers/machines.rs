//! Cluster API's MachineHealthCheck controller, written from what it does (v1.11): it looks at the Node of each Machine, makes a remediation that is called
//! like the Machine, reads nothing of it, and deletes it when the Node is well. Machines and Nodes are read by an administrator's access; for
//! templates and remediations it has the rights that our role gives it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use storage_fence::api::StorageFenceRemediation;

use crate::bed::Bed;
use crate::health::{CAPI, HealthController, NAMESPACE, foreign, make, template};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, until};

/// A MachineHealthCheck, and who acts by it.
pub struct MachineHealthCheck<'a> {
    /// What it can tell of remediations.
    pub controller: HealthController<'a>,
    bed: &'a Bed,
    check: DynamicObject,
    namespace: String,
}

/// What one look at a Machine came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// The Machine has no Node yet.
    NoNode,
    /// Its Node is well, and nothing is there to be deleted.
    Healthy,
    /// Its Node is well, and its remediation is deleted, or was.
    Deleted,
    /// Its Node is not well, and its remediation was made.
    Made,
    /// Its Node is not well, and its remediation is there: nothing more is done.
    There,
    /// Its Node is not well, and there is no template.
    NoTemplate,
}

impl<'a> MachineHealthCheck<'a> {
    /// One with a template of that name, that looks at this condition of Nodes.
    pub async fn with_template(bed: &'a Bed, name: &str, type_: &str) -> Result<Self> {
        template(bed, name, json!({})).await?;
        let check = json!({
            "apiVersion": CAPI, "kind": "MachineHealthCheck", "metadata": { "name": name },
            "spec": {
                "clusterName": "c", "selector": {},
                "checks": { "unhealthyNodeConditions": [{ "type": type_, "status": "False", "timeoutSeconds": 0 }] },
                "remediation": { "templateRef": {
                    "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRemediationTemplate", "name": name,
                }},
            },
        });
        let checks = foreign(&bed.client, CAPI, "MachineHealthCheck", Some(NAMESPACE));
        Self::by(bed, make(&checks, check).await?)
    }

    /// By a check that is there.
    pub fn by(bed: &'a Bed, check: DynamicObject) -> Result<Self> {
        let namespace = check.namespace().context("a namespace")?;
        let template = check.data["spec"]["remediation"]["templateRef"]["name"].as_str();
        let template = template.context("no templateRef")?;
        let controller = HealthController::of(bed, "mhc", &namespace, template, None)?;
        Ok(Self {
            controller,
            bed,
            check,
            namespace,
        })
    }

    /// The check itself.
    pub fn check(&self) -> &DynamicObject {
        &self.check
    }

    fn machines(&self) -> Api<DynamicObject> {
        foreign(&self.bed.client, CAPI, "Machine", Some(&self.namespace))
    }

    /// A Machine, and its node once it has one. `labels`: for the check's selector.
    pub async fn machine(
        &self,
        name: &str,
        node: Option<&str>,
        labels: &Value,
    ) -> Result<DynamicObject> {
        let object = json!({
            "apiVersion": CAPI, "kind": "Machine", "metadata": { "name": name, "labels": labels },
            "spec": { "clusterName": "c" },
        });
        let params = PatchParams::apply("test").force();
        let machines = self.machines();
        let made = machines
            .patch(name, &params, &Patch::Apply(&object))
            .await?;
        let Some(node) = node else { return Ok(made) };
        let status = Patch::Merge(json!({ "status": { "nodeRef": { "name": node } } }));
        Ok(machines
            .patch_status(name, &PatchParams::default(), &status)
            .await?)
    }

    /// Ends a Machine; what it owns goes with it.
    pub async fn delete_machine(&self, name: &str) -> Result {
        self.machines()
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Types, statuses and times of the Node's conditions that are looked at.
    pub fn conditions(&self) -> Result<Vec<(String, String, Duration)>> {
        let all = self.check.data["spec"]["checks"]["unhealthyNodeConditions"].as_array();
        let condition = |c: &Value| {
            let text = |key: &str| c[key].as_str().map(str::to_owned);
            let seconds = c["timeoutSeconds"].as_u64()?;
            Some((text("type")?, text("status")?, Duration::from_secs(seconds)))
        };
        let all = all.into_iter().flatten().map(condition);
        all.collect::<Option<_>>()
            .context("a condition that is none")
    }

    /// One look at a Machine, with what follows from it.
    pub async fn look(&self, machine: &str) -> Result<Look> {
        let machine = self.machines().get(machine).await?;
        let Some(node) = machine.data["status"]["nodeRef"]["name"].as_str() else {
            return Ok(Look::NoNode);
        };
        let node = self.bed.all::<Node>().get_opt(node).await?;
        // A Node that is gone is not well either.
        let healthy =
            node.is_some_and(|node| !is_any(&node, &self.conditions().unwrap_or_default()));
        let remediations: Api<StorageFenceRemediation> =
            Api::namespaced(self.controller.client.clone(), &self.namespace);
        let name = machine.name_any();
        let there = remediations.get_opt(&name).await?;
        match (healthy, there) {
            (true, None) => Ok(Look::Healthy),
            (true, Some(there)) => {
                if there.metadata.deletion_timestamp.is_none() {
                    remediations.delete(&name, &DeleteParams::default()).await?;
                }
                Ok(Look::Deleted)
            }
            (false, Some(_)) => Ok(Look::There),
            (false, None) => self.remediate(&remediations, &machine).await,
        }
    }

    /// A copy of the template's spec.template (metadata, too), called like the Machine and owned by it.
    async fn remediate(
        &self,
        remediations: &Api<StorageFenceRemediation>,
        machine: &DynamicObject,
    ) -> Result<Look> {
        let reference = &self.check.data["spec"]["remediation"]["templateRef"];
        let text = |key: &str| reference[key].as_str().context("an incomplete templateRef");
        let (api_version, kind) = (text("apiVersion")?, text("kind")?);
        let templates = foreign(
            &self.controller.client,
            api_version,
            kind,
            Some(&self.namespace),
        );
        let Some(template) = templates.get_opt(text("name")?).await? else {
            return Ok(Look::NoTemplate);
        };
        let template = &template.data["spec"]["template"];
        let mut metadata: ObjectMeta =
            serde_json::from_value(template["metadata"].clone()).unwrap_or_default();
        metadata.name = Some(machine.name_any());
        let labels = metadata.labels.get_or_insert_default();
        labels.insert("cluster.x-k8s.io/cluster-name".into(), "c".into());
        let made = json!({
            "apiVersion": api_version,
            "kind": kind.strip_suffix("Template").context("no Template")?,
            "metadata": metadata,
            "spec": template["spec"],
        });
        let mut made: StorageFenceRemediation = serde_json::from_value(made)?;
        made.metadata.owner_references = Some(serde_json::from_value(json!([{
            "apiVersion": CAPI, "kind": "Machine", "name": machine.name_any(), "uid": machine.uid(),
        }]))?);
        remediations.create(&PostParams::default(), &made).await?;
        Ok(Look::Made)
    }

    /// Looks again and again, as it does when a Node changes, until that comes of it.
    pub async fn comes_to(&self, machine: &str, wanted: &Look) -> Result {
        until(
            &format!("Machine {machine}: {wanted:?}"),
            LIMIT,
            async || {
                self.bed.controllers.all_alive()?;
                let look = self.look(machine).await?;
                Ok(if look == *wanted {
                    Ok(())
                } else {
                    Err(format!("{look:?}"))
                })
            },
        )
        .await
    }
}

/// Whether a Node has had one of these conditions for long enough.
pub fn is_any(node: &Node, conditions: &[(String, String, Duration)]) -> bool {
    let has = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let held = |since: Option<Timestamp>| {
        let held = since.map(|since| Timestamp::now().duration_since(since));
        held.and_then(|held| Duration::try_from(held).ok())
    };
    conditions.iter().any(|(type_, status, time)| {
        has.into_iter().flatten().any(|c| {
            let since = c.last_transition_time.as_ref().map(|t| t.0);
            c.type_ == *type_ && c.status == *status && held(since).is_some_and(|h| h > *time)
        })
    })
}
