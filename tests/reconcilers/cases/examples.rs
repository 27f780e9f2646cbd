//! The examples for node-health controllers: taken by the API server as they are, what they name is there, their times fit the node's, and who acts by
//! them has the node fenced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use storage_fence::api::NodeStorage;

use super::policies::{PATHS, becomes};
use crate::bed::Bed;
use crate::health::{CAPI, HealthController, NHC, Phase, foreign};
use crate::machines::{Look, MachineHealthCheck, is_any};
use crate::node::{TestNode, storage};
use crate::support::process::root;
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

const EXAMPLES: &str = "manifests/examples";
const TEMPLATE: &str = "manifests/examples/remediation-template.yaml";
/// What a policy's documentation leaves for the fence besides the drain.
const MARGIN: Duration = Duration::from_secs(10);

fn health(name: &str) -> String {
    format!("{EXAMPLES}/node-health/{name}.yaml")
}

/// In whatever form Go writes it: `10s`, `4h`, `1m30s`.
fn duration(text: &str) -> Result<Duration> {
    let mut seconds = 0;
    let mut number = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(format!("{text} has a unit that no example needs").into()),
        };
        let n: u64 = std::mem::take(&mut number).parse()?;
        seconds += n * unit;
    }
    ensure(
        number.is_empty() && !text.is_empty(),
        format!("{text} is a duration"),
    )?;
    Ok(Duration::from_secs(seconds))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// The namespace that stands for that of somebody's Machines.
async fn my_cluster(bed: &Bed) -> Result {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "my-cluster", "labels": { crate::node::LABEL: "" } },
    });
    let params = PatchParams::apply("test").force();
    let namespaces = bed.all::<Namespace>();
    namespaces
        .patch("my-cluster", &params, &Patch::Apply(&namespace))
        .await?;
    Ok(())
}

pub async fn every_example_is_taken_as_it_is(bed: &Bed) -> Result {
    my_cluster(bed).await?;
    let mut found = Vec::new();
    files(&root().join(EXAMPLES), &mut found)?;
    ensure(found.len() >= 13, format!("examples: {found:?}"))?;
    // By the server: another case makes one of them at the same time, and kubectl alone looks first and then creates.
    let strictly = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
    ];
    for file in &found {
        let path = file.display().to_string();
        let taken = bed.kubectl(&[&strictly[..], &[&path]].concat()).await?;
        ensure(taken.contains("server dry run"), taken)?;
    }
    // The definitions of others' kinds are ours: they would not help if they took anything.
    for (name, right, wrong) in [
        ("nhc", "maxUnhealthy", "maxUnhealty"),
        ("nhc", "escalatingRemediations", "escalatingRemediation"),
        ("nhc", "timeout: 4h", "timeout: 30s"),
        ("nhc", "order: 2", "order: 1"),
        ("nhc", "duration: 10s", "duration: 10"),
        ("mhc", "unhealthyNodeConditions", "unhealthyConditions"),
        ("mhc", "timeoutSeconds: 10", "timeout: 10s"),
        ("mhc", "templateRef", "remediationTemplate"),
        ("mhc", "spec: {}", "spec: {volumeGroup: san}"),
        (
            "mhc",
            "storagefence.io/v1alpha1\n      kind",
            "storagefence.io\n      kind",
        ),
    ] {
        let text = std::fs::read_to_string(root().join(health(name)))?;
        ensure(text.contains(right), format!("{name} has '{right}'"))?;
        let path = bed.dir().join(format!("{name}-wrong.yaml"));
        std::fs::write(&path, text.replace(right, wrong))?;
        let path = path.display().to_string();
        let refused = bed.try_kubectl(&[&strictly[..], &[&path]].concat()).await?;
        ensure(
            !refused.status.success(),
            format!("{name} with '{wrong}' is refused"),
        )?;
    }
    Ok(())
}

/// A node on which nothing is wrong, and for how long it lives on when its SAN goes.
async fn healthy<'a>(
    bed: &'a Bed,
    name: &str,
) -> Result<(TestNode<'a>, crate::node::RunningAgent, Duration)> {
    let node = TestNode::join_with(bed, name, &storage(2)).await?;
    let agent = node.start_agent().await?;
    becomes(bed, name, PATHS, "True").await?;
    let storage = bed
        .reports(name, "a budget", |s| budget(s).is_some())
        .await?;
    let budget = budget(&storage).context("no budget")?;
    Ok((node, agent, budget))
}

fn budget(storage: &NodeStorage) -> Option<Duration> {
    let watchdog = storage.status.as_ref()?.watchdog.as_ref()?;
    let seconds = u64::try_from(watchdog.budget_seconds?).ok()?;
    Some(Duration::from_secs(seconds))
}

/// What the documents say of the time that a health controller may wait: what is left after it is enough for a fence.
fn fits(wait: Duration, drain: i32, budget: Duration) -> Result {
    let drain = Duration::from_secs(u64::try_from(drain)?);
    let text =
        format!("{wait:?} of waiting, {drain:?} of draining and {MARGIN:?} fit into {budget:?}");
    ensure(wait + drain + MARGIN < budget, text)
}

pub async fn the_nhc_example_does_what_it_says(bed: &Bed) -> Result {
    let (file, check) = (health("nhc"), "san-paths");
    bed.kubectl(&["apply", "-f", TEMPLATE, "-f", &file]).await?;
    let checks = foreign(&bed.client, NHC, "NodeHealthCheck", None);
    let check = checks.get(check).await?;
    let spec = &check.data["spec"];
    // An array outage hits every node at once.
    ensure_eq("short circuit", spec["maxUnhealthy"].clone(), json!("100%"))?;
    let mut steps = spec["escalatingRemediations"]
        .as_array()
        .cloned()
        .context("no steps")?;
    steps.sort_by_key(|step| step["order"].as_i64());
    let first = &steps[0];
    let lasts = duration(first["timeout"].as_str().unwrap_or_default())?;
    ensure(
        lasts >= Duration::from_hours(1),
        format!("{lasts:?} are hours"),
    )?;
    ensure(steps.len() > 1, "it escalates")?;
    let reference = &first["remediationTemplate"];
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let namespace = text("namespace");
    let nhc = HealthController::of(bed, "nhc", namespace, text("name"), Some(check.clone()))?;
    // What it names is there under that name, as NHC finds it.
    let template = foreign(
        &nhc.client,
        text("apiVersion"),
        text("kind"),
        Some(namespace),
    )
    .get(text("name"))
    .await?;
    let drain = template.data["spec"]["template"]["spec"]["drainTimeoutSeconds"].as_i64();
    let drain = i32::try_from(drain.context("no default")?)?;

    let (node, agent, budget) = healthy(bed, "nhc-example").await?;
    let unhealthy = conditions(&check)?;
    for (type_, _, wait) in &unhealthy {
        ensure_eq("the condition", type_.as_str(), PATHS)?;
        fits(*wait, drain, budget)?;
    }
    let selector: Selector = serde_json::from_value::<
        k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    >(spec["selector"].clone())?
    .try_into()?;
    let stored = bed.all::<Node>().get(&node.name).await?;
    ensure(
        selector.matches(stored.labels()),
        "it selects a node that is no control plane",
    )?;
    let mut master = stored.labels().clone();
    master.insert(
        "node-role.kubernetes.io/control-plane".into(),
        String::new(),
    );
    ensure(!selector.matches(&master), "and none that is")?;
    ensure(!is_any(&stored, &unhealthy), "it finds nothing wrong")?;

    node.paths(0);
    let began = Instant::now();
    finds_unhealthy(bed, &node.name, &unhealthy).await?;
    // Conditions have whole seconds.
    let waited = began.elapsed() + Duration::from_secs(1);
    ensure(waited > unhealthy[0].2, format!("after {waited:?}"))?;
    let name = nhc.remediate(&node.name).await?.name_any();
    nhc.sees(&name, Phase::Succeeded).await?;
    ensure(node.count("drop_vg san") == 1, "and so it was on the node")?;
    node.give_back();
    becomes(bed, &node.name, PATHS, "True").await?;
    let stored = bed.all::<Node>().get(&node.name).await?;
    ensure(
        !is_any(&stored, &unhealthy),
        "it finds the node well again, below the fence",
    )?;
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;
    bed.kubectl(&["delete", "-f", TEMPLATE, "-f", &file])
        .await?;
    agent.stop().await?;
    node.unharmed()
}

/// NHC's conditions: type, status, time.
fn conditions(check: &DynamicObject) -> Result<Vec<(String, String, Duration)>> {
    let all = check.data["spec"]["unhealthyConditions"].as_array();
    let condition = |c: &Value| -> Result<_> {
        let text = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
        Ok((text("type"), text("status"), duration(&text("duration"))?))
    };
    all.context("no conditions")?
        .iter()
        .map(condition)
        .collect()
}

async fn finds_unhealthy(
    bed: &Bed,
    node: &str,
    conditions: &[(String, String, Duration)],
) -> Result {
    until(&format!("{node} is unhealthy"), LIMIT, async || {
        let stored = bed.all::<Node>().get(node).await?;
        let has = stored.status.as_ref().and_then(|s| s.conditions.clone());
        Ok(if is_any(&stored, conditions) {
            Ok(())
        } else {
            Err(format!("{has:?}"))
        })
    })
    .await
}

pub async fn the_mhc_example_does_what_it_says(bed: &Bed) -> Result {
    my_cluster(bed).await?;
    let file = health("mhc");
    bed.kubectl(&["apply", "-f", &file]).await?;
    let checks = foreign(&bed.client, CAPI, "MachineHealthCheck", Some("my-cluster"));
    let check = checks.get("san-paths").await?;
    let spec = check.data["spec"].clone();
    let most = &spec["remediation"]["triggerIf"]["unhealthyLessThanOrEqualTo"];
    ensure_eq("short circuit", most.clone(), json!("100%"))?;
    let mhc = MachineHealthCheck::by(bed, check)?;
    let (node, agent, budget) = healthy(bed, "mhc-example").await?;
    for (type_, _, wait) in mhc.conditions()? {
        ensure_eq("the condition", type_.as_str(), PATHS)?;
        fits(wait, 60, budget)?;
    }
    let labels = &spec["selector"]["matchLabels"];
    mhc.machine("machine-x", Some(&node.name), labels).await?;
    ensure_eq(
        "a node that is well",
        mhc.look("machine-x").await?,
        Look::Healthy,
    )?;
    node.paths(0);
    // It would be NoTemplate if what it names were elsewhere.
    mhc.comes_to("machine-x", &Look::Made).await?;
    let done = mhc.controller.sees("machine-x", Phase::Succeeded).await?;
    ensure_eq("its drain", done.spec.drain_timeout_seconds, 60)?;
    node.give_back();
    mhc.comes_to("machine-x", &Look::Deleted).await?;
    mhc.controller.gone("machine-x").await?;
    bed.kubectl(&["delete", "-f", &file]).await?;
    agent.stop().await?;
    node.unharmed()
}

/// What node-problem-detector checks when it starts, what it runs, and what its condition sets off.
pub async fn the_node_problem_detector_example_does_what_it_says(bed: &Bed) -> Result {
    let file = health("node-problem-detector");
    bed.kubectl(&["apply", "-f", &file]).await?;
    let maps = Api::<ConfigMap>::namespaced(bed.client.clone(), "kube-system");
    let data = maps
        .get("node-problem-detector-san")
        .await?
        .data
        .unwrap_or_default();
    let config: Value = serde_json::from_str(data.get("san-paths.json").context("no config")?)?;
    ensure_eq("plugin", config["plugin"].as_str(), Some("custom"))?;
    let conditions = config["conditions"].as_array().context("no conditions")?;
    let rules = config["rules"].as_array().context("no rules")?;
    ensure_eq("rules", rules.len(), 1)?;
    let rule = &rules[0];
    ensure_eq("type of the rule", rule["type"].as_str(), Some("permanent"))?;
    ensure(
        conditions.iter().any(|c| c["type"] == rule["condition"]),
        "the condition has a default, without which the detector does not start",
    )?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let every = duration(&text(&config["pluginConfig"]["invoke_interval"]))?;
    let limit = duration(&text(&config["pluginConfig"]["timeout"]))?;
    let (node, agent, budget) = healthy(bed, "npd-example").await?;
    // It turns, then NHC waits as its example says.
    fits(every + limit + Duration::from_secs(10), 60, budget)?;

    // A ConfigMap's files cannot be executed as they are mounted by default: the program is the shell.
    let program = text(&rule["path"]);
    ensure_eq("program", program.as_str(), "/bin/sh")?;
    let script = text(&rule["args"][0]);
    let (mount, key) = script.rsplit_once('/').context("no path")?;
    ensure(mount != "/config", "that is the detector's own folder")?;
    let header: String = std::fs::read_to_string(root().join(&file))?;
    ensure(
        header.contains(&format!("at {mount} ")),
        format!("the comment says to mount it at {mount}"),
    )?;
    let flag = format!("--config.custom-plugin-monitor={mount}/san-paths.json");
    ensure(header.contains(&flag), flag)?;
    let script = data
        .get(key)
        .context("the script is not in the ConfigMap")?;
    runs(bed, &program, script)?;

    // Its condition has the node fenced like any other, by NHC or by a policy.
    let lost = text(&rule["condition"]);
    ensure(
        header.contains(&format!("type {lost}, status \"True\"")),
        "NHC's condition is named",
    )?;
    node.paths(0);
    node.says(&lost, "True").await?;
    finds_unhealthy(
        bed,
        &node.name,
        &[(lost, "True".to_owned(), Duration::ZERO)],
    )
    .await?;
    bed.kubectl(&["delete", "-f", &file]).await?;
    agent.stop().await?;
    node.unharmed()
}

/// Runs the script on what dmsetup prints: its code and its first line, which is what the detector takes.
fn runs(bed: &Bed, program: &str, script: &str) -> Result {
    let folder = bed.dir().join("san-paths");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("san-paths.sh");
    std::fs::write(&path, script)?;
    // Stands for the host's: `nsenter --target 1 --mount -- dmsetup status --target multipath`.
    let nsenter = folder.join("nsenter");
    std::fs::write(
        &nsenter,
        "#!/bin/sh\n[ \"$*\" = '--target 1 --mount -- dmsetup status --target multipath' ] || exit 9\n[ -n \"$STATUS\" ] || exit 1\nprintf '%s' \"$STATUS\"\n",
    )?;
    std::fs::set_permissions(
        &nsenter,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let search = format!(
        "{}:{}",
        folder.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let map = |name: &str, paths: [&str; 2]| {
        format!(
            "{name}: 0 2097152 multipath 2 0 1 0 2 1 A 0 1 2 8:16 {} 0 0 1 E 0 1 2 8:32 {} 1 0 1 \n",
            paths[0], paths[1]
        )
    };
    let cases = BTreeMap::from([
        (
            "all work",
            (
                map("mpatha", ["A", "A"]),
                0,
                "every multipath map has a working path",
            ),
        ),
        (
            "one is lost",
            (
                map("mpatha", ["F", "A"]),
                0,
                "every multipath map has a working path",
            ),
        ),
        (
            "none is left",
            (map("mpatha", ["F", "F"]), 1, "no path left: mpatha"),
        ),
        (
            "of one of two maps",
            (
                map("mpatha", ["A", "A"]) + &map("mpathb", ["F", "F"]),
                1,
                "no path left: mpathb",
            ),
        ),
        (
            "their disks are gone",
            (
                map("mpatha", ["A", "A"]) + "mpathb: 0 2097152 multipath 2 0 0 0 0 0 \n",
                1,
                "no path left: mpathb",
            ),
        ),
        (
            "no maps",
            (
                "No devices found\n".to_owned(),
                0,
                "every multipath map has a working path",
            ),
        ),
        (
            "it does not answer",
            (String::new(), 2, "dmsetup does not answer"),
        ),
    ]);
    for (what, (status, code, says)) in cases {
        let mut command = Command::new(program);
        command
            .arg(&path)
            .env("PATH", &search)
            .env("STATUS", status);
        let ran = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
        let text = format!("{what}: {said} {}", String::from_utf8_lossy(&ran.stderr));
        ensure(ran.status.code() == Some(code) && said == says, text)?;
    }
    Ok(())
}
