//! A node whose cores are all wanted: pods get what they request, and virtual machines request much.

use std::time::Duration;

use super::outage::{agent_in, cut_off_and_alive, ended, released};
use super::programs::send_programs;
use crate::harness::node::Node;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Result, Scenario, Shape, say};

/// The scenarios of this file; they take minutes.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "policy-busy",
        about: "64 programs with a hundred times a pod's share want every core: the agent notices the outage, fences by itself, and the node lives",
        shape: Shape::arrays,
        tell: policy_busy,
    }]
}

/// Where cgroup v2's weights are those of a pod that requests next to nothing, and of much other work.
const SHARES: &str = "cd /sys/fs/cgroup && echo +cpu >cgroup.subtree_control && mkdir -p pod busy && echo 1 >pod/cpu.weight && echo 100 >busy/cpu.weight";
const FILL: &str = "for i in $(seq 64); do \
     setsid sh -c 'echo $$ >/sys/fs/cgroup/busy/cgroup.procs; while :; do :; done' >/dev/null 2>&1 </dev/null & done; \
     for i in $(seq 300); do test $(wc -l </sys/fs/cgroup/busy/cgroup.procs) = 64 && exit 0; sleep 0.2; done; exit 1";
const FREE: &str = "echo 1 >/sys/fs/cgroup/busy/cgroup.kill";
/// Leads a shell's command into the pod.
pub const IN_A_POD: &str = "echo $$ >/sys/fs/cgroup/pod/cgroup.procs; ";

const LIMIT: Duration = Duration::from_secs(120);

/// Makes the pod, beside 64 programs that want all cores.
pub fn fill(node: &Node) -> Result {
    node.sh(SHARES)?;
    node.sh_within(FILL, LIMIT)?;
    Ok(())
}

/// Ends the programs.
pub fn free(node: &Node) -> Result {
    node.sh_within(FREE, LIMIT)?;
    Ok(())
}

fn policy_busy(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    n1.sh("lvcreate -y -aey -L 64M -n lv san")?;
    let writer = Writer::start(n1, "lv", "/dev/san/lv")?;
    let boot = n1.boot_id()?;
    n1.sh(SHARES)?;
    agent_in(n1, 0, IN_A_POD)?;
    fill(n1)?;
    say("the cores are taken; every path of the array is cut");
    cluster.san.cut_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    released(n1)?;
    free(n1)?;
    let outage = ended(n1)?;
    say(format!("    {outage}"));
    cut_off_and_alive(n1, &writer, &boot)
}
