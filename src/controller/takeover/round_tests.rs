//! A round as a whole, with an API server that does not take everything.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::plan::tests::{peer, pin, request, view};
use super::*;
use crate::api::NodeStorage;
use crate::controller::fixtures::{context_of, empty_caches};
use crate::kubernetes::mock::{self, Call};

/// What was called, and what came of it, in order: `tasks n2 403`, `TakenOver Expediting`.
type Log = Arc<Mutex<Vec<String>>>;

/// A controller whose tasks for a node are answered with that code.
fn controller(code: impl Fn(&str) -> u16 + Send + Sync + 'static) -> (Context, Log) {
    let log = Log::default();
    let heard = Arc::clone(&log);
    let client = mock::client(move |call: Call| {
        let Call { path, body, .. } = call;
        let name = path.split("/nodestorages/").nth(1);
        let name = name.unwrap_or_default().to_owned();
        let (what, answer) = if path.contains("/nodestorages/") {
            let code = code(&name);
            (
                format!("tasks {name} {code}"),
                answer(code, &name, "NodeStorage", &body),
            )
        } else if path.contains("/storagefencerequests/") {
            let said = &body["status"]["conditions"][0];
            let what = format!("TakenOver {}: {}", said["reason"], said["message"]);
            (what, answer(200, "n1-san", "StorageFenceRequest", &body))
        } else {
            return (201, Value::Null);
        };
        heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what.replace('"', ""));
        answer
    });
    let context = context_of(client, empty_caches());
    (context, log)
}

/// What the API server stores, or why it does not.
fn answer(code: u16, name: &str, kind: &str, body: &Value) -> (u16, Value) {
    if code >= 400 {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Forbidden",
            "message": format!("policy x says no to {name}"),
        });
        return (code, status);
    }
    let mut stored = match kind {
        "NodeStorage" => json!({ "spec": body["spec"] }),
        _ => serde_json::to_value(request(&json!({}))).unwrap(),
    };
    stored["apiVersion"] = json!("storagefence.io/v1alpha1");
    stored["kind"] = json!(kind);
    stored["metadata"]["name"] = json!(name);
    stored["metadata"]["uid"] = body["metadata"]["uid"].clone();
    stored["metadata"]["resourceVersion"] = json!("100");
    (code, stored)
}

fn told(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner))
}

fn asks(peers: &[&str]) -> View {
    let peers = peers.iter().zip(2..).map(|(name, id)| peer(name, id));
    view(vec![request(&json!({}))], peers.collect())
}

#[tokio::test]
async fn who_was_asked_is_said_once_it_was_asked() {
    let (context, log) = controller(|_| 200);
    let mut memory = Memory::default();
    let round = round(asks(&["n2", "n3"]), &mut memory, &context).await;
    assert!(round.all, "{round:?}");
    let told = told(&log);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "tasks n2 200");
    assert!(
        told[1].starts_with("TakenOver Expediting: node n2 was asked"),
        "{told:?}"
    );
}

#[tokio::test]
async fn where_the_api_server_refuses_a_task_another_node_is_asked() {
    for code in [403, 422] {
        let (context, log) = controller(move |node| if node == "n2" { code } else { 200 });
        let mut memory = Memory::default();
        let round = round(asks(&["n2", "n3"]), &mut memory, &context).await;
        let told = told(&log);
        assert_eq!(
            told[..2],
            [format!("tasks n2 {code}"), "tasks n3 200".into()]
        );
        assert!(
            told[2].contains("node n3 was asked") && !told[2].contains("n2 was"),
            "{told:?}"
        );
        assert_eq!(told.len(), 3, "{told:?}");
        // The one that was refused is tried again after a while, and not by the next event.
        assert!(
            round.all && round.look_again.is_some_and(|a| a > SOON),
            "{round:?}"
        );
    }
}

#[tokio::test]
async fn where_all_tasks_are_refused_it_is_said_so_and_nobody_is_called_asked() {
    let (context, log) = controller(|_| 403);
    let mut memory = Memory::default();
    let first = round(asks(&["n2", "n3"]), &mut memory, &context).await;
    let words = told(&log);
    assert_eq!(words[..2], ["tasks n2 403", "tasks n3 403"]);
    assert!(words[2].starts_with("TakenOver NoPeer: "), "{words:?}");
    for part in [
        "n2: the API server does not take its task",
        "policy x says no to n3",
    ] {
        assert!(words[2].contains(part), "{words:?}");
    }
    assert!(first.all && first.look_again.is_some(), "{first:?}");
    // Nobody is asked again before the time.
    round(asks(&["n2", "n3"]), &mut memory, &context).await;
    let words = told(&log);
    assert!(!words.iter().any(|w| w.starts_with("tasks")), "{words:?}");
}

/// Many nodes, none of which can be asked: not all in one round, and nothing is claimed meanwhile.
#[tokio::test]
async fn a_round_ends_although_more_could_be_tried() {
    let (context, log) = controller(|_| 403);
    let names: Vec<String> = (10..30).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut memory = Memory::default();
    let first = round(asks(&names), &mut memory, &context).await;
    let words = told(&log);
    assert_eq!(words.len(), MOST_TRIES, "{words:?}");
    assert!(
        !first.all && words.iter().all(|w| w.starts_with("tasks")),
        "{words:?}"
    );
}

#[tokio::test]
async fn a_write_that_may_do_the_next_time_is_told_as_nothing() {
    for code in [409, 500, 503] {
        let (context, log) = controller(move |_| code);
        let mut memory = Memory::default();
        let round = round(asks(&["n2", "n3"]), &mut memory, &context).await;
        assert_eq!(told(&log), [format!("tasks n2 {code}")]);
        assert!(!round.all, "{code}: {round:?}");
    }
}

/// A task that cannot be taken away is tried again later, and asked for no sooner.
#[tokio::test]
async fn tasks_that_cannot_be_taken_away_hold_nobody_up() {
    let (context, log) = controller(|_| 403);
    let mut left = asks(&["n2"]);
    left.requests[0].spec.takeover = crate::api::request::Takeover::Wait;
    left.peers[1].tasks = vec![pin()];
    let mut memory = Memory::default();
    round(left.clone(), &mut memory, &context).await;
    assert_eq!(told(&log), ["tasks n2 403"]);
    round(left, &mut memory, &context).await;
    assert_eq!(told(&log).len(), 0);
}

/// The watch has not brought our own writes yet: neither is made again, and nothing is told twice.
#[tokio::test]
async fn a_cache_that_is_behind_is_not_acted_upon() {
    let (context, log) = controller(|_| 200);
    let mut memory = Memory::default();
    let behind = |mut view: View| {
        view.requests[0].metadata.resource_version = Some("99".into());
        view
    };
    round(behind(asks(&["n2"])), &mut memory, &context).await;
    assert_eq!(told(&log).len(), 2);
    let mut storage = NodeStorage::new("n2", serde_json::from_value(json!({})).unwrap());
    storage.metadata.uid = Some("storage-of-n2".into());
    storage.metadata.resource_version = Some("99".into());
    assert_eq!(dereference::tasks_of(&storage, &context, &memory), [pin()]);
    let mut still = behind(asks(&["n2"]));
    still.peers[1].tasks = dereference::tasks_of(&storage, &context, &memory);
    round(still, &mut memory, &context).await;
    assert_eq!(told(&log).len(), 0);
    // It has come: what it says counts, whoever wrote it.
    storage.metadata.resource_version = Some("101".into());
    assert_eq!(dereference::tasks_of(&storage, &context, &memory), []);
}
