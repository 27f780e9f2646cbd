//! What is put on a node to time things there: our release build, the yardstick, and volumes by the thousand.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::node::Node;
use crate::harness::process::{output, root};
use crate::harness::{Context, Result, until};

/// Where the programs are in the node.
pub const OURS: &str = "/run/bench/storage-fence";
/// The yardstick, tests/rig/guest/bare.c.
pub const BARE: &str = "/run/bench/bare";
const LIMIT: Duration = Duration::from_secs(900);
/// From so many volumes on, udev would be what takes the time to make and to remove them.
const MANY: u32 = 50;

/// Our release build, and the yardstick.
pub fn send_programs(node: &Node) -> Result {
    // SFO_BINARY names another build, to be compared with.
    let release = match std::env::var("SFO_BINARY") {
        Ok(path) => path,
        Err(_) => output(&mut Command::new(root().join("hack/release-binary")))?,
    };
    node.send(Path::new(release.trim()), OURS)?;
    // Goes away with whatever ends this.
    let folder = tempfile::tempdir()?;
    let bare = folder.path().join("bare");
    output(
        Command::new("cc")
            .args(["-O2", "-static", "-pthread", "-Wall", "-Werror", "-o"])
            .arg(&bare)
            .arg(root().join("tests/rig/guest/bare.c")),
    )?;
    node.send(&bare, BARE)
}

/// So many threads write to all volumes of that prefix; each is at work when it returns.
pub fn start_load(node: &Node, prefix: &str, threads: u32) -> Result {
    node.sh(&format!(
        "rm -f /run/bare.ready /run/bare.stop; setsid {BARE} load {prefix} {threads} >/run/bare.log 2>&1 </dev/null & \
         for i in $(seq 600); do test -e /run/bare.ready && sleep 0.5 && exit 0; sleep 0.1; done; cat /run/bare.log; exit 1"
    ))?;
    Ok(())
}

/// On the error target each of its writers ends by itself.
pub fn load_ends(node: &Node) -> Result {
    until("the load has ended", Duration::from_secs(120), || {
        Ok((node.run("pgrep -x bare", LIMIT)?.code != 0).then_some(()))
    })
}

/// Our release build as an agent whose API server is nowhere; its state is in /run/bench/state.
pub fn start_agent(node: &Node) -> Result {
    start_agent_in(node, "")
}

/// As the chart has it.
fn malloc_settings() -> Result<&'static str> {
    let chart = include_str!("../../../charts/storage-fence-operator/templates/agent.yaml");
    let mut values = chart.lines().map(str::trim);
    let value = values.find_map(|l| l.strip_prefix("value: glibc.malloc"));
    value.context("GLIBC_TUNABLES in the chart")
}

/// The same where a command of the shell's leads.
pub fn start_agent_in(node: &Node, place: &str) -> Result {
    let nobody = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {token: t}}]\n";
    node.write_file("/run/bench/kubeconfig", nobody)?;
    let malloc = malloc_settings()?;
    // Not spared by whoever started it, when memory runs out: that is its own to do.
    node.sh(&format!(
        "{place}echo 0 >/proc/self/oom_score_adj; GLIBC_TUNABLES=glibc.malloc{malloc} STATE_DIRECTORY=/run/bench/state KUBECONFIG=/run/bench/kubeconfig NODE_NAME=n1 setsid {OURS} agent \
         >/run/bench/agent.log 2>&1 </dev/null & echo $! >/run/bench/agent.pid"
    ))?;
    Ok(())
}

/// Makes volumes PREFIX0, PREFIX1... of the volume group with that UUID.
pub fn make(node: &Node, prefix: &str, uuid: &str, n: u32, below: &str) -> Result {
    without_udev(node, n, &format!("{BARE} make {prefix} {uuid} {n} {below}"))
}

/// Takes them away. Where there are many, what udev still has to do about them goes with it.
pub fn remove(node: &Node, prefix: &str, n: u32) -> Result {
    if n < MANY {
        node.sh_within("udevadm settle --timeout=600", LIMIT)?;
    }
    without_udev(node, n, &format!("{BARE} remove {prefix}"))
}

/// Where there are many, udev does not hear of it: it is there when things are timed, as on every node, but no second is lost before. It has read
/// its rules by then: who comes a little later would have it as a rival, and who comes at once would not.
fn without_udev(node: &Node, n: u32, command: &str) -> Result {
    let (stop, start) = if n < MANY {
        ("true", "true")
    } else {
        (
            "udevadm control --exit; while pgrep -x systemd-udevd; do sleep 0.1; done",
            "/lib/systemd/systemd-udevd --daemon && udevadm control --ping",
        )
    };
    node.sh_within(&format!("{stop}; {command} && {start}"), LIMIT)?;
    Ok(())
}
