//! Agent and hook whose output nobody takes, as when the disk that a pod's log is written to hangs. On a real node.

use super::super::stacks::holds;
use super::{HOOK, LIMIT, agent_that_logs_to, cut, target, volume};
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say};

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "output-is-not-read",
        about: "the pipes that agent and hook write to are full and nobody reads: the agent fences on the hook's word all the same",
        shape: Shape::arrays,
        tell: output_is_not_read,
    }]
}

/// A pipe that is full. It is held open, since a writer without a reader would be told so.
const FULL: &str = "mkfifo /run/full; setsid bash -c 'exec 3<>/run/full; head -c 65536 /dev/zero >&3; echo $$ >/run/full.pid; exec sleep 100000' \
     >/dev/null 2>&1 </dev/null & until test -s /run/full.pid; do sleep 0.1; done";

fn output_is_not_read(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    volume(cluster)?;
    let n1 = cluster.node("n1")?;
    n1.sh(FULL)?;
    let full = n1.run("timeout 2 bash -c 'echo >/run/full'", LIMIT)?;
    ensure(full.code == 124, "whoever writes to the pipe waits")?;
    agent_that_logs_to(n1, "/run/storage-fence", "/run/full")?;
    let n1 = cut(cluster)?;
    let end = n1.run(&format!("{HOOK} 2>/run/full"), LIMIT)?;
    let told = n1.sh("dmesg | grep storage-fence: || true")?;
    say(format!("    {} ms: {told}", end.ms));
    ensure(end.code == 0, "the hook vouches for the fence")?;
    ensure(
        told.contains("cut off") && !told.contains("fencing without it"),
        "the agent fences, and the kernel's log tells of it",
    )?;
    ensure(
        target(n1)? == "error" && !holds(&n1.wdmd()?, "san"),
        "the volume is cut off, and the watchdog lets go",
    )?;
    let log = n1.sh("timeout 5 cat /run/full | tr -d '\\0' >/run/full.log; cat /run/full.log")?;
    ensure(
        log.contains("an order's turn"),
        "once somebody reads, the log goes on",
    )
}
