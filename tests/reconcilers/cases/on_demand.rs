//! OnDemand: the agent comes to a node when a request needs it, by a label that the real DaemonSet controller and scheduler act upon.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use serde_json::json;
use storage_fence::api::AGENT_WANTED_LABEL;

use crate::bed::Bed;
use crate::node::TestNode;
use crate::support::Result;
use crate::wait::{LIMIT, ensure, until};

async fn labelled(bed: &Bed, node: &str) -> Result<bool> {
    let node = bed.all::<Node>().get(node).await?;
    Ok(node
        .labels()
        .get(AGENT_WANTED_LABEL)
        .is_some_and(|v| v == "true"))
}

/// The label is off, and the DaemonSet's controller has told the pod to go; the kubelet's part is done here.
async fn let_go(bed: &Bed, node: &TestNode<'_>, pod: &Pod) -> Result {
    until(
        &format!("node {} is not wanted any more", node.name),
        LIMIT,
        async || {
            Ok(if labelled(bed, &node.name).await? {
                Err("it has the label".to_owned())
            } else {
                Ok(())
            })
        },
    )
    .await?;
    until(
        &format!("pod {} is told to go", pod.name_any()),
        LIMIT,
        async || {
            let pod = bed.ours::<Pod>().get_opt(&pod.name_any()).await?;
            let stays = pod.is_some_and(|p| p.metadata.deletion_timestamp.is_none());
            Ok(if stays {
                Err("it stays".to_owned())
            } else {
                Ok(())
            })
        },
    )
    .await?;
    node.end_pod(pod).await
}

pub async fn the_agent_comes_when_needed_and_goes(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "demand-1").await?;
    ensure(
        !labelled(bed, &node.name).await?,
        "nobody wants an agent there",
    )?;
    bed.ask("demand", &node.name, json!({ "dryRun": true }))
        .await?;
    let agent = node.start_agent().await?;
    ensure(labelled(bed, &node.name).await?, "it came by the label")?;
    bed.settles("demand", "DryRunComplete", &["Fenced=False/DryRun"])
        .await?;
    let pod = node.pod().await?;
    if let Some(pod) = pod {
        let_go(bed, &node, &pod).await?;
    }
    agent.stop().await?;
    bed.settles(
        "demand",
        "DryRunComplete",
        &["AgentReady=False/AgentNotNeeded"],
    )
    .await?;
    ensure(node.pod().await?.is_none(), "the node has no agent again")?;
    node.untouched()?;
    bed.withdraw("demand").await?;
    Ok(())
}

/// Somebody has to see that the fence holds.
pub async fn an_agent_that_fenced_stays(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "demand-2").await?;
    bed.ask("demand-stays", &node.name, json!({})).await?;
    let agent = node.start_agent().await?;
    bed.settles(
        "demand-stays",
        "Fenced",
        &[
            "LocksReleased=True/Released",
            "AgentReady=True/AgentRunning",
        ],
    )
    .await?;
    // Several rounds of everybody.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    ensure(
        labelled(bed, &node.name).await?,
        "the label stays while the request is there",
    )?;
    let pod = node.run_pod().await?;
    bed.withdraw("demand-stays").await?;
    let_go(bed, &node, &pod).await?;
    agent.stop().await?;
    node.unharmed()
}
