//! The command line of the agent.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::journal::DEFAULT_DIRECTORY;

/// Options of `storage-fence agent`. Each can be given by its environment variable too.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Name of the Node object that this node is.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Name of the agent's pod, for its NodeStorage and its events.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// UID of the agent's pod.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// Where to serve /healthz, /readyz and /metrics. The agent lives in the host's network: on the loopback only the node itself reaches it, and
    /// the kubelet is the node itself.
    #[arg(long, env = "HEALTH_LISTEN", default_value = "127.0.0.1:9871")]
    pub health_listen: SocketAddr,
    /// Folder of the journal: on a tmpfs of the host, so that it outlives the agent but not the kernel.
    #[arg(long, env = "STATE_DIRECTORY", default_value = DEFAULT_DIRECTORY)]
    pub state_directory: PathBuf,
    /// Seconds between two looks at the node. A request that waits for its paths to go is looked at every second.
    #[arg(long, env = "OBSERVE_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub observe_seconds: u32,
    /// The kill hook on the host.
    #[command(flatten)]
    pub kill_hook: super::hook::watch::Options,
}

impl Options {
    /// What the agent's events are said to come from.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.pod_name.as_deref().unwrap_or(&self.node_name)
    }

    /// `NAME (UID)` of the pod.
    #[must_use]
    pub fn pod(&self) -> Option<String> {
        let name = self.pod_name.as_ref()?;
        Some(match &self.pod_uid {
            Some(uid) => format!("{name} ({uid})"),
            None => name.clone(),
        })
    }
}
