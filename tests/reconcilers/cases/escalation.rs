//! A health controller gives a remediation up and makes the next from another template of ours: two for one node at a time.

use serde_json::json;
use storage_fence::api::{StorageFenceRemediation, StorageFenceRequest};

use kube::ResourceExt;

use super::policies::{FENCED, becomes};
use super::remediation::{KIND, request_of, withdrawn};
use crate::bed::Bed;
use crate::health::{HealthController, Phase};
use crate::node::{TestNode, storage};
use crate::objects::word;
use crate::support::{Context, Result};
use crate::wait::{ensure, ensure_eq};

const STANDS: &str = "Fenced=True/Proven";

/// The request of a remediation, once it stands.
async fn stands(bed: &Bed, remediation: &StorageFenceRemediation) -> Result<StorageFenceRequest> {
    let name = request_of(bed, remediation)
        .await?
        .context("no request")?
        .name_any();
    bed.sees(&name, "it stands", |r| word(r, "Fenced") == STANDS)
        .await
}

/// NHC escalates on any False, however shortly it is said.
async fn never_failed(bed: &Bed, remediation: &str) -> Result {
    let told = bed.events(KIND, remediation).await?;
    let failed = told
        .iter()
        .any(|(reason, _)| reason == "RemediationCannotStart");
    ensure(!failed, format!("the second has not failed: {told:?}"))
}

/// The SAN is back and the node healthy: the second is deleted, and gives back whatever was fenced for either.
async fn second_gives_back(
    bed: &Bed,
    node: &TestNode<'_>,
    nhc: &HealthController<'_>,
    second: &StorageFenceRemediation,
) -> Result {
    ensure_eq("nothing was given back", node.count("lockstart san"), 0)?;
    nhc.delete(&second.name_any()).await?;
    nhc.gone(&second.name_any()).await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    ensure_eq("joined again", node.count("lockstart san"), 1)?;
    ensure(
        request_of(bed, second).await?.is_none(),
        "its request went first",
    )
}

/// The first has come to nothing: paths remain, which its template respects and the second's does not.
pub async fn a_second_template_fences_what_the_first_would_not(bed: &Bed) -> Result {
    let more = json!({ "volumeGroups": { "mode": "AllShared" }, "whenPathsRemain": "Fence" });
    let [first, second] = HealthController::escalating(bed, "refused", more).await?;
    let node = TestNode::join_with(bed, "esc-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let refused = first.remediate(&node.name).await?;
    first.sees(&refused.name_any(), Phase::Failed).await?;
    node.untouched()?;
    first.time_out(&refused.name_any()).await?;
    // NHC does not wait for what becomes of the first.
    let made = second.remediate(&node.name).await?;
    second.sees(&made.name_any(), Phase::Succeeded).await?;
    never_failed(bed, &made.name_any()).await?;
    withdrawn(bed, &refused).await?;
    stands(bed, &made).await?;
    let log = node.simulation.log();

    node.give_back();
    first.delete(&refused.name_any()).await?;
    first.gone(&refused.name_any()).await?;
    // What the agent would do by itself it does within its next looks.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    stands(bed, &made).await?;
    ensure_eq("on the node", node.simulation.log(), log)?;
    let seen = second.get(&made.name_any()).await?.context("it is gone")?;
    ensure_eq("the second", second.phase(&seen), Phase::Succeeded)?;
    second_gives_back(bed, &node, &second, &made).await?;
    agent.stop().await?;
    node.unharmed()
}

/// The first was in the middle of its fence: that cannot be stopped, and the second rests on it.
pub async fn a_second_template_rests_on_what_the_first_had_begun(bed: &Bed) -> Result {
    let [first, second] = HealthController::escalating(bed, "slow", json!({})).await?;
    let node = TestNode::join(bed, "esc-2").await?;
    let agent = node.start_agent().await?;
    node.hold();
    let slow = first.remediate(&node.name).await?;
    first.sees(&slow.name_any(), Phase::Processing).await?;
    let request = request_of(bed, &slow)
        .await?
        .context("no request")?
        .name_any();
    bed.settles(&request, "Fencing", &["Fenced=Unknown/InProgress"])
        .await?;
    first.time_out(&slow.name_any()).await?;
    first
        .sees_reason(&slow.name_any(), "RemediationTimeoutByNHC")
        .await?;
    let made = second.remediate(&node.name).await?;
    second.sees(&made.name_any(), Phase::Processing).await?;
    node.let_go();
    second.sees(&made.name_any(), Phase::Succeeded).await?;
    stands(bed, &slow).await?;

    // Its own request goes, and leaves the fence to the second's.
    first.delete(&slow.name_any()).await?;
    first.gone(&slow.name_any()).await?;
    stands(bed, &made).await?;
    node.give_back();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    becomes(bed, &node.name, FENCED, "True").await?;
    stands(bed, &made).await?;
    let seen = second.get(&made.name_any()).await?.context("it is gone")?;
    ensure_eq("the second", second.phase(&seen), Phase::Succeeded)?;
    never_failed(bed, &made.name_any()).await?;
    second_gives_back(bed, &node, &second, &made).await?;
    bed.forgets(&request).await?;
    agent.stop().await?;
    node.unharmed()
}
