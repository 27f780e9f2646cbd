//! How many records of fences that are over are kept.

use kube::ResourceExt;
use serde_json::json;

use super::policies::{PATHS, becomes, in_force, records, withdraw};
use crate::bed::Bed;
use crate::node::{TestNode, storage};
use crate::objects::{summary, word};
use crate::support::Result;
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// Three outages, of which a policy only plans what it would do: each is recorded, and the oldest record goes when the third comes.
pub async fn as_many_records_stay_as_the_policy_says(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "past-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let two = json!({ "dryRun": true, "recordHistoryLimit": 2 });
    in_force(bed, "past", &node.name, &two).await?;
    // A person's dry run is no record, however old it is.
    bed.ask("past-mine", &node.name, json!({ "dryRun": true }))
        .await?;
    let mut known: Vec<String> = vec!["past-mine".to_owned()];
    for outage in 1..=3 {
        becomes(bed, &node.name, PATHS, "True").await?;
        node.paths(0);
        let new = until(&format!("outage {outage} is recorded"), LIMIT, async || {
            let all = records(bed, &node.name).await?;
            let new = all.iter().find(|r| {
                !known.contains(&r.name_any()) && word(r, "Fenced") == "Fenced=False/DryRun"
            });
            Ok(new.map_or_else(
                || Err(all.iter().map(summary).collect::<Vec<_>>().join("\n")),
                |new| Ok(new.name_any()),
            ))
        })
        .await?;
        known.push(new);
        node.paths(2);
    }
    let stay: Vec<String> = until("the oldest record goes", LIMIT, async || {
        let all = records(bed, &node.name).await?;
        let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        Ok(if names.contains(&known[1]) {
            Err(format!("{names:?}"))
        } else {
            Ok(names)
        })
    })
    .await?;
    ensure_eq("requests that stay", stay.len(), 3)?;
    ensure(
        [&known[0], &known[2], &known[3]]
            .iter()
            .all(|name| stay.contains(name)),
        format!("the youngest two and the person's: {stay:?} of {known:?}"),
    )?;
    bed.withdraw("past-mine").await?;
    withdraw(bed, "past").await?;
    agent.stop().await?;
    node.untouched()
}
