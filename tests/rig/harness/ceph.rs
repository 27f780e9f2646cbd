//! A real Ceph cluster beside the SAN: one VM that every node has a wire to.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use super::cluster::{BOOT_LIMIT, LOCAL_MEBIBYTES, Shape};
use super::node::{Node, NodeSpec};
use super::process::RunDir;
use super::vm::{Hardware, Wire};
use super::{Result, node_image, say};

const NAME: &str = "ceph";

/// One end of the wire of a node: its own, or the Ceph VM's.
pub fn wire(run: &RunDir, host_id: u32, listens: bool) -> Wire {
    Wire {
        socket: run.join(format!("wire{host_id}")),
        listens,
        // The bridge's ends have addresses of their own.
        address: host_id + if listens { 0x80 } else { 0 },
    }
}

/// Switches it on: before the nodes, which connect to it.
pub fn power_on(
    run: &RunDir,
    shape: &Shape,
    accelerator: &[String],
    payload: &std::path::Path,
) -> Result<Node> {
    let local_disk: PathBuf = run.join(format!("{NAME}.local.img"));
    File::create(&local_disk)?.set_len(LOCAL_MEBIBYTES << 20)?;
    let wires = shape.nodes.iter().map(|node| wire(run, node.host_id, true));
    let hardware = Hardware {
        name: NAME.to_owned(),
        accelerator: accelerator.to_vec(),
        image: node_image::ceph_folder()?,
        payload: payload.to_owned(),
        local_disk,
        scsi: Vec::new(),
        tells_unmapped: true,
        wires: wires.collect(),
        memory: 1536,
        append: String::new(),
    };
    let spec = NodeSpec {
        name: NAME.to_owned(),
        host_id: 0,
        paths: 0,
    };
    Node::power_on(run, &spec, &hardware, 1)
}

/// Makes the cluster and its images `files`, `volumes`, `shared` and `leases`.
pub fn set_up(ceph: &mut Node) -> Result {
    let begin = Instant::now();
    ceph.wait_for_agent(BOOT_LIMIT)?;
    ceph.sh_within("/payload/node/ceph-up >/run/ceph-up.log 2>&1 || { tail -n 20 /run/ceph-up.log >&2; exit 1; }", BOOT_LIMIT)?;
    say(format!(
        "ceph: monitor, OSD and images are there ({:.1} s)",
        begin.elapsed().as_secs_f64()
    ));
    Ok(())
}
