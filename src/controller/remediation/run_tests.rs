//! When it is begun.

use std::sync::Mutex;

use kube::runtime::reflector::store;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::tests::deleted;
use super::*;
use crate::controller::fixtures::{context_of, empty_caches};
use crate::kubernetes::mock;

#[tokio::test]
async fn nothing_is_decided_before_it_is_known_what_there_is() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let calls = Arc::clone(&asked);
    let client = mock::client(move |call| {
        calls.lock().unwrap().push(call.path);
        let gone = json!({ "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "" });
        (404, gone)
    });
    let (nodes, mut filling) = store();
    let mut caches = empty_caches();
    caches.nodes = nodes;
    let context = Arc::new(context_of(client, caches));
    let (bell, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let watch = Watch::of(deleted(None));
    let run = tokio::spawn(run(context, watch, Arc::clone(&bell), stop.clone()));
    bell.notify_one();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
    filling.apply_watcher_event(&Event::Init);
    filling.apply_watcher_event(&Event::InitDone);
    let began = Instant::now();
    while asked.lock().unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing is done");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    run.await.unwrap();
}

#[tokio::test]
async fn every_task_that_waits_for_the_caches_goes_on() {
    let (nodes, mut filling) = store();
    let mut caches = empty_caches();
    caches.nodes = nodes;
    let wait = |caches: &crate::controller::watches::Caches| {
        let caches = caches.clone();
        tokio::spawn(async move { caches.filled().await })
    };
    let waiting = [wait(&caches), wait(&caches), wait(&caches)];
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(waiting.iter().all(|w| !w.is_finished()));
    filling.apply_watcher_event(&Event::Init);
    filling.apply_watcher_event(&Event::InitDone);
    for one in waiting {
        let ended = tokio::time::timeout(Duration::from_secs(30), one).await;
        ended.expect("it goes on").unwrap();
    }
}
