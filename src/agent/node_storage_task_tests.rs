use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::sync::watch;

use super::*;
use crate::host::simulated::{Group, Layout, Simulation};
use crate::kubernetes::mock;

fn node(uid: &str) -> Node {
    serde_json::from_value(json!({ "metadata": { "name": "n1", "uid": uid } })).unwrap()
}

/// Owned by a Node that is no more, it would be taken away again and again; and nobody believes a report about another Node.
#[tokio::test]
async fn a_node_that_registers_anew_owns_its_report() {
    let server: Arc<Mutex<(&str, Vec<Value>)>> = Arc::new(Mutex::new(("a", Vec::new())));
    let state = Arc::clone(&server);
    let client = mock::client(move |call| {
        let mut state = state.lock().unwrap();
        if call.method == "PATCH" {
            let mut answer = call.body.clone();
            answer["spec"] = json!({});
            state.1.push(call.body);
            return (200, answer);
        }
        if call.path.ends_with("/nodes/n1") {
            return (200, serde_json::to_value(node(state.0)).unwrap());
        }
        (
            404,
            json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404 }),
        )
    });
    let layout = Layout {
        groups: vec![Group::target("vg1")],
    };
    let host = Simulation::new(&layout).host();
    let (tell, sight) = watch::channel(None);
    let task = Task {
        client,
        node_name: "n1".into(),
        pod: None,
        boot_id: "boot".into(),
        host: host.clone(),
        observer: Observer::start(host, None, Duration::from_secs(60), |_| {}).unwrap(),
        standing: watch::channel(Vec::new()).1,
        outlook: watch::channel(Outlook::default()).1,
        sight,
        kill_hook: watch::channel(None).1,
        facts: watch::channel(Facts::default()).1,
        declared_dead: watch::channel(Vec::new()).1,
        metrics: Metrics::default(),
    };
    let (mut reporter, mut before, mut written) = (Reporter::default(), None, None);
    let nothing = Err("no look yet".to_owned());
    let mut write = async || {
        task.write(&mut reporter, &nothing, &mut before, &mut written)
            .await
            .unwrap();
        std::mem::take(&mut server.lock().unwrap().1)
    };
    let of = |writes: &[Value]| {
        let owner = writes[0]["metadata"]["ownerReferences"][0]["uid"].clone();
        let status = writes[1]["status"]["nodeUid"].clone();
        (owner, status, writes.len())
    };
    assert_eq!(of(&write().await), (json!("a"), json!("a"), 2));
    tell.send_replace(Some(Sight::of(&node("a"))));
    assert_eq!(write().await, [] as [Value; 0], "it is the same Node");
    server.lock().unwrap().0 = "b";
    tell.send_replace(Some(Sight::of(&node("b"))));
    assert_eq!(of(&write().await), (json!("b"), json!("b"), 2));
    assert_eq!(write().await, [] as [Value; 0], "told once");
}
