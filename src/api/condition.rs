//! Conditions, shaped as `metav1.Condition`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds, with evidence.
    True,
    /// It does not hold, with evidence.
    False,
    /// Nobody can tell at present.
    Unknown,
}

/// One observation about an object. Same fields and meaning as `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is being said, in CamelCase.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// Generation of the object that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the status last changed (RFC 3339).
    #[schemars(with = "k8s_openapi::apimachinery::pkg::apis::meta::v1::Time")]
    pub last_transition_time: Timestamp,
    /// Why, as one CamelCase word for programs.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// What happened, to what, and what to do next, for people.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// As the API server keeps a time, in whole seconds: what is finer would never compare equal to what it stored.
#[must_use]
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// Since when a condition has that status: since the stored one has it, or since now. A stored time that has not come yet is of a clock that was
/// wrong, or was set back since: whoever counts from it would wait until that time comes.
#[must_use]
pub fn since(stored: Option<&Condition>, status: ConditionStatus, now: Timestamp) -> Timestamp {
    let same = stored.filter(|s| s.status == status && s.last_transition_time <= now);
    same.map_or_else(|| whole_seconds(now), |s| s.last_transition_time)
}

/// Finds the condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Puts `new` in the place of the condition of the same type. The transition time of the old one is kept
/// while the status stays the same, so that `lastTransitionTime` means what it says.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time;
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_has_not_come_yet_is_not_counted_from() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let stored = |second| Condition {
            type_: "Ready".into(),
            status: ConditionStatus::False,
            observed_generation: None,
            last_transition_time: at(second),
            reason: "Test".into(),
            message: String::new(),
        };
        let now = at(100_000);
        for (second, since_then) in [
            (99_000, at(99_000)),
            (100_000, at(100_000)),
            // The clock was a day ahead when it was stored, or was set back by a day since.
            (186_400, now),
        ] {
            let stored = stored(second);
            assert_eq!(
                since(Some(&stored), ConditionStatus::False, now),
                since_then
            );
            assert_eq!(since(Some(&stored), ConditionStatus::True, now), now);
        }
        assert_eq!(since(None, ConditionStatus::True, now), now);
    }
}
