//! Writers: processes in a node that stamp blocks of a device or a file, by direct I/O, and say how they fared.

use std::time::Duration;

use super::node::Node;
use super::wait::until;
use super::{Context, Result};
pub use crate::guest::writer::State;

/// A writer in a node.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Its name, unique in the node.
    pub name: String,
}

impl Writer {
    /// Starts one that writes to `target` (a block device or a file) and waits until its first write is done.
    pub fn start(node: &Node, name: &str, target: &str) -> Result<Self> {
        let owner = node.name();
        node.sh(&format!(
            "mkdir -p /run/writers; rm -f '/run/writers/{name}.'*; setsid /payload/bin/rig guest-writer '{name}' '{target}' '{owner}' >/run/writers/{name}.log 2>&1 </dev/null &"
        ))?;
        let writer = Self {
            name: name.to_owned(),
        };
        until(
            &format!("writer {name} on {owner} writes"),
            Duration::from_secs(30),
            || Ok(writer.state(node).ok().filter(|state| state.writes > 0)),
        )?;
        Ok(writer)
    }

    /// How it fares. It keeps this on tmpfs, so asking needs no disk.
    pub fn state(&self, node: &Node) -> Result<State> {
        let text = node.sh(&format!("cat /run/writers/{}.json", self.name))?;
        serde_json::from_str(&text).context(format!(
            "writer {} on {}: {text}",
            self.name,
            node.name()
        ))
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&self, node: &Node, limit: Duration) -> Result<State> {
        until(&format!("writer {} ends", self.name), limit, || {
            Ok(Some(self.state(node)?).filter(|state| state.ended))
        })
    }

    /// Ends it.
    pub fn stop(&self, node: &Node) -> Result {
        node.sh(&format!(
            "touch /run/writers/{0}.stop; for i in $(seq 50); do grep -q '\"ended\":true' /run/writers/{0}.json && exit 0; sleep 0.1; done; exit 1",
            self.name
        ))?;
        Ok(())
    }

    /// Starts counting pauses from now on.
    pub fn forget_pauses(&self, node: &Node) -> Result {
        node.sh(&format!(
            "touch /run/writers/{0}.forget; for i in $(seq 100); do test -e /run/writers/{0}.forget || exit 0; sleep 0.1; done; exit 1",
            self.name
        ))?;
        Ok(())
    }
}
