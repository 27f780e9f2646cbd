//! The command line of the controller.

use std::net::SocketAddr;
use std::time::Duration;

use super::facts::{AgentMode, Settings};

/// Options of `storage-fence controller`. Each can be given by its environment variable too.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How agents come to nodes.
    #[arg(
        long,
        env = "AGENT_MODE",
        value_enum,
        ignore_case = true,
        default_value_t
    )]
    pub agent_mode: AgentMode,
    /// How long an agent may take to answer before AgentReady says NoAgent, in seconds.
    #[arg(long, env = "AGENT_TIMEOUT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub agent_timeout_seconds: u32,
    /// Labels of the agents' pods, in the controller's namespace.
    #[arg(
        long,
        env = "AGENT_SELECTOR",
        default_value = "app.kubernetes.io/name=storage-fence-operator,app.kubernetes.io/component=agent"
    )]
    pub agent_selector: String,
    /// Namespace of the controller, its lease and the agents' pods.
    #[arg(long, env = "POD_NAMESPACE", default_value = "storage-fence")]
    pub namespace: String,
    /// Name of this replica, as the lease shows it. Default: the host's name.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, env = "HEALTH_LISTEN", default_value = "127.0.0.1:8080")]
    pub health_listen: SocketAddr,
}

impl Options {
    /// What the pure stages need of it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            agent_mode: self.agent_mode,
            agent_wait: Duration::from_secs(self.agent_timeout_seconds.into()),
            namespace: self.namespace.clone(),
        }
    }

    /// Unlike every other replica's, and unlike our own before a restart: a container that restarts in its pod keeps the pod's name and UID.
    #[must_use]
    pub fn identity(&self) -> String {
        let name = self.pod_name.clone().unwrap_or_else(|| {
            std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(
                |_| "storage-fence-controller".to_owned(),
                |name| name.trim().to_owned(),
            )
        });
        let started = jiff::Timestamp::now().as_nanosecond();
        format!("{name}_{}-{started:x}", std::process::id())
    }
}
