//! A policy fences a node before the health controller asks for it: what becomes of that fence when the node is healthy again.

use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use storage_fence::api::StorageFenceRequest;
use storage_fence::api::condition::find;
use storage_fence::api::record::annotation;
use storage_fence::api::request::FenceState;

use super::policies::{FENCED, becomes, in_force, recorded, records, withdraw};
use crate::bed::Bed;
use crate::health::{self, HealthController, Phase};
use crate::node::{RunningAgent, TestNode, storage};
use crate::objects::{phase, summary, word};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// A node that has fenced itself by a policy of its name, and the record of that.
async fn fenced_itself<'a>(
    bed: &'a Bed,
    name: &str,
) -> Result<(TestNode<'a>, RunningAgent, StorageFenceRequest)> {
    let node = TestNode::join_with(bed, name, &storage(2)).await?;
    let agent = node.start_agent().await?;
    // What stands is no history.
    in_force(bed, name, name, &json!({ "recordHistoryLimit": 0 })).await?;
    node.paths(0);
    let record = recorded(bed, name).await?;
    Ok((node, agent, record))
}

/// Waits until NHC is told that a deleted remediation waits for a request.
async fn waits_for(nhc: &HealthController<'_>, name: &str, request: &str) -> Result {
    until(
        &format!("remediation {name} waits for {request}"),
        LIMIT,
        async || {
            let there = nhc.get(name).await?.context("it is gone")?;
            let status = there.status.clone().unwrap_or_default();
            let says = find(&status.conditions, "Processing").map(|c| c.message.clone());
            let says = says.unwrap_or_default();
            Ok(if says.contains(&format!("Request {request}: ")) {
                Ok(())
            } else {
                Err(says)
            })
        },
    )
    .await
}

pub async fn nhc_gives_back_what_a_policy_had_fenced(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "policy-back").await?;
    let (node, agent, record) = fenced_itself(bed, "sfp-1").await?;
    let record = record.name_any();
    let name = nhc.remediate(&node.name).await?.name_any();
    let done = nhc.sees(&name, Phase::Succeeded).await?;
    let rests: Vec<String> = done
        .status
        .iter()
        .flat_map(|s| &s.records)
        .map(|r| r.name.clone())
        .collect();
    ensure_eq("what the success rests on", rests, vec![record.clone()])?;
    let before = node.simulation.log();

    // Too early: what set the policy off still holds.
    nhc.delete(&name).await?;
    waits_for(&nhc, &name, &record).await?;
    let waiting = bed
        .sees(&record, "it waits", |r| phase(r) == "Unfencing")
        .await?;
    ensure_eq(
        "what is wanted",
        waiting.spec.fence_state,
        FenceState::Unfenced,
    )?;
    ensure_eq(
        "and it stands",
        word(&waiting, "Fenced"),
        "Fenced=True/UnfenceWaiting".to_owned(),
    )?;
    ensure(
        nhc.get(&name).await?.is_some(),
        "NHC does not count the node as healthy yet",
    )?;
    ensure_eq("on the node", node.simulation.log(), before)?;

    // The evidence is to stay for this case to read.
    let keep = Patch::Merge(json!({ "spec": { "recordHistoryLimit": 1 } }));
    let policies = bed.all::<storage_fence::api::StorageFencePolicy>();
    policies
        .patch("sfp-1", &PatchParams::default(), &keep)
        .await?;
    node.give_back();
    nhc.gone(&name).await?;
    let back = bed.requests().get(&record).await?;
    ensure_eq(
        "the record",
        word(&back, "Fenced"),
        "Fenced=False/Unfenced".to_owned(),
    )?;
    let proof = back.status.as_ref().and_then(|s| s.node.as_ref());
    ensure(
        proof.is_some_and(|n| n.volume_groups.iter().any(|g| g.devices_proven > 0)),
        "it keeps the proof of its fence",
    )?;
    let said = back
        .annotations()
        .get(annotation::UNFENCED_FOR)
        .cloned()
        .unwrap_or_default();
    ensure(said.starts_with(&format!("node-health/{name} ")), said)?;
    becomes(bed, &node.name, FENCED, "False").await?;
    ensure_eq("requests", records(bed, &node.name).await?.len(), 1)?;

    // Now it is history, of which the policy wants none. The same volume group stands fenced again: whoever asked for that back on account of the
    // old record would wait for the new one, or worse.
    node.unharmed()?;
    node.paths(0);
    let second = recorded(bed, &node.name).await?.name_any();
    ensure(second != record, "another outage, another record")?;
    let before = node.simulation.log();
    let none = Patch::Merge(json!({ "spec": { "recordHistoryLimit": 0 } }));
    policies
        .patch("sfp-1", &PatchParams::default(), &none)
        .await?;
    bed.forgets(&record).await?;
    let stands = bed.requests().get(&second).await?;
    ensure_eq(
        "the second",
        word(&stands, "Fenced"),
        "Fenced=True/Proven".to_owned(),
    )?;
    ensure_eq("on the node", node.simulation.log(), before)?;
    withdraw(bed, "sfp-1").await?;
    bed.withdraw(&second).await?;
    // The simulation takes any fence of a lockspace that was joined anew for a mistake, so it is not asked again.
    agent.stop().await
}

/// The other way round: the record steps aside until the remediation's own request has its turn, and the remediation rests on that alone.
async fn steps_aside(
    bed: &Bed,
    nhc: &HealthController<'_>,
    node: &TestNode<'_>,
    name: &str,
    record: &str,
) -> Result<StorageFenceRequest> {
    wants(bed, record, "Unfenced").await?;
    let own = until("the request has fenced it too", LIMIT, async || {
        let all = records(bed, &node.name).await?;
        let own = all.iter().find(|r| r.name_any() != record);
        Ok(match own {
            Some(own) if word(own, "Fenced") == "Fenced=True/Proven" => Ok(own.clone()),
            _ => Err(all.iter().map(summary).collect::<Vec<_>>().join("\n")),
        })
    })
    .await?;
    until("it rests on its own request", LIMIT, async || {
        let done = nhc.sees(name, Phase::Succeeded).await?;
        let records = done.status.map(|s| s.records).unwrap_or_default();
        Ok(if records.is_empty() {
            Ok(())
        } else {
            Err(format!("{records:?}"))
        })
    })
    .await?;
    Ok(own)
}

async fn comes_back(bed: &Bed, record: &str) -> Result {
    wants(bed, record, "Fenced").await?;
    bed.sees(record, "it stands", |r| {
        word(r, "Fenced") == "Fenced=True/Proven"
    })
    .await
    .map(drop)
}

async fn wants(bed: &Bed, record: &str, state: &str) -> Result {
    let patch = Patch::Merge(json!({ "spec": { "fenceState": state } }));
    let params = PatchParams::default();
    bed.requests().patch(record, &params, &patch).await?;
    Ok(())
}

/// The record stands again, and the remediation is deleted, before any controller has seen the one or the other.
pub async fn what_stood_at_the_deletion_is_given_back_by_the_next_leader(bed: &Bed) -> Result {
    health::prepare(bed).await?;
    let nhc = HealthController::nhc(bed, "policy-next").await?;
    let (node, agent, record) = fenced_itself(bed, "sfp-5").await?;
    let record = record.name_any();
    let name = nhc.remediate(&node.name).await?.name_any();
    nhc.sees(&name, Phase::Succeeded).await?;
    let own = steps_aside(bed, &nhc, &node, &name, &record).await?;
    bed.controllers.stop_all().await;
    comes_back(bed, &record).await?;
    node.give_back();
    nhc.delete(&name).await?;
    bed.controllers.only_one(bed, "Resident").await?;
    nhc.gone(&name).await?;
    bed.forgets(&own.name_any()).await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    withdraw(bed, "sfp-5").await?;
    agent.stop().await?;
    node.unharmed()
}

/// The same, and by then a person has deleted the remediation's own request: the record keeps that from being given back, and nobody else gives the
/// record back.
pub async fn what_stood_is_given_back_although_a_person_deleted_the_own_request(
    bed: &Bed,
) -> Result {
    health::prepare(bed).await?;
    let nhc = HealthController::nhc(bed, "policy-person").await?;
    let (node, agent, record) = fenced_itself(bed, "sfp-6").await?;
    let record = record.name_any();
    let name = nhc.remediate(&node.name).await?.name_any();
    nhc.sees(&name, Phase::Succeeded).await?;
    let own = steps_aside(bed, &nhc, &node, &name, &record)
        .await?
        .name_any();
    bed.controllers.stop_all().await;
    comes_back(bed, &record).await?;
    bed.requests()
        .delete(&own, &DeleteParams::default())
        .await?;
    node.give_back();
    nhc.delete(&name).await?;
    bed.controllers.only_one(bed, "Resident").await?;
    nhc.gone(&name).await?;
    bed.forgets(&own).await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    withdraw(bed, "sfp-6").await?;
    agent.stop().await?;
    node.unharmed()
}

/// NHC was first, but its request waited for the paths to go; when they went, both the policy and it have fenced the node. Each would keep the
/// other's fence.
pub async fn both_a_request_and_a_record_are_given_back(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "policy-both").await?;
    let (node, agent, record) = fenced_itself(bed, "sfp-2").await?;
    let record = record.name_any();
    let made = nhc.remediate(&node.name).await?;
    let name = made.name_any();
    nhc.sees(&name, Phase::Succeeded).await?;
    let own = steps_aside(bed, &nhc, &node, &name, &record).await?;
    comes_back(bed, &record).await?;
    // Nobody may have noted that it rests on both.
    node.give_back();
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;
    bed.forgets(&own.name_any()).await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    withdraw(bed, "sfp-2").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn what_nhc_gave_up_or_a_person_asked_for_stays_fenced(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "policy-stays").await?;
    let (node, agent, record) = fenced_itself(bed, "sfp-3").await?;
    let name = nhc.remediate(&node.name).await?.name_any();
    nhc.sees(&name, Phase::Succeeded).await?;
    nhc.time_out(&name).await?;
    node.give_back();
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;

    let person = TestNode::join(bed, "sfp-4").await?;
    let persons_agent = person.start_agent().await?;
    bed.ask(
        "a-person",
        &person.name,
        json!({ "deletionPolicy": "Unfence" }),
    )
    .await?;
    bed.settles("a-person", "Fenced", &["Fenced=True/Proven"])
        .await?;
    let name = nhc.remediate(&person.name).await?.name_any();
    let done = nhc.sees(&name, Phase::Succeeded).await?;
    ensure_eq(
        "what it rests on",
        done.status.map(|s| s.records.len()),
        Some(0),
    )?;
    person.give_back();
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;

    for request in [record.name_any().as_str(), "a-person"] {
        let stands = bed.requests().get(request).await?;
        ensure_eq(
            "what is wanted",
            stands.spec.fence_state,
            FenceState::Fenced,
        )?;
        ensure_eq(
            request,
            word(&stands, "Fenced"),
            "Fenced=True/Proven".to_owned(),
        )?;
    }
    for name in [&node.name, &person.name] {
        becomes(bed, name, FENCED, "True").await?;
    }
    bed.withdraw("a-person").await?;
    withdraw(bed, "sfp-3").await?;
    bed.withdraw(&record.name_any()).await?;
    agent.stop().await?;
    persons_agent.stop().await?;
    person.unharmed()?;
    node.unharmed()
}
