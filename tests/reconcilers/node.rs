//! A node that has everything but a kubelet and a kernel: a Node object, the DaemonSet's pod as the scheduler placed it, and the real agent on a
//! simulated host, with the token that a kubelet would put into the pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Config, ResourceExt};
use prometheus_client::registry::Registry;
use serde_json::json;
use storage_fence::agent::{self, Agent};
use storage_fence::fence::Monotonic;
use storage_fence::host::simulated::{Group, InFlight, Layout, Simulation, Under, uuid_of};
use storage_fence::kubernetes::client::Calls;
use tokio_util::sync::CancellationToken;

use crate::bed::Bed;
use crate::controller::counts;
use crate::support::{Context, Result};
use crate::wait::{LIMIT, until};

/// On every Node made here.
pub const LABEL: &str = "storagefence.io/test";
const AGENT_POD: &str = "app.kubernetes.io/component=agent";

/// A node.
pub struct TestNode<'a> {
    /// Its name.
    pub name: String,
    /// Its devices and daemons.
    pub simulation: Simulation,
    /// Seconds between the agent's looks that nothing asks for.
    pub observe: u32,
    bed: &'a Bed,
    state: PathBuf,
}

/// A shared volume group `san` whose two paths work or not, beside a local one.
pub fn storage(active_paths: u32) -> Layout {
    let under = vec![Under::Map {
        active: active_paths,
        queueing: true,
    }];
    let local = Group {
        under: vec![Under::Disk(true)],
        ..Group::bystander("local", false)
    };
    let san = Group {
        under,
        renewed_ago: 0,
        ..Group::target("san")
    };
    Layout {
        groups: vec![san, local],
    }
}

impl<'a> TestNode<'a> {
    /// A Node joins that has lost the SAN.
    pub async fn join(bed: &'a Bed, name: &str) -> Result<Self> {
        Self::join_with(bed, name, &storage(0)).await
    }

    /// A Node joins that has this storage.
    pub async fn join_with(bed: &'a Bed, name: &str, layout: &Layout) -> Result<Self> {
        let nodes = bed.all::<Node>();
        let node = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "labels": { LABEL: "", "kubernetes.io/os": "linux", "kubernetes.io/hostname": name },
            },
            // For the agent's pods alone, which tolerate everything.
            "spec": { "taints": [{ "key": LABEL, "effect": "NoSchedule" }] },
        }))?;
        nodes.create(&PostParams::default(), &node).await?;
        let room = json!({ "cpu": "8", "memory": "16Gi", "pods": "110" });
        let status = json!({ "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Test" }],
        }});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
            .await?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            name: name.to_owned(),
            simulation: Simulation::in_real_time(layout),
            observe: 1,
            bed,
            state: bed.dir().join(format!("state-{number}")),
        })
    }

    /// The agent's pod on this node, once the scheduler has placed it.
    pub async fn pod(&self) -> Result<Option<Pod>> {
        let pods = self.bed.ours::<Pod>();
        let of_this_node = ListParams::default()
            .labels(AGENT_POD)
            .fields(&format!("spec.nodeName={}", self.name));
        let pods = pods.list(&of_this_node).await?;
        Ok(pods
            .into_iter()
            .find(|p| p.metadata.deletion_timestamp.is_none()))
    }

    /// What the kubelet does: takes the pod that was placed here and says that it runs.
    pub async fn run_pod(&self) -> Result<Pod> {
        let pod = until(
            &format!("a pod of the agent is on node {}", self.name),
            LIMIT,
            async || Ok(self.pod().await?.ok_or_else(|| "none is".to_owned())),
        )
        .await?;
        let status = json!({ "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let name = pod.name_any();
        let pods = self.bed.ours::<Pod>();
        pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status))
            .await?;
        Ok(pod)
    }

    /// What the kubelet does with a pod that is to go.
    pub async fn end_pod(&self, pod: &Pod) -> Result {
        let now = DeleteParams::default().grace_period(0);
        self.bed.ours::<Pod>().delete(&pod.name_any(), &now).await?;
        Ok(())
    }

    /// The agent starts in its pod.
    pub async fn start_agent(&self) -> Result<RunningAgent> {
        let pod = self.run_pod().await?;
        let token = self.bed.token("storage-fence-agent", Some(&pod)).await?;
        self.start_agent_with(self.bed.access(&token)?, &pod)
    }

    /// The same with other credentials.
    pub fn start_agent_with(&self, access: Config, pod: &Pod) -> Result<RunningAgent> {
        let options = AgentLine::try_parse_from([
            "agent",
            "--node-name",
            &self.name,
            "--pod-name",
            &pod.name_any(),
            "--pod-uid",
            &pod.uid().unwrap_or_default(),
            "--health-listen",
            "127.0.0.1:0",
            "--observe-seconds",
            &self.observe.to_string(),
            "--state-directory",
            &self.state.display().to_string(),
        ])?
        .options;
        RunningAgent::start(options, access, self.simulation.clone())
    }

    /// I/O that was issued to a volume does not end: a fence that begins now stands in the middle until [`TestNode::let_go`].
    pub fn hold(&self) {
        // The watchdog's time begins to run now, so that the case has as much of it as there is.
        self.renew();
        self.simulation.state(|state| {
            if let Some(device) = state.device("san-lv0") {
                device.in_flight = InFlight::Forever;
            }
        });
    }

    /// The leases are renewed, as sanlock does again and again where the SAN is there.
    pub fn renew(&self) {
        let now = Monotonic(self.simulation.now());
        self.simulation.state(|state| {
            for lockspace in &mut state.lockspaces {
                lockspace.lockspace.last_renewal = Some(now);
            }
        });
    }

    /// The I/O ends.
    pub fn let_go(&self) {
        self.simulation.state(|state| {
            if let Some(device) = state.device("san-lv0") {
                device.in_flight = InFlight::None;
            }
        });
    }

    /// So many of the two paths work from now on.
    pub fn paths(&self, active: u32) {
        self.simulation.state(|state| {
            if let Some(map) = state.device("mpath-san-0") {
                map.active_paths = active;
            }
        });
    }

    /// Somebody (a health check, say) sets a condition of the Node, as of now.
    pub async fn says(&self, type_: &str, status: &str) -> Result {
        // Whole seconds, as everywhere in Kubernetes.
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?;
        let condition = json!({
            "type": type_, "status": status, "reason": "Test", "lastTransitionTime": now.to_string(),
        });
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        let nodes = self.bed.all::<Node>();
        nodes
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// The SAN is back, and what had the volumes open has seen its errors and ended.
    pub fn give_back(&self) {
        self.paths(2);
        self.simulation.state(|state| {
            let volumes = state.devices.values_mut();
            for device in volumes.filter(|d| d.dm.name.starts_with("san-")) {
                device.dm.open_count = 0;
            }
        });
    }

    /// Waits until the lockspace is gone, whatever the API server says.
    pub async fn releases(&self) -> Result {
        let uuid = uuid_of("san");
        until(
            &format!("node {} has let go of the lockspace", self.name),
            LIMIT,
            async || {
                let held = self.simulation.state(|s| s.held(&uuid));
                Ok(if held {
                    Err("it is held".to_owned())
                } else {
                    Ok(())
                })
            },
        )
        .await
    }

    /// Nothing on the node was changed, and nothing that must not be.
    pub fn untouched(&self) -> Result {
        let log = self.simulation.log();
        if !log.is_empty() {
            return Err(format!("node {} was touched: {log:?}", self.name).into());
        }
        self.unharmed()
    }

    /// Nothing was done that must never be.
    pub fn unharmed(&self) -> Result {
        let violations = self.simulation.violations();
        if violations.is_empty() {
            return Ok(());
        }
        Err(format!("on node {}: {violations:?}", self.name).into())
    }

    /// How often something was done on the node.
    pub fn count(&self, what: &str) -> usize {
        self.simulation.log().iter().filter(|l| *l == what).count()
    }
}

impl Drop for TestNode<'_> {
    fn drop(&mut self) {
        self.simulation.end();
    }
}

/// Every node's agent has a journal of its own.
static NUMBER: AtomicU32 = AtomicU32::new(0);

#[derive(Parser)]
struct AgentLine {
    #[command(flatten)]
    options: agent::Options,
}

/// An agent at work, on a thread and a runtime of its own as in its process. Dropped, it is killed.
pub struct RunningAgent {
    simulation: Simulation,
    calls: Calls,
    stop: CancellationToken,
    killed: CancellationToken,
    thread: Option<JoinHandle<std::result::Result<(), agent::Error>>>,
}

impl RunningAgent {
    fn start(options: agent::Options, access: Config, simulation: Simulation) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, killed) = (CancellationToken::new(), CancellationToken::new());
        let (host, stopped, dead) = (simulation.host(), stop.clone(), killed.clone());
        let (tell_calls, told_calls) = std::sync::mpsc::channel();
        let work = move || {
            let ended = runtime.block_on(async {
                let agent = Agent::start(options, host)?;
                let _ = tell_calls.send(agent.api_calls());
                tokio::select! {
                    ended = agent.run_until(&access, stopped) => ended,
                    () = dead.cancelled() => Ok(()),
                }
            });
            runtime.shutdown_background();
            ended
        };
        let thread = std::thread::Builder::new()
            .name("agent".into())
            .spawn(work)?;
        let calls = told_calls.recv().context("the agent does not start")?;
        Ok(Self {
            simulation,
            calls,
            stop,
            killed,
            thread: Some(thread),
        })
    }

    /// What it has asked of the API server so far, by purpose, method and status.
    pub fn calls(&self) -> Result<BTreeMap<String, u64>> {
        let mut registry = Registry::default();
        self.calls.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(counts(&text, "api_calls_total{"))
    }

    /// kill -9: it ends wherever it is, also its fence's threads. Then another may be started on the node.
    pub async fn kill(mut self) -> Result {
        // The node's state stays as it is; calls into it do not come back.
        self.simulation.end();
        self.killed.cancel();
        let thread = self.thread.take().context("the agent's thread")?;
        let simulation = self.simulation.clone();
        tokio::task::spawn_blocking(move || {
            // That its fence's thread died may be the last that it heard.
            let _ = thread.join();
            simulation.restart_agent();
        })
        .await?;
        Ok(())
    }

    /// SIGTERM, and it has to end well.
    pub async fn stop(mut self) -> Result {
        self.stop.cancel();
        let thread = self.thread.take().context("the agent's thread")?;
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let joined = tokio::time::timeout(Duration::from_mins(1), joined)
            .await
            .context("the agent does not end")??;
        joined.map_err(|_| "the agent panicked")??;
        Ok(())
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.killed.cancel();
    }
}
