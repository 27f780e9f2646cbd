//! Objects that this version cannot read. One of them stops nobody else; and it is told on the object, since nobody looks into the
//! controller's log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};

use super::context::Context;
use crate::kubernetes::events::Happening;

/// An event is forgotten by the API server after an hour: it is told again after this time.
const AGAIN: Duration = Duration::from_mins(10);

/// What was told of which version of which object, by UID.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<String, (Option<String>, Instant)>>);

impl Told {
    /// Whether this is to be told now.
    fn is_news(&self, object: &ObjectMeta, now: Instant) -> bool {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, (_, at)| fresh(at));
        let uid = object.uid.clone().unwrap_or_default();
        let version = &object.resource_version;
        if told.get(&uid).is_some_and(|(told, _)| told == version) {
            return false;
        }
        told.insert(uid, (version.clone(), now));
        true
    }
}

/// Logs it and sends an event, unless `object` can be read or this was told of it lately.
pub fn report<K>(context: &Context, object: &DeserializeGuard<K>)
where
    K: Resource<DynamicType = ()>,
{
    let Err(unreadable) = &object.0 else { return };
    if !context
        .unreadable
        .is_news(&unreadable.metadata, Instant::now())
    {
        return;
    }
    let (kind, name, error) = (K::kind(&()), object.name_any(), &unreadable.error);
    tracing::error!(%kind, name, namespace = object.namespace(), error, "it cannot be read");
    let note = note(&kind, error);
    let happening = Happening {
        warning: true,
        reason: "Unreadable",
        action: "Reconcile",
        note: &note,
    };
    context.events.tell(object.object_ref(&()), &happening);
}

fn note(kind: &str, error: &str) -> String {
    format!(
        "this version of the operator cannot read the {kind}, so nothing is done about it: {error}. Correct or delete it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_told_once_and_again_before_the_event_is_forgotten() {
        let told = Told::default();
        let start = Instant::now();
        let news = |uid: &str, version: &str, minute| {
            let object = ObjectMeta {
                uid: Some(uid.into()),
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            };
            told.is_news(&object, start + Duration::from_mins(minute))
        };
        assert!(news("a", "1", 0) && news("b", "1", 0));
        assert!(!news("a", "1", 1) && !news("b", "1", 9));
        assert!(news("a", "2", 9), "somebody has tried to correct it");
        assert!(news("b", "1", 10));
        assert!(!news("a", "2", 10));
    }
}
