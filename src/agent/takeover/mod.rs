//! Declares fenced peers dead when the controller asks for it, so that others get their locks at once.
//!
//! The task is believed in nothing: the request is read from the API server ([`attested`]), and sanlock is asked for that host and generation
//! ([`declare`]). One task at a time, sanlock's part on a thread of its own that is left behind when its time is over: of what a fence of this node
//! needs it holds nothing (S3). What came of it is read back (S5). Nothing is remembered: whoever comes after a kill finds in sanlock what was done.

mod attested;
mod declare;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::declare::Outcome;
use super::observer::Observer;
use super::report::cut;
use crate::api::takeover::{DeclareDead, DeclareDeadResult, DeclaredDead, MOST_TASKS};
use crate::api::{NodeStorage, StorageFenceRequest};
use crate::fence::Lockspace;
use crate::host::Host;
use crate::kubernetes::apply::call;
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::watch::{LONG_WATCH_SECONDS, Seen, watch as follow};

/// Until a task that was refused is looked at again: each look asks the API server.
const REFUSED: Duration = Duration::from_mins(1);
/// On top of what sanlock itself may take: until its answers are read.
const ANSWERS: Duration = Duration::from_secs(10);

/// Begins to work; what comes of the tasks comes out of the receiver. Two clients: one to watch with, one for calls.
pub fn start(
    [watcher, client]: [Client; 2],
    node_name: &str,
    host: Host,
    observer: &Observer,
) -> (
    [AbortOnDropHandle<()>; 2],
    watch::Receiver<Vec<DeclaredDead>>,
) {
    let (tell, told) = watch::channel(Vec::new());
    let (ask, asked) = watch::channel(Vec::new());
    let peer = Peer {
        client,
        host,
        observer: observer.clone(),
        tell,
    };
    let watching = tasks(watcher, node_name.to_owned(), ask);
    let handles = [tokio::spawn(watching), tokio::spawn(peer.run(asked))];
    (handles.map(AbortOnDropHandle::new), told)
}

/// Tells of the tasks in the node's own NodeStorage, for ever.
async fn tasks(client: Client, node_name: String, tell: watch::Sender<Vec<DeclareDead>>) {
    let api: Api<DeserializeGuard<NodeStorage>> = Api::all(client);
    let config = Config::default()
        .timeout(LONG_WATCH_SECONDS)
        .fields(&format!("metadata.name={node_name}"));
    let mut seen = std::pin::pin!(follow(api, config, Backoff::agent()));
    while let Some(event) = seen.next().await {
        let tasks = match event {
            Seen::Is(storage, _) => storage.spec.declare_dead,
            Seen::Gone(_) => Vec::new(),
            Seen::Unreadable(_, why) => {
                tracing::warn!(why, "the node's own NodeStorage is not understood");
                Vec::new()
            }
            // Those of before stay; each is compared with the API server before anything is done.
            Seen::Listing | Seen::Listed | Seen::Broken(_) => continue,
        };
        tell.send_if_modified(|known| {
            let news = *known != tasks;
            *known = tasks;
            news
        });
    }
}

/// What it needs.
struct Peer {
    /// To read requests with.
    client: Client,
    /// sanlock, and threads.
    host: Host,
    /// Which lockspace belongs to which volume group.
    observer: Observer,
    /// What came of the tasks, for the NodeStorage.
    tell: watch::Sender<Vec<DeclaredDead>>,
}

/// A task and what came of it so far.
struct Errand {
    task: DeclareDead,
    outcome: DeclaredDead,
    /// When it is tried again; None once it is done.
    due: Option<Instant>,
    backoff: Backoff,
}

impl Errand {
    fn new(task: DeclareDead) -> Self {
        let mut new = Self {
            outcome: DeclaredDead::default(),
            due: Some(Instant::now()),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            task,
        };
        new.note((
            DeclareDeadResult::InProgress,
            "what the fenced node attests is being compared".to_owned(),
        ));
        new
    }

    fn note(&mut self, (result, message): Outcome) {
        self.outcome = DeclaredDead {
            request_uid: self.task.request_uid.clone(),
            volume_group_uuid: self.task.volume_group_uuid.clone(),
            host_id: self.task.host_id,
            generation: self.task.generation,
            result,
            message: cut(&message, 1024),
        };
    }

    fn tried(&mut self, outcome: Outcome) {
        let (result, message) = &outcome;
        if self.outcome.result != *result || self.outcome.message != *message {
            tracing::info!(task = ?self.task, ?result, message, "a peer is to be declared dead");
        }
        // Refused is what only news can change, and news comes with a task of its own.
        let least = match result {
            DeclareDeadResult::Refused => REFUSED,
            _ => Duration::ZERO,
        };
        self.note(outcome);
        let wait = self.backoff.wait().max(least);
        self.due = (!self.outcome.done()).then(|| Instant::now() + wait);
    }
}

impl Peer {
    /// Works for ever, or until nobody tells of tasks any more.
    async fn run(self, mut asked: watch::Receiver<Vec<DeclareDead>>) {
        let mut errands: Vec<Errand> = Vec::new();
        let busy = Arc::new(AtomicBool::new(false));
        loop {
            let tasks = asked.borrow_and_update().clone();
            errands.retain(|e| tasks.contains(&e.task));
            let known: Vec<DeclareDead> = errands.iter().map(|e| e.task.clone()).collect();
            let new = tasks.into_iter().filter(|t| !known.contains(t));
            errands.extend(new.take(MOST_TASKS).map(Errand::new));
            self.publish(&errands);
            // Whoever has waited the longest; then it is seen again what is asked for.
            let due = |e: &&mut Errand| e.due.is_some_and(|due| due <= Instant::now());
            if let Some(errand) = errands.iter_mut().filter(due).min_by_key(|e| e.due) {
                let outcome = self.attempt(&errand.task, &busy).await;
                errand.tried(outcome);
                continue;
            }
            let next = errands.iter().filter_map(|e| e.due).min();
            let pause = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = asked.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    fn publish(&self, errands: &[Errand]) {
        let now: Vec<DeclaredDead> = errands.iter().map(|e| e.outcome.clone()).collect();
        self.tell.send_if_modified(|told| {
            let news = *told != now;
            *told = now;
            news
        });
    }

    async fn attempt(&self, task: &DeclareDead, busy: &Arc<AtomicBool>) -> Outcome {
        let failed = |why: String| (DeclareDeadResult::Failed, why);
        let own = match self.place(task) {
            Ok(own) => own,
            Err(outcome) => return outcome,
        };
        // Last, so that it is of now.
        let requests: Api<StorageFenceRequest> = Api::all(self.client.clone());
        let what = format!("read request {}", task.request);
        let request = match call(what, requests.get_opt(&task.request)).await {
            Ok(request) => request,
            Err(error) => return failed(error.to_string()),
        };
        if let Some(why) = attested::objection(task, request.as_ref()) {
            return (DeclareDeadResult::Refused, why);
        }
        self.declare(task, own, busy).await
    }

    fn place(&self, task: &DeclareDead) -> Result<Lockspace, Outcome> {
        let failed = |why: &str| (DeclareDeadResult::Failed, why.to_owned());
        if self.observer.hangs() {
            return Err(failed("a look at this node has not ended"));
        }
        match self.observer.latest().borrow().as_deref() {
            Some(Ok(inventory)) => declare::place(task, inventory),
            Some(Err(why)) => Err(failed(why)),
            None => Err(failed("this node was not looked at yet")),
        }
    }

    /// sanlock's part.
    async fn declare(&self, task: &DeclareDead, own: Lockspace, busy: &Arc<AtomicBool>) -> Outcome {
        let failed = |why: String| (DeclareDeadResult::Failed, why);
        if busy.swap(true, Ordering::AcqRel) {
            return failed("an earlier call to sanlock has not ended".to_owned());
        }
        let limit = declare::limit(&own) + ANSWERS;
        let (tell, told) = oneshot::channel();
        let (host, task, done) = (self.host.clone(), task.clone(), Arc::clone(busy));
        let work = move || {
            let outcome = declare::declare(&host, &task, &own);
            done.store(false, Ordering::Release);
            // Nobody waits any more: the next try finds what was done.
            let _ = tell.send(outcome);
        };
        if let Err(error) = self.host.system.spawn("declare dead", Box::new(work)) {
            busy.store(false, Ordering::Release);
            return failed(format!("the system has no thread to give: {error}"));
        }
        match tokio::time::timeout(limit, told).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => failed("the thread died".to_owned()),
            Err(_) => failed(format!(
                "sanlock did not answer within {} s. Look at its log (`journalctl -u sanlock`)",
                limit.as_secs()
            )),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
