use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::api::ConditionStatus;
use crate::kubernetes::mock;

#[test]
fn conditions_are_written_on_change_and_keep_the_time_of_their_transition() {
    let says = |status, reason, message: &str| Says {
        type_: "storagefence.io/SANPathsAvailable",
        status,
        reason,
        message: message.into(),
    };
    let time = |s| Timestamp::from_second(s).unwrap();
    let since = |c: &[NodeCondition]| c[0].last_transition_time.clone().unwrap().0;
    let up = [says(ConditionStatus::True, "PathsWork", "a")];
    let first = changed(&[], &up, time(100)).unwrap();
    assert_eq!(since(&first), time(100));
    assert_eq!(changed(&first, &up, time(200)), None);
    let other_word = [says(ConditionStatus::True, "SomePathsLost", "b")];
    let second = changed(&first, &other_word, time(200)).unwrap();
    assert_eq!(since(&second), time(100), "the status is the same");
    let down = [says(ConditionStatus::False, "AllPathsDown", "c")];
    assert_eq!(
        since(&changed(&second, &down, time(300)).unwrap()),
        time(300)
    );
    assert_eq!(
        changed(&first, &[], time(300)),
        None,
        "nothing seen, nothing said"
    );
}

fn says(reason: &'static str) -> Says {
    Says {
        type_: "storagefence.io/SANPathsAvailable",
        status: ConditionStatus::True,
        reason,
        message: "Every path works".into(),
    }
}

fn node(uid: &str, version: u32, conditions: &Value) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": "n1", "uid": uid, "resourceVersion": version.to_string() },
        "status": { "conditions": conditions },
    }))
    .unwrap()
}

/// After a partition the controller has called the agent gone, and a Node that registers anew has no conditions of ours.
#[tokio::test]
async fn conditions_that_somebody_else_changed_are_written_again_at_once_and_others_never() {
    let writes: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = Arc::clone(&writes);
    let client = mock::client(move |call| {
        let mut writes = seen.lock().unwrap();
        let mut version = 10;
        if call.method == "PATCH" {
            writes.push(call.body.clone());
            version = u32::try_from(writes.len()).unwrap() * 100;
        }
        let uid = call.body["metadata"]["uid"].as_str().unwrap_or("a");
        let conditions = call.body["status"]["conditions"].clone();
        let node = node(uid, version, &conditions);
        (200, serde_json::to_value(node).unwrap())
    });
    let wanted = vec![says("PathsWork")];
    let (_tell, outlook) = watch::channel(Outlook {
        conditions: wanted.clone(),
        ..Outlook::default()
    });
    let (tell, sight) = watch::channel(None);
    let task = conditions(client, "n1".into(), outlook, sight, Metrics::default());
    let _task = AbortOnDropHandle::new(tokio::spawn(task));
    let count = async |wanted: usize| {
        let enough = async {
            while writes.lock().unwrap().len() < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let enough = tokio::time::timeout(Duration::from_secs(5), enough).await;
        assert!(enough.is_ok(), "write {wanted} never came");
        // What comes of it besides.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let writes = writes.lock().unwrap();
        assert_eq!(writes.len(), wanted, "{writes:#?}");
        writes.last().unwrap().clone()
    };
    let see = |uid: &str, version, conditions: &Value| {
        tell.send_replace(Some(Sight::of(&node(uid, version, conditions))));
    };
    let written = count(1).await["status"]["conditions"].clone();
    let mut heartbeat = written.clone();
    heartbeat[0]["lastHeartbeatTime"] = json!("2026-01-01T00:00:00Z");
    let kubelets = json!({ "type": "Ready", "status": "False", "reason": "KubeletNotReady" });
    let both = json!([written[0], kubelets]);
    // Our own write, the Node as it was before it, and what others write of theirs.
    for (version, conditions) in [
        (100, &written),
        (50, &json!([])),
        (120, &both),
        (130, &heartbeat),
    ] {
        see("a", version, conditions);
        count(1).await;
    }
    let mut gone = written.clone();
    (gone[0]["status"], gone[0]["reason"]) = (json!("Unknown"), json!("AgentGone"));
    see("a", 140, &gone);
    let again = count(2).await;
    assert_eq!(again["status"]["conditions"][0]["reason"], "PathsWork");
    see("b", 300, &json!([kubelets]));
    let again = count(3).await;
    assert_eq!(again["metadata"]["uid"], "b");
    see("b", 310, &again["status"]["conditions"]);
    count(3).await;
}

#[test]
fn somebody_who_goes_on_changing_them_is_answered_less_and_less_often() {
    let mut pace = Pace::default();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let (up, other) = ([says("PathsWork")], [says("SomePathsLost")]);
    assert_eq!(pace.pause(&up, at(0)), Duration::ZERO);
    pace.wrote(up.to_vec(), at(0));
    let pauses: Vec<Duration> = (1..12).map(|second| pace.pause(&up, at(second))).collect();
    assert!(pauses[0] <= Duration::from_millis(200), "{pauses:?}");
    assert!(pauses[10] >= QUIET / 2, "{pauses:?}");
    assert_eq!(pace.pause(&other, at(13)), Duration::ZERO, "that is news");
    pace.wrote(up.to_vec(), at(20));
    assert_eq!(pace.pause(&up, at(200)), Duration::ZERO, "long ago");
}
