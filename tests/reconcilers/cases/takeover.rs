//! A fenced node is declared dead by a healthy peer: the real controller, and the agents of both nodes.

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use storage_fence::api::NodeStorage;
use storage_fence::host::simulated::{Group, Layout, Under, uuid_of};
use storage_fence::host::{HostState, LockspaceHost};

use crate::bed::{Bed, client, refusal};
use crate::node::TestNode;
use crate::objects::{message, word};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// A volume group of its own, shared by the nodes of one case: in every other one `san` is host 7's.
pub(super) fn storage(group: &str, active_paths: u32) -> Layout {
    let group = Group {
        under: vec![Under::Map {
            active: active_paths,
            queueing: true,
        }],
        renewed_ago: 0,
        ..Group::target(group)
    };
    Layout {
        groups: vec![group],
    }
}

/// A node that has joined the lockspace as host `id`, and sees host 7 alive in generation 3.
pub(super) async fn peer<'a>(
    bed: &'a Bed,
    name: &str,
    group: &str,
    id: u64,
) -> Result<TestNode<'a>> {
    let node = TestNode::join_with(bed, name, &storage(group, 2)).await?;
    let lockspace = format!("lvm_{group}");
    node.simulation.state(|s| {
        s.lockspaces[0].lockspace.host_id = id;
        let seven = LockspaceHost {
            host_id: 7,
            generation: 3,
            state: HostState::Live,
            declared_dead: false,
        };
        s.hosts.insert((lockspace.clone(), 7), seven);
        s.fenced_hosts.insert((lockspace, 7, 3));
    });
    Ok(node)
}

pub(super) fn declared(node: &TestNode<'_>) -> Vec<String> {
    let log = node.simulation.log().into_iter();
    log.filter(|l| l.starts_with("declare_dead")).collect()
}

/// Waits until a node reports that it can.
pub(super) async fn can_declare(bed: &Bed, node: &TestNode<'_>) -> Result {
    bed.reports(&node.name, "it can declare a peer dead", |s| {
        let status = s.status.as_ref();
        status.is_some_and(|s| {
            s.paths == "2/2"
                && s.preflight
                    .iter()
                    .any(|c| c.name == "DeadExt" && format!("{:?}", c.result) == "Passed")
        })
    })
    .await
    .map(drop)
}

pub async fn a_healthy_peer_declares_a_fenced_node_dead(bed: &Bed) -> Result {
    let n1 = TestNode::join_with(bed, "dead-1", &storage("pair", 0)).await?;
    let n2 = peer(bed, "dead-2", "pair", 8).await?;
    let (first, second) = (n1.start_agent().await?, n2.start_agent().await?);
    can_declare(bed, &n2).await?;

    bed.ask("dead", &n1.name, json!({ "takeover": "Expedite" }))
        .await?;
    let request = bed
        .settles(
            "dead",
            "Fenced",
            &["LocksReleased=True/Released", "TakenOver=True/TakenOver"],
        )
        .await?;
    ensure_eq(
        "declarations",
        declared(&n2),
        vec!["declare_dead lvm_pair 7 3".to_owned()],
    )?;
    let said = message(&request, "TakenOver");
    ensure(
        said.contains("dead-2") && said.contains("host 7 generation 3"),
        &said,
    )?;
    let accepted = message(&request, "Accepted");
    ensure(!accepted.contains("not done"), accepted)?;
    for kind_and_name in [("StorageFenceRequest", "dead"), ("Node", "dead-1")] {
        bed.told(
            kind_and_name.0,
            kind_and_name.1,
            "TakenOver",
            "storage-fence-controller",
        )
        .await?;
    }

    // The task is done, so it goes, and with it what was said of it; what the request says stays.
    let clean = |s: &NodeStorage| {
        let said = s.status.as_ref().map(|s| s.declared_dead.len());
        s.spec.declare_dead.is_empty() && said == Some(0)
    };
    bed.reports(&n2.name, "no tasks are left", clean).await?;
    let request = bed.requests().get("dead").await?;
    ensure_eq(
        "TakenOver",
        word(&request, "TakenOver"),
        "TakenOver=True/TakenOver".to_owned(),
    )?;
    bed.withdraw("dead").await?;
    bed.forgets("dead").await?;
    for node in [&n1, &n2] {
        node.unharmed()?;
    }
    first.stop().await?;
    second.stop().await
}

/// What has another generation there than the fenced node's agent attests is not what was fenced; a second peer is asked in vain, too.
pub async fn a_peer_that_sees_another_generation_refuses(bed: &Bed) -> Result {
    let n1 = TestNode::join_with(bed, "anew-1", &storage("anew", 0)).await?;
    let n2 = peer(bed, "anew-2", "anew", 8).await?;
    let n3 = peer(bed, "anew-3", "anew", 9).await?;
    for node in [&n2, &n3] {
        node.simulation.state(|s| {
            if let Some(host) = s.hosts.get_mut(&("lvm_anew".to_owned(), 7)) {
                host.generation = 4;
            }
        });
    }
    let agents = [
        n1.start_agent().await?,
        n2.start_agent().await?,
        n3.start_agent().await?,
    ];
    for node in [&n2, &n3] {
        bed.reports(&node.name, "it reports its lockspace", |s| {
            let status = s.status.as_ref();
            status.is_some_and(|s| s.paths == "2/2" && s.agent_pod.is_some())
        })
        .await?;
    }
    bed.ask("anew", &n1.name, json!({ "takeover": "Expedite" }))
        .await?;
    let request = bed
        .settles(
            "anew",
            "Fenced",
            &["LocksReleased=True/Released", "TakenOver=False/NoPeer"],
        )
        .await?;
    let said = message(&request, "TakenOver");
    ensure(
        said.contains("sees generation 4") && said.contains("anew-2") && said.contains("anew-3"),
        &said,
    )?;
    for node in [&n2, &n3] {
        ensure_eq("declarations", declared(node), vec![])?;
        let storage = bed.all::<NodeStorage>().get(&node.name).await?;
        let status = storage.status.context("no status")?;
        let refused = status.declared_dead.first().context("no word")?;
        ensure_eq(
            "volume group",
            refused.volume_group_uuid.clone(),
            uuid_of("anew"),
        )?;
        ensure_eq(
            "result",
            format!("{:?}", refused.result),
            "Refused".to_owned(),
        )?;
    }
    // The agent that was asked does not take the task away.
    let pod = n2.pod().await?.context("no pod")?;
    let token = bed.token("storage-fence-agent", Some(&pod)).await?;
    let api: Api<NodeStorage> = Api::all(client(&bed.access(&token)?)?);
    let none = Patch::Merge(json!({ "spec": { "declareDead": null } }));
    let answer = api.patch(&n2.name, &PatchParams::default(), &none).await;
    let (code, text) = refusal(answer)?;
    ensure(code == 403 && text.contains("may not change it"), text)?;
    // Whoever takes the request back takes the tasks back.
    bed.withdraw("anew").await?;
    for node in [&n2, &n3] {
        bed.reports(&node.name, "no tasks are left", |s| {
            s.spec.declare_dead.is_empty()
        })
        .await?;
        node.unharmed()?;
    }
    for agent in agents {
        agent.stop().await?;
    }
    Ok(())
}

/// An admission policy of the cluster's owner refuses the task: that node is not called asked, and another one is.
pub async fn a_task_that_the_api_server_refuses_is_told_and_goes_to_another(bed: &Bed) -> Result {
    let n1 = TestNode::join_with(bed, "deny-1", &storage("deny", 0)).await?;
    let n2 = peer(bed, "deny-2", "deny", 8).await?;
    let agents = (n1.start_agent().await?, n2.start_agent().await?);
    can_declare(bed, &n2).await?;
    refuse_tasks_of(bed, "deny-2").await?;
    bed.ask("deny", &n1.name, json!({ "takeover": "Expedite" }))
        .await?;
    let request = bed
        .settles(
            "deny",
            "Fenced",
            &["LocksReleased=True/Released", "TakenOver=False/NoPeer"],
        )
        .await?;
    let said = message(&request, "TakenOver");
    for part in ["deny-2: the API server does not take its task", "not today"] {
        ensure(said.contains(part), format!("'{part}' in: {said}"))?;
    }
    let told = bed.events("StorageFenceRequest", "deny").await?;
    ensure(
        told.iter().all(|(reason, _)| reason != "Expediting"),
        format!("nobody is called asked: {told:?}"),
    )?;
    // Another one that can.
    let n3 = peer(bed, "deny-3", "deny", 9).await?;
    let third = n3.start_agent().await?;
    bed.settles("deny", "Fenced", &["TakenOver=True/TakenOver"])
        .await?;
    ensure_eq(
        "declarations",
        (declared(&n2).len(), declared(&n3).len()),
        (0, 1),
    )?;
    bed.kubectl(&[
        "delete",
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
        "test-deny-2",
    ])
    .await?;
    bed.withdraw("deny").await?;
    for node in [&n1, &n2, &n3] {
        node.unharmed()?;
    }
    agents.0.stop().await?;
    agents.1.stop().await?;
    third.stop().await
}

/// Has the API server refuse tasks for a node, and waits until it does.
async fn refuse_tasks_of(bed: &Bed, node: &str) -> Result {
    let name = format!("test-{node}");
    let labels = json!({ crate::node::LABEL: "" });
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": ["storagefence.io"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["nodestorages"],
                "resourceNames": [node],
            }]},
            "validations": [{
                "expression": "!has(object.spec.declareDead) || size(object.spec.declareDead) == 0", "message": "not today",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": name, "labels": labels },
        "spec": { "policyName": name, "validationActions": ["Deny"] },
    });
    let both = json!({ "apiVersion": "v1", "kind": "List", "items": [policy, binding] });
    let path = bed.dir().join(format!("{name}.json"));
    std::fs::write(&path, both.to_string())?;
    bed.kubectl(&["apply", "-f", &path.display().to_string()])
        .await?;
    let task = json!({ "spec": { "declareDead": [{
        "requestUid": "u", "request": "r", "nodeName": "n", "bootId": "b", "volumeGroupUuid": "v", "lockspace": "l", "hostId": 1, "generation": 1,
    }]}});
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let storages = bed.all::<NodeStorage>();
    until("tasks are refused", LIMIT, async || {
        let tried = storages.patch(node, &dry, &Patch::Merge(&task)).await;
        Ok(match tried {
            Err(kube::Error::Api(status)) if status.message.contains("not today") => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await
}
