//! What a running process shows of itself: its log, and `/healthz`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

/// The log level makes no sense.
#[derive(Debug, thiserror::Error)]
#[error(
    "log level {level:?} is not understood: {why}. Use error, warn, info, debug or trace, or directives such as storage_fence=debug,kube=info"
)]
pub struct LogLevelError {
    /// What was given.
    pub level: String,
    /// What is wrong with it.
    pub why: String,
}

/// Logs to standard error, one JSON object a line: what collects a pod's output can read it.
///
/// # Errors
/// When the level makes no sense.
pub fn log_to_stderr(level: &str) -> Result<(), LogLevelError> {
    let filter = tracing_subscriber::EnvFilter::try_new(level).map_err(|error| LogLevelError {
        level: level.to_owned(),
        why: error.to_string(),
    })?;
    // Whoever calls a client logs its errors, with what they mean; the client's own line about each is one too many.
    let filter = match "kube_client::client::builder=off".parse() {
        Ok(directive) if !level.contains("kube") => filter.add_directive(directive),
        _ => filter,
    };
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// Before each request.
const REST: Duration = Duration::from_millis(1);

/// Serves until the task is dropped. `ready` says what is still missing.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    registry: Registry,
    ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    before_metrics: impl Fn() + Send + Sync + 'static,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tracing::info!(address = %listener.local_addr()?, "health and metrics are served");
    let registry = Arc::new(registry);
    let ready = Arc::new(ready);
    let before_metrics = Arc::new(before_metrics);
    let router = Router::new()
        // That this answers at all is what it says.
        .route("/healthz", get(async || "ok"))
        .route(
            "/readyz",
            get(move || {
                let ready = Arc::clone(&ready);
                async move {
                    match ready() {
                        Ok(()) => (StatusCode::OK, "ok".to_owned()),
                        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
                    }
                }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                let registry = Arc::clone(&registry);
                let before_metrics = Arc::clone(&before_metrics);
                async move {
                    before_metrics();
                    let mut text = String::new();
                    match prometheus_client::encoding::text::encode(&mut text, &registry) {
                        Ok(()) => (
                            [(
                                header::CONTENT_TYPE,
                                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                            )],
                            text,
                        )
                            .into_response(),
                        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                    }
                }
            }),
        );
    axum::serve(listener, in_turn(router)).await
}

/// One request at a time, with a rest before each: the thread may go before all other work of the node, and whoever asks without an end shall not
/// keep it there.
fn in_turn(router: Router) -> Router {
    let turn = Arc::new(Semaphore::new(1));
    router.layer(from_fn(move |request: Request, next: Next| {
        let turn = Arc::clone(&turn);
        async move {
            let _turn = turn.acquire().await;
            tokio::time::sleep(REST).await;
            next.run(request).await
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn whoever_asks_without_an_end_does_not_keep_it_from_resting() {
        let router = in_turn(Router::new().route("/", get(async || "ok")));
        let ask = |_| router.clone().oneshot(Request::new(Body::empty()));
        let began = Instant::now();
        let answers = futures::future::join_all((0..200).map(ask)).await;
        let took = began.elapsed();
        assert!(
            answers
                .iter()
                .flatten()
                .all(|a| a.status() == StatusCode::OK)
        );
        assert!(took >= REST * 200, "{took:?}");
    }
}
