//! Records: requests that a node's agent makes of the fences that it began by itself, as a policy had it do. Made afterwards, and from then on
//! requests like any other. Agent and controller both ask here what is one.

use super::condition::find;
use super::request::{condition_type, reason};
use super::{ConditionStatus, StorageFenceRequest};

/// Annotations and the label of a record.
pub mod annotation {
    /// Name of the policy.
    pub const POLICY: &str = "storagefence.io/policy";
    /// What set it off.
    pub const TRIGGER: &str = "storagefence.io/trigger";
    /// Boot ID of the node.
    pub const BOOT_ID: &str = "storagefence.io/boot-id";
    /// When, in seconds since boot.
    pub const TRIGGERED_AT: &str = "storagefence.io/triggered-at-uptime-seconds";
    /// The deleted remediation (NAMESPACE/NAME UID) for which the controller has set its fenceState to Unfenced. Once for each: whoever sets it
    /// back is not contradicted.
    pub const UNFENCED_FOR: &str = "storagefence.io/unfenced-for";
    /// Label: the agent made it.
    pub const RECORDED_BY: &str = "storagefence.io/recorded-by";
    /// Value of that label.
    pub const AGENT: &str = "agent";
}

/// What the names of records begin with.
pub const NAME_PREFIX: &str = "auto-";

/// Whether an agent made it. A copy that somebody made under a name of their own is theirs.
#[must_use]
pub fn is_record(request: &StorageFenceRequest) -> bool {
    let labels = request.metadata.labels.as_ref();
    let by = labels.and_then(|l| l.get(annotation::RECORDED_BY));
    let name = request.metadata.name.as_deref().unwrap_or_default();
    by.is_some_and(|by| by == annotation::AGENT) && name.starts_with(NAME_PREFIX)
}

/// Whether the agent has said, of the spec as it is, that nothing stands fenced for it any more and that nothing will be: its storage was given
/// back, the node was restarted since, or nothing was touched in the first place.
#[must_use]
pub fn has_ended(request: &StorageFenceRequest) -> bool {
    let conditions = request.status.as_ref().map(|s| s.conditions.as_slice());
    let Some(fenced) = conditions.and_then(|c| find(c, condition_type::FENCED)) else {
        return false;
    };
    // Whatever the spec wants: one that was late wants a fence, and is no order to. Who wants one again has edited it.
    let given_back = fenced.reason == reason::UNFENCED;
    let planned = fenced.reason == reason::DRY_RUN && request.spec.dry_run;
    fenced.status == ConditionStatus::False
        && fenced.observed_generation.is_some()
        && fenced.observed_generation == request.metadata.generation
        && (given_back || planned || fenced.reason == reason::NODE_RESTARTED)
}

/// Whether a fence was begun for a request's spec in an earlier life of the node, which runs this boot now. The restart ended it, and whatever it was
/// an answer to: the node that came back is not to be cut off once more by what was asked of the one that failed. Whoever wants that edits the
/// request, or makes another.
#[must_use]
pub fn ended_by_restart(request: &StorageFenceRequest, boot_id: &str) -> bool {
    let generation = request.metadata.generation.unwrap_or_default();
    let node = request.status.as_ref().and_then(|s| s.node.as_ref());
    let begun = node.is_some_and(|n| {
        n.boot_id != boot_id && n.observed_generation == generation && n.started_at.is_some()
    });
    // A record speaks of the boot that it was made in, even before its status does.
    let annotations = request.metadata.annotations.as_ref();
    let recorded = annotations.and_then(|a| a.get(annotation::BOOT_ID));
    let labels = request.metadata.labels.as_ref();
    let is_record = labels.is_some_and(|l| l.contains_key(annotation::RECORDED_BY));
    let of_another = is_record && node.is_none() && recorded.is_some_and(|b| b != boot_id);
    begun || of_another
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(
        status: &str,
        said: &str,
        generation: i64,
        spec: &[(&str, &str)],
    ) -> StorageFenceRequest {
        let mut object = json!({
            "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
            "metadata": { "name": "auto-n1-1", "generation": 2, "labels": { annotation::RECORDED_BY: "agent" } },
            "spec": { "nodeName": "n1" },
            "status": { "conditions": [{
                "type": "Fenced", "status": status, "reason": said, "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        });
        for (key, value) in spec {
            object["spec"][*key] = if *value == "true" {
                json!(true)
            } else {
                json!(value)
            };
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_record_is_what_an_agent_made() {
        let made = record("True", "Proven", 2, &[]);
        assert!(is_record(&made));
        let mut copied = made.clone();
        copied.metadata.name = Some("mine".into());
        assert!(!is_record(&copied), "somebody copied it");
        let mut other = made;
        other.metadata.labels = None;
        assert!(!is_record(&other), "somebody liked the name");
    }

    #[test]
    fn it_has_ended_when_the_agent_says_so_of_the_spec_as_it_is() {
        let back: &[(&str, &str)] = &[("fenceState", "Unfenced")];
        let dry: &[(&str, &str)] = &[("dryRun", "true")];
        for (status, said, generation, spec, ended) in [
            ("False", "Unfenced", 2, back, true),
            ("False", "NodeRestarted", 2, &[][..], true),
            ("False", "DryRun", 2, dry, true),
            // It was late: the storage had been given back before.
            ("False", "Unfenced", 2, &[][..], true),
            // It is wanted fenced again, or the agent has not seen the spec as it is.
            ("False", "Unfenced", 1, &[][..], false),
            ("False", "Unfenced", 1, back, false),
            ("False", "NodeRestarted", 1, &[][..], false),
            ("False", "DryRun", 2, &[][..], false),
            // It stands, or may.
            ("True", "Proven", 2, back, false),
            ("True", "UnfenceWaiting", 2, back, false),
            ("True", "Unfenced", 2, &[][..], false),
            ("Unknown", "Unfencing", 2, back, false),
            ("Unknown", "InProgress", 2, &[][..], false),
            ("False", "NotProven", 2, back, false),
        ] {
            let record = record(status, said, generation, spec);
            assert_eq!(
                has_ended(&record),
                ended,
                "{status} {said} {generation} {spec:?}"
            );
        }
    }
}
