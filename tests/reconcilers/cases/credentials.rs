//! S10: an agent's credentials reach its own node's objects only. Tokens are real ones, bound to pods on nodes as the kubelet asks for them.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use storage_fence::api::{NodeStorage, StorageFenceRequest};

use crate::bed::{Bed, client, refusal};
use crate::node::TestNode;
use crate::objects::request;
use crate::support::Result;
use crate::wait::{LIMIT, ensure, until};

fn report(node: &str) -> Value {
    json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "NodeStorage",
        "metadata": { "name": node }, "spec": {},
        "status": { "bootId": "b", "agentVersion": "v", "sharedVolumeGroups": 0, "activeLogicalVolumes": 0, "paths": "0/0" },
    })
}

fn word(request: &str) -> Value {
    json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
        "metadata": { "name": request },
        "status": { "conditions": [{
            "type": "Fenced", "status": "True", "reason": "Proven", "message": "forged",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    })
}

async fn writes_report(client: &Client, node: &str, status: bool) -> kube::Result<NodeStorage> {
    let api: Api<NodeStorage> = Api::all(client.clone());
    let params = PatchParams::apply("forger").force();
    let patch = Patch::Apply(report(node));
    if status {
        api.patch_status(node, &params, &patch).await
    } else {
        api.patch(node, &params, &patch).await
    }
}

async fn writes_word(client: &Client, request: &str) -> kube::Result<StorageFenceRequest> {
    let api: Api<StorageFenceRequest> = Api::all(client.clone());
    let params = PatchParams::apply("forger").force();
    api.patch_status(request, &params, &Patch::Apply(word(request)))
        .await
}

/// The policy takes effect a moment after it was made: until then it is not yet a claim about it.
async fn in_force(client: &Client, node: &str) -> Result {
    until("the admission policy is in force", LIMIT, async || {
        Ok(match writes_report(client, node, false).await {
            Err(_) => Ok(()),
            Ok(_) => Err("a foreign report was taken".to_owned()),
        })
    })
    .await
}

pub async fn an_agent_writes_for_its_own_node_only(bed: &Bed) -> Result {
    let (mine, other) = (
        TestNode::join(bed, "mine-1").await?,
        TestNode::join(bed, "other-1").await?,
    );
    let (pod, other_pod) = (mine.run_pod().await?, other.run_pod().await?);
    let stolen = client(&bed.access(&bed.token("storage-fence-agent", Some(&pod)).await?)?)?;
    let rightful =
        client(&bed.access(&bed.token("storage-fence-agent", Some(&other_pod)).await?)?)?;
    bed.ask("mine", &mine.name, json!({})).await?;
    bed.ask("other", &other.name, json!({})).await?;
    in_force(&stolen, &other.name).await?;

    // Both may write for their own, and so nothing else but the node keeps them from the rest.
    writes_report(&rightful, &other.name, false).await?;
    writes_report(&rightful, &other.name, true).await?;
    writes_report(&stolen, &mine.name, false).await?;
    writes_report(&stolen, &mine.name, true).await?;
    writes_word(&stolen, "mine").await?;

    let refused = "the agent of node mine-1 may not write objects of node other-1";
    for (what, answer) in [
        (
            "report",
            refusal(writes_report(&stolen, &other.name, false).await)?,
        ),
        (
            "report's status",
            refusal(writes_report(&stolen, &other.name, true).await)?,
        ),
        (
            "request's status",
            refusal(writes_word(&stolen, "other").await)?,
        ),
    ] {
        ensure(
            answer.0 == 403 && answer.1.contains(refused),
            format!("{what}: {answer:?}"),
        )?;
    }
    // Of what it did alone an agent makes a record; not in another's name.
    let forged = request("forged", &other.name, json!({}))?;
    let requests: Api<StorageFenceRequest> = Api::all(stolen.clone());
    let (code, text) = refusal(requests.create(&PostParams::default(), &forged).await)?;
    ensure(code == 403, text)?;
    // What no agent may do at all is RBAC's to refuse.
    let (code, text) = refusal(requests.delete("mine", &DeleteParams::default()).await)?;
    ensure(code == 403 && text.contains("cannot delete"), text)?;
    let spec = Patch::Merge(json!({ "spec": { "whenPathsRemain": "Fence" } }));
    let (code, text) = refusal(requests.patch("mine", &PatchParams::default(), &spec).await)?;
    ensure(code == 403 && text.contains("cannot patch"), text)?;
    let untouched = bed.requests().get("other").await?;
    ensure(
        !format!("{untouched:?}").contains("forged"),
        "the other's status is not forged",
    )?;
    for name in ["mine", "other"] {
        bed.withdraw(name).await?;
    }
    Ok(())
}

pub async fn a_token_that_names_no_node_is_refused(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "nowhere-1").await?;
    let unbound = client(&bed.access(&bed.token("storage-fence-agent", None).await?)?)?;
    bed.ask("nowhere", &node.name, json!({})).await?;
    in_force(&unbound, &node.name).await?;
    for (what, answer) in [
        (
            "report",
            refusal(writes_report(&unbound, &node.name, false).await)?,
        ),
        (
            "request's status",
            refusal(writes_word(&unbound, "nowhere").await)?,
        ),
    ] {
        ensure(
            answer.0 == 403 && answer.1.contains("the agent's token names no node"),
            format!("{what}: {answer:?}"),
        )?;
    }
    bed.withdraw("nowhere").await?;
    Ok(())
}

/// Nobody but the controller has an agent declare a peer dead: an agent does not ask another for it, nor itself.
pub async fn no_agent_changes_what_is_asked_of_a_node(bed: &Bed) -> Result {
    let (mine, other) = (
        TestNode::join(bed, "asked-1").await?,
        TestNode::join(bed, "asked-2").await?,
    );
    let pod = mine.run_pod().await?;
    let token = bed.token("storage-fence-agent", Some(&pod)).await?;
    let agent = client(&bed.access(&token)?)?;
    in_force(&agent, &other.name).await?;
    let task = json!([{
        "requestUid": "u", "request": "r", "nodeName": "n", "bootId": "b", "volumeGroupUuid": "v", "lockspace": "l",
        "hostId": 1, "generation": 1,
    }]);
    let asks = async |client: &Client, node: &str, tasks: &Value| {
        let mut report = report(node);
        report["spec"] = json!({ "declareDead": tasks });
        let params = PatchParams::apply("forger").force();
        let api: Api<NodeStorage> = Api::all(client.clone());
        api.patch(node, &params, &Patch::Apply(report)).await
    };
    // Made with a task, given one, and another node given one. That it takes none away is a take-over's case.
    let may_not = "may not change it";
    let (code, text) = refusal(asks(&agent, &mine.name, &task).await)?;
    ensure(code == 403 && text.contains(may_not), text)?;
    writes_report(&agent, &mine.name, false).await?;
    let (code, text) = refusal(asks(&agent, &mine.name, &task).await)?;
    ensure(code == 403 && text.contains(may_not), text)?;
    let (code, text) = refusal(asks(&agent, &other.name, &task).await)?;
    ensure(code == 403, text)
}
