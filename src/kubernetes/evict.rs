//! Evictions, as `kubectl drain` makes them: PodDisruptionBudgets are asked by the API server itself.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::api::PostParams;
use kube::core::Status;
use kube::{Api, Client};

use super::apply::{Error, Result, call};

/// What the API server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod is being ended.
    Evicted,
    /// There is no such pod any more, or another has its name.
    Gone,
    /// A PodDisruptionBudget does not allow it now: its words.
    DisruptionBudget(String),
    /// The API server will not have it otherwise: its words. That is about this pod, and another may be had: KubeVirt's webhook says no with the
    /// code of an overloaded server.
    Refused(String),
}

/// Evicts exactly the pod with this UID. `client` must not try by itself again what an overloaded server turns away: a disruption budget says no with
/// the same code, and nobody would hear its reason.
///
/// # Errors
/// When the API server said nothing in time, or does not know who asks.
pub async fn evict(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<Outcome> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    // Not by kube's own call: what it writes as `delete_options` the API server does not read, and evicts whoever has that name by now.
    let eviction = Eviction {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteOptions::default()
        }),
    };
    let params = PostParams::default();
    let what = format!("evict pod {namespace}/{name}");
    let answer = pods.create_subresource::<_, Status>("eviction", name, &params, &eviction);
    match call(what, answer).await {
        Ok(_) => Ok(Outcome::Evicted),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Gone),
        Err(error) => match (budget(&error), error.class()) {
            (Some(words), _) => Ok(Outcome::DisruptionBudget(words)),
            (None, "connection" | "timeout") => Err(error),
            (None, _) => Ok(Outcome::Refused(error.to_string())),
        },
    }
}

/// A disruption budget's words. Being asked too much of, the API server answers with the same code and without them.
fn budget(error: &Error) -> Option<String> {
    let Error::Call { source, .. } = error else {
        return None;
    };
    let kube::Error::Api(status) = source.as_ref() else {
        return None;
    };
    let causes = status.details.iter().flat_map(|d| &d.causes);
    let mut of_budgets = causes.filter(|c| c.reason == "DisruptionBudget");
    let cause = of_budgets.next().filter(|_| status.code == 429)?;
    Some(if cause.message.is_empty() {
        status.message.clone()
    } else {
        cause.message.clone()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::mock;

    async fn asked(code: u16, answer: Value) -> (Result<Outcome>, mock::Call) {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let client = mock::client(move |call| {
            seen.lock().unwrap().push(call);
            (code, answer.clone())
        });
        let outcome = evict(&client, "shop", "web-0", "uid-1").await;
        let mut calls = std::mem::take(&mut *calls.lock().unwrap());
        assert_eq!(calls.len(), 1);
        (outcome, calls.remove(0))
    }

    fn failure(code: u16, more: &Value) -> Value {
        let mut status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no" });
        for (key, value) in more.as_object().unwrap() {
            status[key] = value.clone();
        }
        status
    }

    #[tokio::test]
    async fn the_pod_is_named_with_its_uid() {
        let done =
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201 });
        let (outcome, call) = asked(201, done).await;
        assert_eq!(outcome.unwrap(), Outcome::Evicted);
        assert_eq!(call.method, "POST");
        assert_eq!(call.path, "/api/v1/namespaces/shop/pods/web-0/eviction");
        assert_eq!(call.body["apiVersion"], "policy/v1");
        assert_eq!(call.body["kind"], "Eviction");
        assert_eq!(call.body["metadata"]["name"], "web-0");
        let meant = &call.body["deleteOptions"]["preconditions"]["uid"];
        assert_eq!(meant, "uid-1", "{}", call.body);
    }

    #[tokio::test]
    async fn what_the_api_server_says_is_told_apart() {
        let words = "The disruption budget web needs 2 healthy pods and has 2 currently";
        let causes = json!({ "details": { "causes": [{ "reason": "DisruptionBudget", "message": words }] } });
        let bare = json!({ "details": { "causes": [{ "reason": "DisruptionBudget" }] } });
        for (code, more, wanted) in [
            (404, json!({}), Outcome::Gone),
            (409, json!({}), Outcome::Gone),
            (429, causes, Outcome::DisruptionBudget(words.into())),
            (429, bare, Outcome::DisruptionBudget("no".into())),
        ] {
            let (outcome, _) = asked(code, failure(code, &more)).await;
            assert_eq!(outcome.unwrap(), wanted, "{code}");
        }
        // A webhook, or too many requests; more than one budget; no permission; a webhook again.
        for code in [429, 500, 403, 400] {
            let (outcome, _) = asked(code, failure(code, &json!({}))).await;
            let refused = matches!(&outcome, Ok(Outcome::Refused(words)) if words.contains("no"));
            assert!(refused, "{code}: {outcome:?}");
        }
    }
}
