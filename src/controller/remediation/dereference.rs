//! Gathers what bears on a remediation: which node is meant, what the cluster knows of it, and the request.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use super::plan::{has_finalizer, request_name};
use super::predecessor::taken_back_by;
use super::records;
use crate::api::governing::outranked_by;
use crate::api::remediation::{REMEDIATION_UID_LABEL, contract};
use crate::api::{
    NodeStorageStatus, StorageFencePolicy, StorageFenceRemediation, StorageFenceRequest,
};
use crate::controller::context::Context;
use crate::controller::node::boot::boot_id;
use crate::controller::request::dereference as requests;
use crate::controller::watches::Request;
use crate::kubernetes::apply::{Result, call};

/// All of it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Name of the node, or why it cannot be told.
    pub node: std::result::Result<String, String>,
    /// Whether there is a Node of that name.
    pub node_exists: bool,
    /// Boot ID of the running kernel as the Node says. Asked for only when a deleted remediation waits for a node that was fenced.
    pub node_boot_id: Option<String>,
    /// Our request.
    pub request: Option<StorageFenceRequest>,
    /// The older request that governs the node instead of ours.
    pub governed_by: Option<StorageFenceRequest>,
    /// Name of the other remediation that one serves, if it takes it back.
    pub predecessor: Option<String>,
    /// What the node's agent says now, if one answers.
    pub storage: Option<NodeStorageStatus>,
    /// All policies.
    pub policies: Vec<StorageFencePolicy>,
    /// Whether a request that is not ours has the name of ours.
    pub name_taken: bool,
    /// What policies had the node fence by itself, as its agent has recorded it: what a success would rest on now; of a deleted remediation, what
    /// its success rested on, as far as it is there.
    pub records: Vec<StorageFenceRequest>,
    /// Whether it was deleted just now: nothing was done about that yet.
    pub is_news: bool,
    /// In that case: what its success rests on beyond that, and its status does not name yet.
    pub unnoted: Vec<StorageFenceRequest>,
    /// All requests for the node, whosever they are.
    pub requests: Vec<StorageFenceRequest>,
}

/// Gathers. `all`: the remediations there are.
///
/// # Errors
/// When the API server cannot be asked for what no cache holds.
pub async fn dereference(
    remediation: &StorageFenceRemediation,
    all: &[StorageFenceRemediation],
    context: &Context,
) -> Result<Facts> {
    let node = node_of(remediation, context).await?;
    let mut facts = Facts {
        node,
        node_exists: false,
        node_boot_id: None,
        request: None,
        governed_by: None,
        predecessor: None,
        storage: None,
        policies: context.caches.readable_policies(),
        name_taken: false,
        records: Vec::new(),
        is_news: false,
        unnoted: Vec::new(),
        requests: Vec::new(),
    };
    let uid = remediation.uid().unwrap_or_default();
    let requests = context.caches.requests.state();
    let readable = || requests.iter().filter_map(|r| r.0.as_ref().ok());
    // By the label, and not by the name: the name follows from the node, which may not be known any more.
    let ours = |r: &&StorageFenceRequest| r.labels().get(REMEDIATION_UID_LABEL) == Some(&uid);
    facts.request = readable().find(ours).cloned();
    if let Ok(node) = &facts.node {
        facts.node_exists = context.caches.nodes.get(&ObjectRef::new(node)).is_some();
        let name = request_name(remediation, node);
        facts.name_taken = facts.request.is_none() && readable().any(|r| r.name_any() == name);
        let deleted = remediation.metadata.deletion_timestamp.is_some();
        let mut others = context.caches.requests_of(node);
        facts.is_news = records::is_news(remediation);
        if facts.is_news {
            // What stood before the deletion may reach the cache after it: another watch brings it.
            others = stored_requests_of(node, context).await?;
            facts.request = others.iter().find(ours).cloned();
        }
        if let Some(request) = &facts.request {
            facts.governed_by = outranked_by(request, &others).cloned();
            let governor = facts.governed_by.as_ref();
            facts.predecessor = governor.and_then(|other| taken_back_by(other, all));
            let about = requests::dereference(request, &context.caches);
            facts.storage = about.current_agent().map(|(_, storage)| storage.clone());
        }
        let instead = records::governs_instead(facts.request.as_ref(), node, &others);
        let rests_on = records::rests_on(remediation, instead.as_ref(), &others);
        facts.records = if deleted {
            records::noted(remediation, &others)
        } else {
            rests_on.clone()
        };
        if facts.is_news {
            facts.unnoted = records::unnoted(remediation, rests_on);
        }
        let goes = deleted && records::owed(remediation, &facts.records).is_nothing();
        if goes && !facts.is_news && facts.request.is_none() && has_finalizer(remediation) {
            // What was made a moment ago may not be in the cache yet, and nobody would be left to take it back.
            others = stored_requests_of(node, context).await?;
            facts.request = others.iter().find(ours).cloned();
            facts.records = records::noted(remediation, &others);
        }
        let owes = facts.request.is_some() || !facts.records.is_empty();
        if deleted && owes && facts.node_exists {
            facts.node_boot_id = boot_id(node, context).await?;
        }
        facts.requests = others;
    }
    Ok(facts)
}

/// The node's requests as the API server has them now, as far as they can be read.
async fn stored_requests_of(node: &str, context: &Context) -> Result<Vec<StorageFenceRequest>> {
    let api: Api<Request> = Api::all(context.client.clone());
    let of_it = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let what = format!("list the requests for node {node}");
    let found = call(what, api.list(&of_it)).await?;
    let readable = found.items.into_iter().filter_map(|r| r.0.ok());
    Ok(readable.collect())
}

/// Where a remediation says which node it is about, in the order of the contract. Pure.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// This is its name.
    Name(String),
    /// The node of this Machine.
    Machine(OwnerReference),
}

/// What was found out before stays: nobody may turn a remediation to another node.
#[must_use]
pub fn source(remediation: &StorageFenceRemediation) -> Source {
    let found = remediation
        .status
        .as_ref()
        .and_then(|s| s.node_name.clone());
    if let Some(name) = found.filter(|name| !name.is_empty()) {
        return Source::Name(name);
    }
    let annotated = remediation.annotations().get(contract::NODE_NAME).cloned();
    let annotated = annotated.filter(|name| !name.is_empty());
    let owners = remediation.owner_references();
    // NHC knows nodes: it names them in the annotation, and older versions of it in the name.
    if owners.iter().any(|o| o.kind == "NodeHealthCheck") {
        return Source::Name(annotated.unwrap_or_else(|| remediation.name_any()));
    }
    match (annotated, machine_of(remediation)) {
        // A health check of Machines that writes the Machine's name there, as NHC did for some time, knows no better; and there may be a node of
        // that name on another Machine.
        (Some(name), Some(machine)) if name == machine.name => Source::Machine(machine),
        (Some(name), _) => Source::Name(name),
        (None, Some(machine)) => Source::Machine(machine),
        (None, None) => Source::Name(remediation.name_any()),
    }
}

/// The Machine that owns a remediation; where only its MachineHealthCheck does, the Machine that the remediation is called after.
fn machine_of(remediation: &StorageFenceRemediation) -> Option<OwnerReference> {
    let owners = remediation.owner_references();
    let of_kind = |kind: &str| owners.iter().find(|o| o.kind == kind);
    of_kind("Machine").cloned().or_else(|| {
        of_kind("MachineHealthCheck").map(|check| OwnerReference {
            api_version: check.api_version.clone(),
            kind: "Machine".to_owned(),
            name: remediation.name_any(),
            ..OwnerReference::default()
        })
    })
}

async fn node_of(
    remediation: &StorageFenceRemediation,
    context: &Context,
) -> Result<std::result::Result<String, String>> {
    let machine = match source(remediation) {
        Source::Name(name) => return Ok(Ok(name)),
        Source::Machine(machine) => machine,
    };
    let namespace = remediation.namespace().unwrap_or_default();
    let (group, version) = machine
        .api_version
        .split_once('/')
        .unwrap_or(("", &machine.api_version));
    let kind = GroupVersionKind::gvk(group, version, &machine.kind);
    let machines: Api<DynamicObject> = Api::namespaced_with(
        context.client.clone(),
        &namespace,
        &ApiResource::from_gvk(&kind),
    );
    let what = format!("read Machine {namespace}/{}", machine.name);
    let found = match call(what.clone(), machines.get_opt(&machine.name)).await {
        Ok(found) => found,
        // Not to be had here, and trying again does not change it: a Machine of a management cluster, say.
        Err(error) if error.is_refused() => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    let node = found
        .as_ref()
        .and_then(|m| m.data["status"]["nodeRef"]["name"].as_str());
    Ok(node.map(str::to_owned).ok_or_else(|| {
        format!(
            "Machine {namespace}/{} names no node in status.nodeRef",
            machine.name
        )
    }))
}

#[cfg(test)]
#[path = "dereference_tests.rs"]
mod tests;
