//! Whether what a policy has done beyond the fence has to wait: eviction and take-over both ask here (S9). The fence never does.
//!
//! Only a record of a policy's fence is limited. What a person asked for by name, they meant; and a node-health controller has limits of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::facts::all_paths_gone;
use super::watches::Caches;
use crate::api::policy::{self, Triggers, selects_node, selects_volume_group};
use crate::api::record::{annotation, is_record};
use crate::api::{NodeStorageStatus, StorageFencePolicySpec, StorageFenceRequest};
use crate::fence::limits::{Count, Limit, Reached, reached};

/// Nodes are counted anew after this time: every request of a policy asks, and there may be as many as nodes.
const COUNTED_FOR: Duration = Duration::from_secs(1);

/// What a policy's limit says now, in words; None: nothing has to wait.
type Answer = Option<String>;

/// Limits, with what was counted a moment ago. By name of the policy.
#[derive(Debug, Default)]
pub struct Limits(Mutex<HashMap<String, (Instant, Answer)>>);

impl Limits {
    /// Why what is gated has to wait for a request: with numbers, and what to do. None: it need not.
    #[must_use]
    pub fn held_back(&self, request: &StorageFenceRequest, caches: &Caches) -> Answer {
        let name = limited_by(request)?;
        let now = Instant::now();
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|_, (at, _)| now.saturating_duration_since(*at) < COUNTED_FOR);
        if let Some((_, answer)) = counted.get(name) {
            return answer.clone();
        }
        let answer = judge(name, &spec_of(name, caches), caches);
        counted.insert(name.to_owned(), (now, answer.clone()));
        answer
    }
}

/// Name of the policy whose limit holds for a request. None: it is not limited.
#[must_use]
pub fn limited_by(request: &StorageFenceRequest) -> Option<&str> {
    let policy = request.annotations().get(annotation::POLICY);
    Some(policy?.as_str()).filter(|_| is_record(request))
}

/// A policy that is gone left its records behind: they are limited as one would be that says nothing and means everything.
fn spec_of(name: &str, caches: &Caches) -> StorageFencePolicySpec {
    let stored = caches.policies.get(&ObjectRef::new(name));
    let known = stored.and_then(|p| p.0.as_ref().ok().map(|p| p.spec.clone()));
    known.unwrap_or_else(|| StorageFencePolicySpec {
        priority: 0,
        node_selector: LabelSelector::default(),
        volume_groups: policy::VolumeGroupSelector::default(),
        triggers: Triggers::default(),
        response: policy::Response::default(),
        request: policy::RequestSettings::default(),
        limits: policy::Limits::default(),
        dry_run: false,
        record_history_limit: policy::RECORD_HISTORY_LIMIT,
    })
}

fn judge(name: &str, spec: &StorageFencePolicySpec, caches: &Caches) -> Answer {
    let counted = || -> Result<Option<Reached>, String> {
        let limit = limit(spec)?;
        let mut count = Count::default();
        for node in caches.nodes.state() {
            let Some(storage) = caches.storages.get(&ObjectRef::new(&node.name_any())) else {
                continue;
            };
            let storage = storage.0.as_ref().ok().and_then(|s| s.status.as_ref());
            if let Some(storage) = storage
                && let Some(lost) = is_lost(spec, node.labels(), storage)?
            {
                count.nodes += 1;
                count.lost += usize::from(lost);
            }
        }
        Ok(reached(limit, count))
    };
    match counted() {
        Ok(None) => None,
        Ok(Some(reached)) => Some(format!(
            "the limit of policy {name} is reached: {reached}. There may be nowhere to go. It goes on by itself when fewer are lost; to have it go \
             on now, raise limits.maxFencedNodes (kubectl edit sfp {name})"
        )),
        // Whoever made that wanted some limit.
        Err(why) => Some(format!(
            "policy {name} cannot be understood: {why}. It goes on when that is corrected (kubectl edit sfp {name})"
        )),
    }
}

fn limit(spec: &StorageFencePolicySpec) -> Result<Limit, String> {
    let text = match &spec.limits.max_fenced_nodes {
        Some(IntOrString::Int(n)) => n.to_string(),
        Some(IntOrString::String(text)) => text.clone(),
        None => policy::MAX_FENCED_NODES.to_owned(),
    };
    Limit::parse(&text).map_err(|e| format!("its limits.maxFencedNodes makes no sense: {e}"))
}

/// Whether a node is lost to a policy: a volume group that the policy means stands fenced there, or has lost all its paths. The latter is about to be
/// fenced; it is seen as soon as the paths go, so that the first of many does not look like the only one. None: it has no such volume group.
///
/// # Errors
/// When the policy's selector makes no sense.
pub fn is_lost(
    spec: &StorageFencePolicySpec,
    labels: &BTreeMap<String, String>,
    storage: &NodeStorageStatus,
) -> Result<Option<bool>, String> {
    if !selects_node(spec, labels)? {
        return Ok(None);
    }
    let meant = |name: &str| selects_volume_group(spec, name);
    let groups = || storage.volume_groups.iter().filter(|g| meant(&g.name));
    let fenced =
        groups().any(|g| g.fenced) || storage.fences.iter().any(|f| meant(&f.volume_group));
    let lost = fenced || groups().any(|g| g.shared && all_paths_gone(g));
    Ok((lost || groups().any(|g| g.shared)).then_some(lost))
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
