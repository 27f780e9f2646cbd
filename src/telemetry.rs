//! What a running process shows of itself: its log, and `/healthz`, `/readyz`, `/metrics`.

pub mod lines;
pub mod panics;

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
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use lines::{Lines, Written};

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

/// Logs to standard error, one JSON object a line: what collects a pod's output can read it, and is not waited for. Until what is returned goes.
///
/// # Errors
/// When the level makes no sense.
pub fn log_to_stderr(level: &str) -> Result<Written, LogLevelError> {
    let filter = filter(level)?;
    let (to, written) = Lines::to_stderr();
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(move || to.clone());
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .init();
    panics::told_by(|what| tracing::error!("{what}"));
    Ok(written)
}

/// What is logged at that level. A word that is no level would be taken for a part of the program, and all others were silent.
fn filter(level: &str) -> Result<Targets, LogLevelError> {
    let refused = |why: String| LogLevelError {
        level: level.to_owned(),
        why,
    };
    let mut words = level.split(',').map(str::trim);
    if let Some(word) = words.find(|w| !w.contains('=') && w.parse::<LevelFilter>().is_err()) {
        return Err(refused(format!("{word:?} is no level")));
    }
    let filter: Targets = level
        .parse()
        .map_err(|error: ParseError| refused(error.to_string()))?;
    // Whoever calls a client logs its errors, with what they mean; the client's own line about each is one too many.
    Ok(if level.contains("kube") {
        filter
    } else {
        filter.with_target("kube_client::client::builder", LevelFilter::OFF)
    })
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

    #[test]
    fn a_level_is_understood_or_refused() {
        let logs = |level: &str, target: &str, at: tracing::Level| {
            let filter = filter(level).expect("a level");
            filter.would_enable(target, &at)
        };
        let client = "kube_client::client::builder";
        for level in ["info", "INFO", "3", "info,storage_fence=debug"] {
            assert!(logs(level, "storage_fence::agent", tracing::Level::INFO));
            assert!(!logs(level, "kube_runtime", tracing::Level::DEBUG));
            assert!(!logs(level, client, tracing::Level::ERROR));
        }
        let debug = "info,storage_fence=debug";
        assert!(logs(debug, "storage_fence::agent", tracing::Level::DEBUG));
        assert!(logs("info,kube=info", client, tracing::Level::ERROR));
        for level in ["inf", "info, debugg", "storage_fence", "storage_fence=loud"] {
            let error = filter(level).expect_err("no level").to_string();
            assert!(error.contains("Use error, warn"), "{error}");
        }
    }

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
