//! Server-side apply, and the one way to make a call.

use std::fmt::Debug;
use std::time::Duration;

use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// How long one whole call may take.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A call to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not end in time.
    #[error("{what}: the API server did not answer within {limit:?}")]
    TimedOut {
        /// What was tried.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// It was answered with an error, or not at all.
    #[error("{what}: {source}")]
    Call {
        /// What was tried.
        what: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// Short form.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::TimedOut { .. } => None,
        }
    }

    /// Whether the object is not there (404).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the object exists already, or another of the same name took its place (409).
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether the API server understood the call and will not have it (400, 413, 422): trying it again unchanged is in vain.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self.code(), Some(400 | 413 | 422))
    }

    /// Whether trying it again cannot help: it is invalid, forbidden, or there is no such thing.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.is_invalid() || self.is_not_found() || self.is_forbidden()
    }

    /// Whether the API server says that we may not (403).
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// One word for metrics.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match (self, self.code()) {
            (Self::TimedOut { .. }, _) => "timeout",
            (_, Some(404)) => "not-found",
            (_, Some(409)) => "conflict",
            (_, Some(401 | 403)) => "forbidden",
            (_, Some(429)) => "throttled",
            (_, Some(400..=499)) => "invalid",
            (_, Some(_)) => "server",
            (_, None) => "connection",
        }
    }
}

/// Makes one call, at most [`CALL_LIMIT`] long. `what` says what it is good for, for the error: `write the status of request a`.
///
/// # Errors
/// What the API server said, or that it said nothing in time.
pub async fn call<T>(
    what: impl Into<String>,
    call: impl Future<Output = std::result::Result<T, kube::Error>>,
) -> Result<T> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Call {
            what: what.into(),
            source: Box::new(source),
        }),
        Err(_) => Err(Error::TimedOut {
            what: what.into(),
            limit: CALL_LIMIT,
        }),
    }
}

/// Which object, and on whose behalf.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Name of the object.
    pub name: &'a str,
    /// UID of the object that is meant. With it, an object that was deleted and made again under the same name is left alone (409).
    pub uid: Option<&'a str>,
    /// Field manager: one for each role that writes.
    pub manager: &'a str,
}

/// Makes or changes an object to hold `content` (`metadata` without the name, `spec`, whatever the manager answers for).
///
/// # Errors
/// What the API server said.
pub async fn apply<K>(api: &Api<K>, target: Target<'_>, content: &impl Serialize) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let what = format!("apply {} {}", K::kind(&()), target.name);
    let body = body::<K>(target, serde_json::to_value(content), &what)?;
    let (params, patch) = (
        PatchParams::apply(target.manager).force(),
        Patch::Apply(&body),
    );
    call(what, api.patch(target.name, &params, &patch)).await
}

/// Makes `status` the manager's whole part of the object's status: what it wrote earlier and does not name now goes away, others' fields stay.
///
/// # Errors
/// What the API server said: 404 when the object is gone, 409 when another of the same name took its place.
pub async fn apply_status<K>(api: &Api<K>, target: Target<'_>, status: &impl Serialize) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let what = format!("write the status of {} {}", K::kind(&()), target.name);
    let content = serde_json::to_value(status).map(|status| json!({ "status": status }));
    let body = body::<K>(target, content, &what)?;
    // The fields are ours alone: whoever else wrote them is wrong.
    let (params, patch) = (
        PatchParams::apply(target.manager).force(),
        Patch::Apply(&body),
    );
    call(what, api.patch_status(target.name, &params, &patch)).await
}

/// The same, unless the status holds that already (a write that changes nothing still costs the API server, and comes back as an event).
/// Returns whether it wrote.
///
/// # Errors
/// As [`apply_status`].
pub async fn apply_status_if_changed<K, P>(
    api: &Api<K>,
    target: Target<'_>,
    current: Option<&P>,
    wanted: &P,
) -> Result<bool>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    P: Serialize + PartialEq,
{
    if current == Some(wanted) {
        return Ok(false);
    }
    apply_status(api, target, wanted).await.map(|_| true)
}

fn body<K: Resource<DynamicType = ()>>(
    target: Target<'_>,
    content: std::result::Result<serde_json::Value, serde_json::Error>,
    what: &str,
) -> Result<serde_json::Value> {
    let mut body = content.map_err(|e| Error::Call {
        what: what.to_owned(),
        source: Box::new(kube::Error::SerdeError(e)),
    })?;
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    body["metadata"]["name"] = json!(target.name);
    if let Some(uid) = target.uid {
        body["metadata"]["uid"] = json!(uid);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::StorageFenceRequest;

    #[test]
    fn the_body_names_kind_object_and_uid_and_keeps_the_content() {
        let target = Target {
            name: "a",
            uid: Some("u"),
            manager: "m",
        };
        let content =
            Ok(json!({"metadata": {"labels": {"x": "y"}}, "status": {"phase": "Fenced"}}));
        assert_eq!(
            body::<StorageFenceRequest>(target, content, "test").unwrap(),
            json!({
                "apiVersion": "storagefence.io/v1alpha1",
                "kind": "StorageFenceRequest",
                "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}},
                "status": {"phase": "Fenced"},
            })
        );
    }
}
