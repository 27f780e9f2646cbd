//! How quickly, and for how many requests to the API server. The figures are printed; docs/measurements.md has them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{WatchEvent, WatchParams};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::json;

use crate::bed::Bed;
use crate::controller::AGENT_TIMEOUT;
use crate::node::{RunningAgent, TestNode, storage};
use crate::support::progress::say;
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, until};

/// What is not missed on the slowest machine; the goal is far below.
const FIRST_STEP_LIMIT: Duration = Duration::from_secs(10);
const ROUNDS: usize = 5;
/// Longer than any pause of ours but the agents' watch, which is opened anew after two minutes.
const IDLE: Duration = Duration::from_mins(1);

pub async fn with_agents<'a>(
    bed: &'a Bed,
    name: &str,
    count: usize,
    paths: u32,
    observe: u32,
) -> Result<Vec<(TestNode<'a>, RunningAgent)>> {
    let join = |n: usize| async move {
        let mut node = TestNode::join_with(bed, &format!("{name}-{n}"), &storage(paths)).await?;
        node.observe = observe;
        let agent = node.start_agent().await?;
        bed.reports(&node.name, "it is there", |s| s.status.is_some())
            .await?;
        Ok((node, agent))
    };
    let joined: Vec<Result<_>> = futures::future::join_all((0..count).map(join)).await;
    joined.into_iter().collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// From `kubectl apply` to the agent's first step, and to the status that tells of it.
pub async fn the_first_step_comes_at_once(bed: &Bed) -> Result {
    let nodes = with_agents(bed, "speed", ROUNDS, 0, 1).await?;
    let (mut applied, mut begun, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for (node, _) in &nodes {
        let yaml = json!({
            "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
            "metadata": { "name": node.name }, "spec": { "nodeName": node.name },
        });
        let file = bed.dir().join(format!("{}.yaml", node.name));
        std::fs::write(&file, yaml.to_string())?;
        let requests = bed.requests();
        let of_it = WatchParams::default()
            .fields(&format!("metadata.name={}", node.name))
            .timeout(120);
        let newest = requests
            .list(&kube::api::ListParams::default().limit(1))
            .await?;
        let from = newest.metadata.resource_version.context("no version")?;
        let mut watch = std::pin::pin!(requests.watch(&of_it, &from).await?.boxed());
        let typed = Timestamp::now();
        let (out, seen) = tokio::join!(
            async {
                let out = bed
                    .kubectl(&["apply", "-f", &file.display().to_string()])
                    .await;
                (out, Timestamp::now())
            },
            async {
                while let Some(event) = watch.next().await {
                    if let WatchEvent::Added(r) | WatchEvent::Modified(r) = event?
                        && let Some(step) = r.status.and_then(|s| s.node?.started_at)
                    {
                        return Result::Ok((step, Timestamp::now()));
                    }
                }
                Err("the watch ended before the first step".into())
            },
        );
        let (first_step, seen) = seen?;
        let since = |t: Timestamp| Duration::try_from(t.duration_since(typed)).unwrap_or_default();
        out.0?;
        applied.push(since(out.1));
        begun.push(since(first_step));
        told.push(since(seen));
        bed.settles(&node.name, "Fenced", &["Fenced=True/Proven"])
            .await?;
        bed.withdraw(&node.name).await?;
    }
    let (applied, begun, told) = (median(applied), median(begun), median(told));
    say(format!(
        "measured: kubectl apply, from the start of kubectl: {} ms to the agent's first step, {} ms until its status is seen, \
         {} ms until kubectl has ended (medians of {ROUNDS}; goal: 300 ms to the first step)",
        begun.as_millis(),
        told.as_millis(),
        applied.as_millis()
    ));
    for (_, agent) in nodes {
        agent.stop().await?;
    }
    ensure(
        begun < FIRST_STEP_LIMIT,
        format!("the first step within {FIRST_STEP_LIMIT:?}: {begun:?}"),
    )
}

/// Requests that a schema has let through to a level so far.
async fn dispatched(bed: &Bed, schema: &str, level: &str) -> Result<u64> {
    let metrics = bed.kubectl(&["get", "--raw", "/metrics"]).await?;
    let of = |l: &&str| {
        l.starts_with("apiserver_flowcontrol_dispatched_requests_total{")
            && l.contains(&format!("flow_schema=\"{schema}\""))
            && l.contains(&format!("priority_level=\"{level}\""))
    };
    let counts = metrics
        .lines()
        .filter(of)
        .filter_map(|l| l.rsplit(' ').next());
    Ok(counts.filter_map(|n| n.parse::<u64>().ok()).sum())
}

/// On the night of an outage everybody asks the API server.
pub async fn ours_are_served_before_what_pods_ask(bed: &Bed) -> Result {
    let of_ours = async || {
        Result::Ok([
            dispatched(bed, "storage-fence-leases", "leader-election").await?,
            dispatched(bed, "storage-fence", "workload-high").await?,
        ])
    };
    let before = of_ours().await?;
    let nodes = with_agents(bed, "served", 1, 2, 1).await?;
    until("leases and reports are served first", LIMIT, async || {
        let after = of_ours().await?;
        let grown = before.iter().zip(&after).all(|(b, a)| a > b);
        Ok(if grown {
            Ok(())
        } else {
            Err(format!("{after:?}"))
        })
    })
    .await?;
    for (_, agent) in nodes {
        agent.stop().await?;
    }
    Ok(())
}

/// Requests that the API server has answered so far, by group, resource and verb.
pub async fn answered(bed: &Bed) -> Result<BTreeMap<String, u64>> {
    let metrics = bed.kubectl(&["get", "--raw", "/metrics"]).await?;
    let mut requests = BTreeMap::new();
    for line in metrics
        .lines()
        .filter(|l| l.starts_with("apiserver_request_total{"))
    {
        let label = |name: &str| {
            let rest = line.split(&format!("{name}=\"")).nth(1).unwrap_or_default();
            rest.split('"').next().unwrap_or_default().to_owned()
        };
        // With what comes before it: `subresource` ends in the name of another.
        let key = format!(
            "{}/{} {}",
            label(",group"),
            label(",resource"),
            label(",verb")
        );
        let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a counter"
        )]
        let count = count as u64;
        *requests.entry(key).or_default() += count;
    }
    Ok(requests)
}

/// What the agents and the only controller have asked of the API server so far, by who, purpose, method and status. Renewals of the leader's lease apart:
/// they are as many for one node as for a thousand.
async fn asked(
    bed: &Bed,
    nodes: &[(TestNode<'_>, RunningAgent)],
) -> Result<(BTreeMap<String, u64>, u64)> {
    let mut asked = BTreeMap::new();
    let mut leases = 0;
    for (labels, count) in bed.controllers.calls().await? {
        if labels.contains("purpose=\"lease\"") {
            leases += count;
        } else {
            asked.insert(format!("controller {labels}"), count);
        }
    }
    for (node, agent) in nodes {
        let calls = agent.calls()?;
        let all: u64 = calls.values().sum();
        // Its watches, its reports, its conditions.
        ensure(all >= 6, format!("{}: it is counted: {calls:?}", node.name))?;
        for (labels, count) in calls {
            *asked.entry(format!("agents {labels}")).or_default() += count;
        }
    }
    Ok((asked, leases))
}

/// What has grown between two looks, and by how much.
pub fn grown(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let more = after.iter().map(|(key, n)| {
        let n = n - before.get(key).copied().unwrap_or_default();
        (key.clone(), n)
    });
    more.filter(|(_, n)| *n > 0).collect()
}

/// Counted twice: by our clients, whatever they ask for; and by the API server, whoever asks for what is ours.
pub async fn an_idle_cluster_is_left_alone(bed: &Bed) -> Result {
    const NODES: usize = 6;
    // Its watches are as young as the agents': none is opened anew in this minute.
    bed.controllers.only_one(bed, "Resident").await?;
    let nodes = with_agents(bed, "idle", NODES, 2, 1).await?;
    // Nothing changes: the leases are renewed, too.
    let pass = async |span: Duration| {
        let began = Instant::now();
        while began.elapsed() < span {
            for (node, _) in &nodes {
                node.renew();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    // Whatever the start still has to say is said: a new leader looks once at each Node of other cases whose agent is gone, when it has waited for it.
    pass(AGENT_TIMEOUT + Duration::from_secs(10)).await;
    let before = answered(bed).await?;
    let (asked_before, leases_before) = asked(bed, &nodes).await?;
    let counts = before.get("storagefence.io/nodestorages APPLY").copied();
    ensure(
        counts.unwrap_or_default() >= 2 * NODES as u64,
        format!("the reports were counted: {counts:?}"),
    )?;
    let computed = computed()?;
    pass(IDLE).await;
    let computed = self::computed()?.saturating_sub(computed);
    let after = answered(bed).await?;
    let (asked_after, leases) = asked(bed, &nodes).await?;
    let leases = leases - leases_before;
    let mut seen = grown(&before, &after);
    seen.retain(|key, _| key.starts_with("storagefence.io/"));
    let ours = grown(&asked_before, &asked_after);
    let minutes = IDLE.as_secs_f64() / 60.0;
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let a_node_and_minute = |counts: &BTreeMap<String, u64>| {
        counts.values().sum::<u64>() as f64 / NODES as f64 / minutes
    };
    let (asked, seen_of_ours) = (a_node_and_minute(&ours), a_node_and_minute(&seen));
    say(format!(
        "measured: {NODES} idle nodes for {} s: {asked:.2} requests a node and minute of agents and controller ({ours:?}); the API server saw \
         {seen_of_ours:.2} to storagefence.io, whoever asked ({seen:?}); {leases} calls for the leader's lease for the whole cluster (goal: 1 a \
         node and minute)",
        IDLE.as_secs()
    ));
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let share = 100.0 * computed.as_secs_f64() / IDLE.as_secs_f64() / NODES as f64;
    say(format!(
        "measured: {share:.2} % of a core a node, with its part of controllers and test bed, whose CPU time counts here too (a build without \
         optimization, simulated devices; goal: 0.5 % for an agent)"
    ));
    for (node, agent) in nodes {
        node.untouched()?;
        agent.stop().await?;
    }
    ensure(
        asked <= 1.0 && seen_of_ours <= 1.0,
        format!("at most one request a node and minute: {ours:?}; {seen:?}"),
    )?;
    // One every 2 s, and one more at either end.
    ensure(
        leases <= IDLE.as_secs() / 2 + 2,
        format!("calls for the leader's lease: {leases}"),
    )
}

/// CPU time of this process so far, in which the agents and the controllers run.
fn computed() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let both = usage.user_time() + usage.system_time();
    let micros = u64::try_from(both.num_microseconds()).unwrap_or_default();
    Ok(Duration::from_micros(micros))
}
