//! The agent as a process: wires the parts together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::act::{Actor, Said};
use super::desk::{Desk, Ends, Tools};
use super::guard::{Guard, News};
use super::hook::{
    self,
    server::{Call, Server},
};
use super::journal::{self, Journal, Standing, Standings};
use super::metrics::Metrics;
use super::observer::Observer;
use super::options::Options;
use super::preflight;
use super::publish::Board;
use super::sentry::in_force::Learned;
use super::sentry::store::Store;
use super::sentry::{Outlook, Sentry, tasks};
use super::{affected, detect, executor, node_storage_task, takeover};
use crate::api::{AGENT_FIELD_MANAGER, StorageFenceRequest};
use crate::fence::preflight::Facts;
use crate::host::{self, Host};
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::client::{self as clients, Calls, Purpose, client};
use crate::kubernetes::events::Events;
use crate::kubernetes::watch::watch;
use crate::telemetry;

/// How long a fence may go on after SIGTERM. What is not done by then is completed by the next agent.
const FENCE_DRAIN: Duration = Duration::from_secs(6);
/// How long the last statuses and events may take to be written.
const STATUS_DRAIN: Duration = Duration::from_secs(2);

/// The agent ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No way to the API server.
    #[error(transparent)]
    Client(#[from] clients::Error),
    /// The journal is out of reach.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The kernel does not tell its boot ID.
    #[error("the boot ID cannot be read: {0}. Is /proc mounted?")]
    BootId(#[source] host::Error),
    /// Something that the system did not give.
    #[error("the system has no {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// The port is taken, or may not be had.
    #[error(
        "cannot serve health and metrics on {listen}: {source}. Choose another --health-listen"
    )]
    Http {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It has to be started anew.
    #[error(transparent)]
    Ends(#[from] Ends),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or a fence's thread died.
pub async fn run(options: Options) -> Result<(), Error> {
    let signals = |source| Error::System {
        what: "signals",
        source,
    };
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt()).map_err(signals)?;
    let _signals = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
    }));
    let paths = host::Paths::default();
    let agent = Agent::start(options, Host::real(&paths))?;
    detect::start(paths, agent.observer.clone()).map_err(|source| Error::System {
        what: "thread to give",
        source,
    })?;
    // A fence that was left half-done is going on by now: it needs no API server.
    let config = clients::config().await?;
    agent.run_until(&config, stop).await
}

fn signal(kind: tokio::signal::unix::SignalKind) -> std::io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(kind)
}

/// An agent that works already, and has yet to meet its API server.
pub struct Agent {
    options: Options,
    host: Host,
    desk: Desk,
    said: tokio::sync::mpsc::UnboundedReceiver<super::act::Said>,
    observer: Observer,
    board: Board,
    metrics: Metrics,
    listed: Arc<AtomicBool>,
    boot_id: String,
    calls: tokio::sync::mpsc::UnboundedReceiver<Call>,
    _hooks: Option<AbortOnDropHandle<()>>,
    standing: tokio::sync::watch::Receiver<Vec<Standing>>,
    facts: tokio::sync::watch::Receiver<Facts>,
    outlook: tokio::sync::watch::Receiver<Outlook>,
    tell_news: tokio::sync::mpsc::UnboundedSender<Learned>,
    to_record: tokio::sync::mpsc::UnboundedReceiver<StorageFenceRequest>,
    kill_hook: tokio::sync::watch::Receiver<Option<hook::install::State>>,
}

impl Agent {
    /// Opens the journal, completes what is in it, and looks at the node; opens the kill hook's socket, and guards the fences that stand. Within a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the boot ID or the journal cannot be read, or the system has no threads.
    pub fn start(options: Options, host: Host) -> Result<Self, Error> {
        let thread = |source| Error::System {
            what: "thread to give",
            source,
        };
        let boot_id = host.system.boot_id().map_err(Error::BootId)?;
        let (journal, left) = Journal::open(&options.state_directory, &boot_id)?;
        executor::give_back(&host, &journal);
        let standings = journal.standings();
        let metrics = Metrics::default();
        let (actor, said) = Actor::new(host.clone(), journal);
        let pause = Duration::from_secs(options.observe_seconds.into());
        let counts = metrics.clone();
        let took = move |took| counts.observed(took);
        let below = Some(standings.clone());
        let observer = Observer::start(host.clone(), below, pause, took).map_err(thread)?;
        let facts = preflight::start(&host, &host::Paths::default(), &options.state_directory)
            .map_err(thread)?;
        let standing = guard(&host, standings, actor.said()).map_err(thread)?;
        let kill_hook = hook::watch::watch(&options.kill_hook).map_err(thread)?;
        let (calls, hooks) = listen(&options.state_directory);
        let (board, listed) = (Board::default(), Arc::new(AtomicBool::new(false)));
        tracing::info!(
            node = options.node_name,
            boot_id,
            version = super::report::VERSION,
            "agent starts"
        );
        let store = Store::new(&options.state_directory, &boot_id);
        let (sentry, to_record) = Sentry::new(&options.node_name, store, host.system.monotonic());
        let outlook = sentry.outlook();
        let (tell_news, news) = tokio::sync::mpsc::unbounded_channel();
        let tools = Tools {
            sentry,
            news,
            node_name: options.node_name.clone(),
            boot_id: boot_id.clone(),
            host: host.clone(),
            actor,
            observer: observer.clone(),
            pause,
            board: board.clone(),
            metrics: metrics.clone(),
            listed: Arc::clone(&listed),
        };
        let desk = Desk::new(tools, left).map_err(thread)?;
        Ok(Self {
            options,
            host,
            desk,
            said,
            observer,
            board,
            metrics,
            listed,
            boot_id,
            calls,
            _hooks: hooks,
            standing,
            facts,
            outlook,
            tell_news,
            to_record,
            kill_hook,
        })
    }

    /// What it asks of the API server, as its metrics tell. Goes on counting.
    #[must_use]
    pub fn api_calls(&self) -> Calls {
        self.metrics.api_calls.clone()
    }

    fn affected(&self, client: &kube::Client) -> affected::Task {
        affected::Task {
            client: client.clone(),
            host: self.host.clone(),
            boot_id: self.boot_id.clone(),
            standing: self.standing.clone(),
            subjects: self.desk.subjects(),
            pause: Duration::from_secs(self.options.observe_seconds.into()),
            limit: affected::SEARCH,
            metrics: self.metrics.clone(),
        }
    }

    /// Meets the API server and works until `stop`.
    ///
    /// # Errors
    /// When no client can be made, the port is taken, or a fence's thread died.
    pub async fn run_until(
        mut self,
        config: &kube::Config,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let write = client(config, Purpose::Write, &self.metrics.api_calls)?;
        let (events, events_task) =
            Events::start(write.clone(), AGENT_FIELD_MANAGER, self.options.instance());
        self.desk.send_events(events);
        let requests: Api<DeserializeGuard<StorageFenceRequest>> =
            Api::all(client(config, Purpose::Watch, &self.metrics.api_calls)?);
        let selector = format!("spec.nodeName={}", self.options.node_name);
        let watch = watch(
            requests,
            watcher::Config::default().fields(&selector),
            Backoff::agent(),
        );

        let (watcher, node_name) = (
            client(config, Purpose::Watch, &self.metrics.api_calls)?,
            self.options.node_name.clone(),
        );
        let (counts, outlook) = (self.metrics.clone(), self.outlook.clone());
        let spawn = |task| AbortOnDropHandle::new(task);
        let _affected = spawn(tokio::spawn(self.affected(&write).run()));
        let (tell_sight, sight) = tokio::sync::watch::channel(None);
        let (_takeover, declared_dead) = takeover::start(
            [watcher.clone(), write.clone()],
            &node_name,
            self.host.clone(),
            &self.observer,
        );
        let _sentry = [
            spawn(tokio::spawn(tasks::policies(
                watcher.clone(),
                self.tell_news.clone(),
            ))),
            spawn(tokio::spawn(tasks::node(
                watcher,
                node_name.clone(),
                self.tell_news,
                tell_sight,
            ))),
            spawn(tokio::spawn(tasks::record(
                write.clone(),
                self.to_record,
                counts.clone(),
            ))),
            spawn(tokio::spawn(tasks::conditions(
                write.clone(),
                node_name,
                self.outlook,
                sight.clone(),
                counts,
            ))),
        ];
        let (board, metrics, publisher) = (self.board.clone(), self.metrics.clone(), write.clone());
        let _publisher = AbortOnDropHandle::new(tokio::spawn(async move {
            board.publish(publisher, &metrics).await;
        }));
        let task = node_storage_task::Task {
            client: write,
            node_name: self.options.node_name.clone(),
            pod: self.options.pod(),
            boot_id: self.boot_id.clone(),
            host: self.host,
            observer: self.observer.clone(),
            standing: self.standing,
            outlook,
            sight,
            kill_hook: self.kill_hook,
            facts: self.facts,
            declared_dead,
            metrics: self.metrics.clone(),
        };
        let _node_storage = AbortOnDropHandle::new(tokio::spawn(task.run()));
        let http = serve(
            self.options.health_listen,
            &self.metrics,
            self.observer.clone(),
            self.listed.clone(),
        );

        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(FENCE_DRAIN).await;
        };
        tokio::select! {
            result = self.desk.work(watch, self.said, self.calls, stop.clone()) => result?,
            error = http => return Err(error),
            () = drained => tracing::warn!("a fence is going on; the next agent completes it"),
        }
        // Nothing is told any more; what was told may be sent.
        drop(self.desk);
        let written = async {
            while !self.board.settled() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = events_task.await;
        };
        if tokio::time::timeout(STATUS_DRAIN, written).await.is_err() {
            tracing::warn!("not every status and event was written; the next agent does that");
        }
        Ok(())
    }
}

/// Guards the fences that stand, on a thread of its own for as long as the process lives. What stands comes out of the receiver.
fn guard(
    host: &Host,
    standings: Standings,
    said: tokio::sync::mpsc::UnboundedSender<Said>,
) -> std::io::Result<tokio::sync::watch::Receiver<Vec<Standing>>> {
    let (tell, standing) = tokio::sync::watch::channel(Vec::new());
    let tell = move |news: Option<News>, now: &[Standing]| {
        if let Some(news) = news {
            // Nobody listens any more only when the process ends.
            let _ = said.send(Said::Noticed(news));
        }
        tell.send_if_modified(|before| {
            let modified = before != now;
            if modified {
                *before = now.to_vec();
            }
            modified
        });
    };
    let guard = Guard::new(host.clone(), standings, Box::new(tell));
    std::thread::Builder::new()
        .name("guard".into())
        .stack_size(256 * 1024)
        .spawn(move || guard.run(|| false))?;
    Ok(standing)
}

/// Opens the socket on which kill hooks hand over. Without it they fence by themselves.
fn listen(
    directory: &std::path::Path,
) -> (
    tokio::sync::mpsc::UnboundedReceiver<Call>,
    Option<AbortOnDropHandle<()>>,
) {
    let (tell, calls) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::bind(directory).inspect_err(|error| {
        tracing::warn!(%error, directory = %directory.display(), "no socket for the kill hook: it fences by itself if it is called");
    });
    let task = server
        .ok()
        .map(|server| AbortOnDropHandle::new(tokio::spawn(server.serve(tell))));
    (calls, task)
}

async fn serve(
    listen: SocketAddr,
    metrics: &Metrics,
    observer: Observer,
    listed: Arc<AtomicBool>,
) -> Error {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let ready = move || {
        if observer.latest().borrow().is_none() || observer.hangs() {
            return Err("the node does not answer: a look at device mapper and the lock manager has not ended".to_owned());
        }
        if !listed.load(Ordering::Relaxed) {
            return Err(
                "the requests were not listed yet: is the API server up, are the CRDs installed, and may this service account watch \
                 storagefencerequests?"
                    .to_owned(),
            );
        }
        Ok(())
    };
    match telemetry::serve(listen, registry, ready, || {}).await {
        Ok(()) => Error::Http {
            listen,
            source: std::io::Error::other("the server ended by itself"),
        },
        Err(source) => Error::Http { listen, source },
    }
}
