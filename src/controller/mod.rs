//! The controller: one folder a reconciled kind.
//!
//! It judges requests, brings the agent to nodes, and derives what people read. It is not in the way of a fence: the agent acts by itself.

mod census;
pub mod context;
pub mod eviction;
pub mod facts;
#[cfg(test)]
mod fixtures;
pub mod limits;
mod metrics;
pub mod node;
mod options;
pub mod policy;
pub mod remediation;
pub mod request;
pub mod takeover;
mod unreadable;
pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller::{Config, Controller, Error as RunError};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::context::{Context, Failures, Written};
use self::metrics::Metrics;
pub use self::options::Options;
use self::watches::{Caches, Trigger, Watches, nodes_for, references, requests_for};
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::client::{Purpose, client};
use crate::kubernetes::events::Events;
use crate::kubernetes::{client as clients, leader};
use crate::telemetry as http;

/// Name of the Lease.
pub const LEASE: &str = "storage-fence-controller";
/// Objects that are reconciled at a time.
const CONCURRENCY: u16 = 16;
/// Several changes of one object within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How long what is under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// The controller ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client.
    #[error(transparent)]
    Client(#[from] clients::Error),
    /// No signals.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The port is taken, or may not be had.
    #[error(
        "cannot serve health and metrics on {listen}: {source}. Choose another --health-listen"
    )]
    Http {
        /// The address.
        listen: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Leadership was lost.
    #[error(transparent)]
    Lost(#[from] leader::Lost),
    /// Something that runs for ever did not.
    #[error("{0} ended by itself: this is a bug. The process stops and is started anew")]
    Ended(&'static str),
}

/// Runs until SIGTERM or SIGINT, gives the lease back, and returns.
///
/// # Errors
/// When it cannot start, or when leadership is lost: the process must end then.
pub async fn run(options: Options) -> Result<(), Error> {
    let stop = CancellationToken::new();
    let mut signals = Signals::listen().map_err(Error::Signals)?;
    let on_signal = stop.clone();
    let _signals = AbortOnDropHandle::new(tokio::spawn(async move {
        signals.next().await;
        on_signal.cancel();
    }));
    let config = clients::config().await?;
    Box::pin(run_until(options, &config, stop)).await
}

/// Runs until `stop`.
///
/// # Errors
/// See [`run`].
pub async fn run_until(
    options: Options,
    config: &kube::Config,
    stop: CancellationToken,
) -> Result<(), Error> {
    let identity = options.identity();
    tracing::info!(identity, ?options, "controller starts");
    let metrics = Metrics::default();
    let watches = watches::start(
        &client(config, Purpose::Watch, &metrics.api_calls)?,
        &options.namespace,
        &options.agent_selector,
        Backoff::controller(),
        &metrics,
    );
    let caches = watches.caches.clone();
    let (leading_tx, leading) = watch::channel(false);
    let (events, events_task) = Events::start(
        client(config, Purpose::Write, &metrics.api_calls)?,
        crate::api::CONTROLLER_FIELD_MANAGER,
        &identity,
    );
    let context = Arc::new(Context {
        client: client(config, Purpose::Write, &metrics.api_calls)?,
        evictor: client(config, Purpose::Evict, &metrics.api_calls)?,
        settings: options.settings(),
        caches: caches.clone(),
        events,
        metrics: metrics.clone(),
        leading: leading.clone(),
        written: Written::default(),
        failures: Failures::default(),
        absences: node::absence::Absences::default(),
        boots: node::boot::Boots::default(),
        unreadable: unreadable::Told::default(),
        limits: limits::Limits::default(),
        rounds: eviction::rounds::Rounds::default(),
    });
    let election = leader::Election::new(&options.namespace, LEASE, &identity);
    // The lease is given back only when nothing is being written any more.
    let drained = CancellationToken::new();
    let election = leader::run(
        election,
        client(config, Purpose::Lease, &metrics.api_calls)?,
        leading_tx,
        drained.clone(),
    );
    let http = serve(&options, &caches, leading.clone(), metrics.clone());
    let bell = Arc::clone(&watches.bell.remediations);
    let watcher = client(config, Purpose::Watch, &metrics.api_calls)?;
    let remediations = remediation::Watch::start(&watcher, &bell, Backoff::controller(), &metrics);
    let remediations = remediation::run(Arc::clone(&context), remediations, bell, stop.clone());
    let remediations = AbortOnDropHandle::new(tokio::spawn(remediations));
    let controllers = Box::pin(reconcile(watches, context, leading, &metrics, stop.clone()));
    let work = async {
        controllers.await;
        if stop.is_cancelled() {
            let _ = tokio::time::timeout(DRAIN, remediations).await;
            // Dropping the context ended the queue of events.
            let _ = tokio::time::timeout(DRAIN, events_task).await;
            drained.cancel();
            // The election ends the whole.
            std::future::pending::<()>().await;
        }
        Error::Ended("a watch")
    };
    tokio::select! {
        error = work => Err(error),
        error = http => Err(error),
        ended = election => Ok(ended?),
    }
}

/// Runs all controllers until `stop`, or until something ends that should not.
async fn reconcile(
    watches: Watches,
    context: Arc<Context>,
    mut leading: watch::Receiver<bool>,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    let Watches {
        caches,
        bell,
        request_triggers,
        eviction_triggers,
        node_triggers,
        mut tasks,
    } = watches;
    let config = || {
        Config::default()
            .concurrency(CONCURRENCY)
            .debounce(DEBOUNCE)
    };
    let requests = Controller::for_stream(futures::stream::pending(), caches.requests.clone())
        .with_config(config())
        .reconcile_on(references(request_triggers, caches.clone(), requests_for))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            request::reconcile,
            |request, error, context| request::on_error(&request, error, &context),
            Arc::clone(&context),
        )
        .for_each(async |result| log(result));
    let evictions = Controller::for_stream(futures::stream::pending(), caches.requests.clone())
        .with_config(config())
        .reconcile_on(references(eviction_triggers, caches.clone(), requests_for))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            eviction::reconcile,
            |request, error, context| eviction::on_error(&request, error, &context),
            Arc::clone(&context),
        )
        .for_each(async |result| log(result));
    let policies = Box::pin(policy::run(Arc::clone(&context), bell.policies.clone()));
    let takeovers = Box::pin(takeover::run(Arc::clone(&context), bell.takeovers.clone()));
    let nodes = Controller::for_stream(futures::stream::pending(), caches.nodes.clone())
        .with_config(config())
        .reconcile_on(references(node_triggers, caches.clone(), nodes_for))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            node::reconcile,
            |node, error, context| node::on_error(&node, error, &context),
            context,
        )
        .for_each(async |result| log(result));
    let gauge = metrics.leading.clone();
    let leads = async {
        // Nothing is decided on caches that were never filled: an empty one would take every label away.
        caches.filled().await;
        loop {
            let leads = *leading.borrow_and_update();
            gauge.set(i64::from(leads));
            if leads {
                bell.ring(Trigger::All);
            }
            if leading.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let controllers = async {
        caches.filled().await;
        tokio::select! {
            _ = async { tokio::join!(requests, evictions, nodes) } => {}
            () = policies => {}
            () = takeovers => {}
        }
    };
    let after_stop = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = controllers => {}
        () = leads => {}
        () = after_stop => {}
        _ = tasks.join_next() => {}
    }
}

fn log<K: kube::Resource, E: std::error::Error + 'static>(
    result: Result<
        (
            kube::runtime::reflector::ObjectRef<K>,
            kube::runtime::controller::Action,
        ),
        RunError<E, kube::runtime::watcher::Error>,
    >,
) {
    match result {
        // The reconciler's errors were reported where they were classed; an object that went away meanwhile is no error.
        Ok(_) | Err(RunError::ReconcilerFailed(..) | RunError::ObjectNotFound(_)) => {}
        Err(error) => tracing::warn!(%error, "controller"),
    }
}

async fn serve(
    options: &Options,
    caches: &Caches,
    leading: watch::Receiver<bool>,
    metrics: Metrics,
) -> Error {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let filled = watch::Sender::new(false);
    let is_filled = filled.subscribe();
    let requests = caches.requests.clone();
    let served = http::serve(
        options.health_listen,
        registry,
        move || {
            if *is_filled.borrow() {
                Ok(())
            } else {
                Err("the caches are not filled yet: is the API server up, are the CRDs installed, and may this service account list \
                     storagefencerequests, storagefencepolicies, nodestorages, nodes, and pods of its namespace?"
                    .to_owned())
            }
        },
        move || {
            // Every replica could count; only one does, so that sums over replicas are right.
            if *leading.borrow() {
                let requests = requests.state();
                census::publish(requests.iter().filter_map(|r| r.0.as_ref().ok()), &metrics);
            } else {
                census::publish(std::iter::empty(), &metrics);
            }
        },
    );
    let filling = async {
        caches.filled().await;
        filled.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = served => match result {
            Ok(()) => Error::Ended("the health server"),
            Err(source) => Error::Http { listen: options.health_listen, source },
        },
        () = filling => Error::Ended("a cache"),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
