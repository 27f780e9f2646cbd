//! Bad input: a clear word, and nothing touched.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use storage_fence::host::simulated::Daemon;

use crate::bed::Bed;
use crate::controller::AGENT_TIMEOUT;
use crate::node::{TestNode, storage};
use crate::objects::message;
use crate::support::{Context, Result};
use crate::wait::ensure;

async fn remove(bed: &Bed, name: &str) -> Result {
    bed.withdraw(name).await?;
    bed.forgets(name).await
}

pub async fn an_unknown_node_is_named_and_waited_for(bed: &Bed) -> Result {
    bed.ask("stranger", "stranger-1", json!({})).await?;
    let refused = bed
        .settles("stranger", "Rejected", &["Accepted=False/NodeNotFound"])
        .await?;
    let text = message(&refused, "Accepted");
    ensure(
        text.contains("there is no node stranger-1") && text.contains("Nothing was touched"),
        &text,
    )?;
    bed.told(
        "StorageFenceRequest",
        "stranger",
        "Rejected",
        "storage-fence-controller",
    )
    .await?;
    // It goes on by itself when the node joins, as it says.
    let node = TestNode::join_with(bed, "stranger-1", &storage(2)).await?;
    let waits = |r: &_| {
        message(r, "AgentReady").contains("agent")
            && message(r, "Accepted").contains("nothing that is known")
    };
    bed.sees("stranger", "accepted, and waiting for the agent", waits)
        .await?;
    node.untouched()?;
    remove(bed, "stranger").await
}

pub async fn a_node_without_an_agent_is_said_so_in_time(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "lonely-1").await?;
    let began = std::time::Instant::now();
    bed.ask("lonely", &node.name, json!({})).await?;
    let said = bed
        .settles("lonely", "WaitingForAgent", &["AgentReady=False/NoAgent"])
        .await?;
    // Times are stored in whole seconds.
    let early = AGENT_TIMEOUT.saturating_sub(std::time::Duration::from_secs(1));
    ensure(
        began.elapsed() >= early,
        format!("not before its time: {:?}", began.elapsed()),
    )?;
    let text = message(&said, "AgentReady");
    ensure(
        text.contains(&format!("after {} s", AGENT_TIMEOUT.as_secs())) && text.contains("kubectl"),
        &text,
    )?;
    bed.told(
        "StorageFenceRequest",
        "lonely",
        "NoAgent",
        "storage-fence-controller",
    )
    .await?;
    bed.told("Node", &node.name, "NoAgent", "storage-fence-controller")
        .await?;
    node.untouched()?;
    remove(bed, "lonely").await
}

pub async fn volume_groups_that_must_not_be_fenced_are_refused(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "healthy-1", &storage(1)).await?;
    let agent = node.start_agent().await?;
    let named = |name: &str| json!({ "volumeGroups": { "mode": "Named", "names": [name] } });
    let cases: [(&str, Value, &str, &str); 5] = [
        ("typo", named("sann"), "VolumeGroupUnknown", "sann"),
        ("local", named("local"), "VolumeGroupNotShared", "local"),
        ("named", named("san"), "PathsRemain", "whenPathsRemain"),
        (
            "all",
            json!({ "volumeGroups": { "mode": "AllShared" } }),
            "PathsRemain",
            "1 of 2",
        ),
        (
            "affected",
            json!({}),
            "NothingAffected",
            "no shared volume group",
        ),
    ];
    for (name, spec, reason, text) in cases {
        let name = format!("healthy-{name}");
        bed.ask(&name, &node.name, spec).await?;
        let (accepted, fenced) = (
            format!("Accepted=False/{reason}"),
            format!("Fenced=False/{reason}"),
        );
        let refused = bed
            .settles(&name, "Rejected", &[&accepted, &fenced])
            .await?;
        let said = message(&refused, "Fenced");
        ensure(
            said.contains(text),
            format!("{reason} says '{text}': {said}"),
        )?;
        bed.told(
            "StorageFenceRequest",
            &name,
            "FenceRefused",
            "storage-fence-agent",
        )
        .await?;
        node.untouched()?;
        remove(bed, &name).await?;
    }
    // The same, meant: with a working path it is fenced only on the word Fence.
    bed.ask("healthy-meant", &node.name, json!({ "whenPathsRemain": "Fence", "volumeGroups": { "mode": "Named", "names": ["san"] } }))
        .await?;
    bed.settles(
        "healthy-meant",
        "Fenced",
        &[
            "Accepted=True/Valid",
            "Fenced=True/Proven",
            "LocksReleased=True/Released",
        ],
    )
    .await?;
    remove(bed, "healthy-meant").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn the_older_of_two_requests_governs(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "twins-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let first = bed.ask("twins-z-first", &node.name, json!({})).await?;
    bed.settles(
        "twins-z-first",
        "Rejected",
        &["Fenced=False/NothingAffected"],
    )
    .await?;
    // Of two in the same second the name decides; this is not about that.
    let made = first
        .metadata
        .creation_timestamp
        .context("no creation time")?
        .0;
    while jiff::Timestamp::now().as_second() <= made.as_second() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // The younger one would cut a healthy node off.
    let meant = json!({ "whenPathsRemain": "Fence", "volumeGroups": { "mode": "AllShared" } });
    bed.ask("twins-a-second", &node.name, meant).await?;
    let outranked = bed
        .settles(
            "twins-a-second",
            "Rejected",
            &[
                "Accepted=False/OtherRequestGoverns",
                "Fenced=False/OtherRequestGoverns",
            ],
        )
        .await?;
    ensure(
        message(&outranked, "Fenced").contains("twins-z-first"),
        "the other one is named",
    )?;
    node.untouched()?;
    remove(bed, "twins-z-first").await?;
    bed.settles(
        "twins-a-second",
        "Fenced",
        &["Accepted=True/Valid", "Fenced=True/Proven"],
    )
    .await?;
    remove(bed, "twins-a-second").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn without_device_mapper_nothing_is_touched(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "blind-1").await?;
    node.simulation.state(|s| s.listing_fails = true);
    let agent = node.start_agent().await?;
    let not_ready = |storage: &storage_fence::api::NodeStorage, reason: &str| {
        let conditions = storage.status.iter().flat_map(|s| &s.conditions);
        conditions
            .clone()
            .any(|c| c.type_ == "Ready" && c.reason == reason)
    };
    let report = bed
        .reports(&node.name, "not ready", |s| {
            not_ready(s, "DeviceMapperUnavailable")
        })
        .await?;
    ensure(
        format!("{report:?}").contains("privileged"),
        "it says where to look",
    )?;
    bed.ask("blind", &node.name, json!({})).await?;
    bed.settles(
        "blind",
        "Rejected",
        &[
            "Accepted=False/DeviceMapperUnavailable",
            "Fenced=False/DeviceMapperUnavailable",
        ],
    )
    .await?;
    node.untouched()?;
    // Mended, it goes on by itself: the paths are gone after all.
    node.simulation.state(|s| s.listing_fails = false);
    bed.settles(
        "blind",
        "Fenced",
        &["Fenced=True/Proven", "LocksReleased=True/Released"],
    )
    .await?;
    remove(bed, "blind").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn without_lvmlockd_or_sanlock_nothing_is_touched(bed: &Bed) -> Result {
    for (daemon, reason, set) in [
        (
            "lvmlockd",
            "LvmlockdUnavailable",
            (|s, d| s.lvmlockd = d) as fn(&mut storage_fence::host::simulated::State, Daemon),
        ),
        ("sanlock", "SanlockUnavailable", |s, d| s.sanlock = d),
    ] {
        let name = format!("no-{daemon}");
        let node = TestNode::join(bed, &format!("{name}-1")).await?;
        node.simulation.state(|s| set(s, Daemon::Dead));
        let agent = node.start_agent().await?;
        bed.ask(&name, &node.name, json!({})).await?;
        let (accepted, fenced) = (
            format!("Accepted=False/{reason}"),
            format!("Fenced=False/{reason}"),
        );
        let refused = bed
            .settles(&name, "Rejected", &[&accepted, &fenced])
            .await?;
        ensure(
            message(&refused, "Fenced").contains(daemon),
            "it says which",
        )?;
        node.untouched()?;
        // An edit of the reason is no reason to believe otherwise.
        let patch = Patch::Merge(json!({ "spec": { "reason": "please" } }));
        bed.requests()
            .patch(&name, &PatchParams::default(), &patch)
            .await?;
        bed.sees(&name, "looked at again", |r| {
            r.status.as_ref().is_some_and(|s| {
                s.observed_generation == Some(2) && s.conditions.iter().any(|c| c.reason == reason)
            })
        })
        .await?;
        node.untouched()?;
        node.simulation.state(|s| set(s, Daemon::Alive));
        bed.settles(
            &name,
            "Fenced",
            &["Fenced=True/Proven", "LocksReleased=True/Released"],
        )
        .await?;
        remove(bed, &name).await?;
        agent.stop().await?;
        node.unharmed()?;
    }
    Ok(())
}

pub async fn a_lockspace_that_a_new_lvmlockd_does_not_know_is_waited_for(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "unadopted-1").await?;
    let set = |unadopted| {
        node.simulation.state(|s| {
            let all = s.lockspaces.iter_mut();
            all.for_each(|l| l.unadopted = unadopted);
        });
    };
    set(true);
    let agent = node.start_agent().await?;
    let named = json!({ "volumeGroups": { "mode": "Named", "names": ["san"] } });
    bed.ask("unadopted", &node.name, named).await?;
    let reason = "LockspaceNotAdopted";
    let refused = bed
        .settles(
            "unadopted",
            "Rejected",
            &[
                &format!("Accepted=False/{reason}"),
                &format!("Fenced=False/{reason}"),
            ],
        )
        .await?;
    ensure(
        message(&refused, "Fenced").contains("--lockopt adoptls san"),
        "it says how to have it adopted",
    )?;
    node.untouched()?;
    set(false);
    bed.settles(
        "unadopted",
        "Fenced",
        &["Fenced=True/Proven", "LocksReleased=True/Released"],
    )
    .await?;
    remove(bed, "unadopted").await?;
    agent.stop().await?;
    node.unharmed()
}
