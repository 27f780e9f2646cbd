//! What happens in the middle of a fence.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use storage_fence::host::simulated::uuid_of;

use crate::bed::Bed;
use crate::node::TestNode;
use crate::objects::{message, word};
use crate::support::Result;
use crate::wait::{ensure, ensure_eq};

/// Past the point of no return, in the middle of the swap.
const IN_THE_MIDDLE: [&str; 1] = ["Fenced=Unknown/InProgress"];

pub async fn a_request_deleted_half_way_is_completed_and_told(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "deleted-1").await?;
    let agent = node.start_agent().await?;
    node.hold();
    bed.ask("deleted", &node.name, json!({ "deletionPolicy": "Retain" }))
        .await?;
    bed.settles("deleted", "Fencing", &IN_THE_MIDDLE).await?;
    bed.withdraw("deleted").await?;
    ensure_eq(
        "nothing is dropped while I/O is under way",
        node.count("drop_vg san"),
        0,
    )?;
    node.let_go();
    node.releases().await?;
    // Half a fence is nobody's friend.
    let open = node.simulation.state(|s| s.not_fenced(&uuid_of("san")));
    ensure(open.is_empty(), format!("completed: {open:?}"))?;
    bed.told(
        "Node",
        &node.name,
        "RequestDeletedDuringFence",
        "storage-fence-agent",
    )
    .await?;
    bed.forgets("deleted").await?;
    agent.stop().await?;
    node.unharmed()
}

/// `Unfence` is the default of the schema: what a plain `kubectl delete` in the middle of a fence comes to.
pub async fn a_request_deleted_half_way_gives_back_what_it_fenced(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "deleted-2").await?;
    let agent = node.start_agent().await?;
    node.hold();
    bed.ask(
        "regretted",
        &node.name,
        json!({ "deletionPolicy": "Unfence", "unfenceAfterSeconds": 0 }),
    )
    .await?;
    bed.settles("regretted", "Fencing", &IN_THE_MIDDLE).await?;
    bed.requests()
        .delete("regretted", &DeleteParams::default())
        .await?;
    ensure_eq(
        "nothing is dropped while I/O is under way",
        node.count("drop_vg san"),
        0,
    )?;
    node.let_go();
    node.releases().await?;
    bed.sees(
        "regretted",
        "the fence was completed, and waits for the paths",
        |r| word(r, "Fenced") == "Fenced=True/UnfenceWaiting",
    )
    .await?;
    let open = node.simulation.state(|s| s.not_fenced(&uuid_of("san")));
    ensure(open.is_empty(), format!("completed: {open:?}"))?;
    ensure_eq(
        "nothing is given back while no path works",
        node.count("lockstart san"),
        0,
    )?;
    node.give_back();
    bed.forgets("regretted").await?;
    // The finalizer went last: only then could it go.
    let removed = |l: &String| l.starts_with("remove san-");
    ensure(
        node.simulation.log().iter().any(removed),
        "what stood on the error target is removed",
    )?;
    ensure_eq("joined again", node.count("lockstart san"), 1)?;
    let held = node.simulation.state(|s| s.held(&uuid_of("san")));
    ensure(held, "the lockspace is held again")?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn a_spec_changed_half_way_waits_for_its_turn(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "changed-1").await?;
    let agent = node.start_agent().await?;
    node.hold();
    bed.ask(
        "changed",
        &node.name,
        json!({ "releaseLocks": "AfterProof" }),
    )
    .await?;
    bed.settles("changed", "Fencing", &IN_THE_MIDDLE).await?;
    let patch = Patch::Merge(
        json!({ "spec": { "volumeGroups": { "mode": "Named", "names": ["nosuch"] } } }),
    );
    bed.requests()
        .patch("changed", &PatchParams::default(), &patch)
        .await?;
    bed.sees(
        "changed",
        "it says that the spec was changed meanwhile",
        |r| message(r, "Fenced").contains("The spec was changed meanwhile"),
    )
    .await?;
    node.let_go();
    node.releases().await?;
    // What was begun was completed as it began; the new spec is then looked at by itself.
    ensure_eq("drops", node.count("drop_vg san"), 1)?;
    bed.sees("changed", "the new spec is answered", |r| {
        r.metadata.generation == Some(2) && message(r, "Fenced").contains("nosuch")
    })
    .await?;
    // What cannot be done does not deny what was.
    bed.settles(
        "changed",
        "Fenced",
        &["Fenced=True/Proven", "LocksReleased=True/Released"],
    )
    .await?;
    bed.withdraw("changed").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn the_agents_successor_completes_the_fence(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "killed-1").await?;
    let agent = node.start_agent().await?;
    node.hold();
    bed.ask("killed", &node.name, json!({})).await?;
    bed.settles("killed", "Fencing", &IN_THE_MIDDLE).await?;
    agent.kill().await?;
    node.let_go();
    ensure_eq("a dead agent drops nothing", node.count("drop_vg san"), 0)?;
    let (kills, before) = (
        node.count("kill_vg san"),
        bed.requests().get("killed").await?,
    );
    ensure_eq("the locks were frozen once", kills, 1)?;
    let agent = node.start_agent().await?;
    let end = bed
        .settles(
            "killed",
            "Fenced",
            &["Fenced=True/Proven", "LocksReleased=True/Released"],
        )
        .await?;
    let started = |r: &storage_fence::api::StorageFenceRequest| {
        r.status
            .as_ref()
            .and_then(|s| s.node.as_ref())
            .and_then(|n| n.started_at)
    };
    ensure_eq(
        "it is the same fence: it began when it began",
        started(&end),
        started(&before),
    )?;
    ensure_eq("drops", node.count("drop_vg san"), 1)?;
    bed.withdraw("killed").await?;
    agent.stop().await?;
    node.unharmed()
}
