//! Clients of the API server: one a purpose, each with its own time limits.
//!
//! kube 5 sets no limit on how long an answer may take, and by itself retries an overloaded server for minutes. Neither suits a
//! process that has something better to do than to wait.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tower::layer::layer_fn;
use tower::util::MapFutureLayer;
use tower::{Service, ServiceBuilder};

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Lists and watches. Their callers back off by themselves.
    Watch,
    /// Everything that a reconciler or an agent writes or reads once.
    Write,
    /// Evictions: one that is turned away is told, and tried again when there is a reason to.
    Evict,
    /// The leader's lease: an answer that comes late is worse than none.
    Lease,
}

impl Purpose {
    const fn word(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Write => "write",
            Self::Evict => "evict",
            Self::Lease => "lease",
        }
    }
}

/// What was asked of the API server. Every label has a bounded set of values.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    /// What the client is for.
    purpose: &'static str,
    /// Of HTTP.
    method: String,
    /// HTTP's status, or `none`: no answer.
    code: String,
}

/// Counts what a process asks of the API server, and how that is answered. What a client repeats by itself is one call.
#[derive(Clone, Debug, Default)]
pub struct Calls(Family<CallLabels, Counter<u64, AtomicU64>>);

impl Calls {
    /// As `api_calls`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "api_calls",
            "Calls of the API server by purpose, method and status; a watch is one when it is opened, and `none` is no answer",
            self.0.clone(),
        );
    }
}

/// Counts the calls that go through it.
#[derive(Clone)]
struct Counting<S> {
    inner: S,
    purpose: Purpose,
    calls: Calls,
}

impl<S, A, B> Service<http::Request<A>> for Counting<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let (purpose, method) = (self.purpose.word(), request.method().to_string());
        let calls = self.calls.clone();
        let count = move |answer: &Result<S::Response, S::Error>| {
            let code = answer.as_ref().map(|a| a.status().as_u16().to_string());
            let labels = CallLabels {
                purpose,
                method,
                code: code.unwrap_or_else(|_| "none".to_owned()),
            };
            calls.0.get_or_create(&labels).inc();
        };
        self.inner.call(request).inspect(count).boxed()
    }
}

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No configuration was found.
    #[error(
        "found neither the service account of a pod nor a kubeconfig: {0}. Run in a cluster, or set KUBECONFIG"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The configuration does not work.
    #[error(
        "cannot make a client of the cluster's configuration: {0}. Check its certificates and URLs"
    )]
    Build(#[source] Box<kube::Error>),
    /// No answer in time.
    #[error("no answer from the API server within {0:?}. It may be down or out of reach")]
    Timeout(Duration),
}

/// Finds the cluster: a kubeconfig, or the pod's service account.
///
/// # Errors
/// When there is neither.
pub async fn config() -> Result<Config, Error> {
    // Only one provider is compiled in; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Config::infer()
        .await
        .map_err(|error| Error::Config(Box::new(error)))
}

/// Makes a client, whose calls are counted.
///
/// # Errors
/// When the configuration does not work.
pub fn client(config: &Config, purpose: Purpose, calls: &Calls) -> Result<Client, Error> {
    let mut config = config.clone();
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(Duration::from_secs(10));
    // Only a write can wait for an overloaded server, and it does so within its own limit.
    config.default_retry = purpose == Purpose::Write;
    let limit = match purpose {
        Purpose::Watch => Duration::from_secs(20),
        Purpose::Write | Purpose::Evict => Duration::from_secs(10),
        Purpose::Lease => Duration::from_secs(3),
    };
    // The limit below is for the answer to begin; this one is for a body that stops half-way. A watch may be silent for its whole length.
    config.read_timeout = Some(match purpose {
        Purpose::Watch => Duration::from_secs(305),
        Purpose::Write | Purpose::Evict | Purpose::Lease => limit,
    });
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config).map_err(|e| Error::Build(Box::new(e)))?;
    let calls = calls.clone();
    let layer = ServiceBuilder::new()
        .layer(layer_fn(move |inner| Counting {
            inner,
            purpose,
            calls: calls.clone(),
        }))
        .layer(MapFutureLayer::new(move |answer| within(limit, answer)))
        .into_inner();
    Ok(builder.with_layer(&layer).build())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or_else(|_| Err(Error::Timeout(limit).into()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::Api;

    use super::*;

    #[tokio::test]
    async fn a_server_that_takes_the_connection_and_says_nothing_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let held = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                held.push(connection);
            }
        });
        let config = Config::new(url.parse().unwrap());
        let calls = Calls::default();
        let client = client(&config, Purpose::Lease, &calls).unwrap();
        let began = std::time::Instant::now();
        let error = Api::<Node>::all(client).get("n1").await.unwrap_err();
        assert!(began.elapsed() >= Duration::from_secs(3), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
        held.abort();
        let mut registry = Registry::default();
        calls.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let counted = "api_calls_total{purpose=\"lease\",method=\"GET\",code=\"none\"} 1\n";
        assert!(text.contains(counted), "{text}");
    }
}
