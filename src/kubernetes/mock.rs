//! An API server for unit tests: a function from calls to answers.

use std::sync::Arc;

use axum::http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub body: Value,
}

/// A client of it. An answer is an HTTP status and a body.
pub fn client(answer: impl Fn(Call) -> (u16, Value) + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let (status, body) = answer(Call {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            });
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            let response = Response::builder().status(status).body(body).unwrap();
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}
