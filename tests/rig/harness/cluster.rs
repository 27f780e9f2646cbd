//! Everything of a run: the SAN, the nodes, the control plane.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::control_plane::{ControlPlane, HOST_IN_GUEST};
use super::node::{COMMAND_LIMIT, Node, NodeSpec, succeeded};
use super::payload::Payload;
use super::process::{RunDir, output, root};
use super::san::{PathName, San};
use super::vm::{Hardware, ScsiPath};
use super::{Context, Result, accel, ceph, node_image, operator, say};

/// Emulated, two at once, on two busy cores.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// After that it is tried once more.
const FIRST_BOOT_LIMIT: Duration = Duration::from_secs(100);

/// What a scenario needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Debian suite of the nodes: trixie or forky.
    pub suite: String,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// LUNs of the SAN.
    pub luns: usize,
    /// sanlock's and lvmlockd's I/O time-out in seconds. With 2 a host is reset 66 to 76 s after its last renewal.
    pub io_timeout: u32,
    /// In how many seconds the watchdog fires when nobody pets it.
    pub fire_timeout: u32,
    /// Whether the nodes are a Kubernetes cluster.
    pub kubernetes: bool,
    /// Whether a Ceph cluster stands beside them, in a VM of its own.
    pub ceph: bool,
    /// Memory of a node in MiB, where it is not the usual.
    pub memory: Option<u64>,
    /// Whether nodes hear of a LUN that is unmapped, and not only by the answers to their commands.
    pub tells_unmapped: bool,
}

impl Shape {
    /// Two nodes and one LUN, no Kubernetes: n1 has two paths and multipath, n2 has one path and a plain disk, so that one boot shows both.
    pub fn storage() -> Self {
        let node = |host_id: u32| NodeSpec {
            name: format!("n{host_id}"),
            host_id,
            paths: if host_id == 1 { 2 } else { 1 },
        };
        Self {
            suite: "trixie".to_owned(),
            nodes: vec![node(1), node(2)],
            luns: 1,
            io_timeout: 2,
            fire_timeout: 60,
            kubernetes: false,
            ceph: false,
            memory: None,
            tells_unmapped: true,
        }
    }

    /// One node with two paths to each of three LUNs: two of one array, one of another. No Kubernetes: for the engine alone.
    pub fn arrays() -> Self {
        let mut shape = Self::storage().with_luns(3);
        shape.nodes.truncate(1);
        shape
    }

    /// The same with a Ceph cluster beside it.
    pub fn arrays_and_ceph() -> Self {
        Self {
            ceph: true,
            ..Self::arrays()
        }
    }

    /// The same as a Kubernetes cluster.
    pub fn kubernetes() -> Self {
        Self {
            kubernetes: true,
            ..Self::storage()
        }
    }

    /// With another number of LUNs.
    #[must_use]
    pub fn with_luns(self, luns: usize) -> Self {
        Self { luns, ..self }
    }

    /// With another number of paths of one node: 1 is a node without multipath.
    #[must_use]
    pub fn with_paths(mut self, node: &str, paths: usize) -> Self {
        for spec in &mut self.nodes {
            if spec.name == node {
                spec.paths = paths;
            }
        }
        self
    }

    /// With another Debian suite in the nodes.
    #[must_use]
    pub fn with_suite(self, suite: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            ..self
        }
    }
}

/// A booted cluster.
pub struct Cluster {
    // Dropped in this order: guests before what they stand on.
    nodes: Vec<Node>,
    // Held for its VM.
    ceph_vm: Option<Node>,
    control_plane: Option<ControlPlane>,
    /// The storage, whose paths can be cut.
    pub san: San,
    shape: Shape,
    accelerator: Vec<String>,
    image: PathBuf,
    payload: PathBuf,
    boots: u32,
    run: RunDir,
}

impl Cluster {
    /// Boots everything. `images` are archives that every node's containerd takes in.
    pub fn boot(shape: &Shape, images: &[PathBuf]) -> Result<Self> {
        let run = RunDir::new()?;
        let image = node_image::folder(&shape.suite)?;
        let accelerator = accel::arguments(&run, &image.join("vmlinuz"))?;
        let san = San::new(&run, shape.luns, LUN_MEBIBYTES)?;
        let payload = Payload::new(&run)?;
        let mut control_plane = None;
        if shape.kubernetes {
            let begin = Instant::now();
            let started = ControlPlane::start(&run, &["--san", HOST_IN_GUEST])?;
            say(format!(
                "control plane ready on port {} ({:.1} s)",
                started.port(),
                begin.elapsed().as_secs_f64()
            ));
            add_kubernetes(&run, &payload, &started, shape, images)?;
            control_plane = Some(started);
        }
        let payload = payload.write()?;
        let mut ceph_vm = None;
        if shape.ceph {
            ceph_vm = Some(ceph::power_on(&run, shape, &accelerator, &payload)?);
        }
        let mut cluster = Self {
            nodes: Vec::new(),
            ceph_vm,
            control_plane,
            san,
            shape: shape.clone(),
            accelerator,
            image,
            payload,
            boots: 0,
            run,
        };
        let all: Vec<String> = shape.nodes.iter().map(|spec| spec.name.clone()).collect();
        cluster.boot_nodes(&all)?;
        if let Some(vm) = &mut cluster.ceph_vm {
            ceph::set_up(vm)?;
        }
        Ok(cluster)
    }

    /// What it is made of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The folder of this run: logs are there.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// A node.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .context(format!("no node {name}"))
    }

    /// A node, to be changed.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.name() == name)
            .context(format!("no node {name}"))
    }

    /// Every node.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The control plane of a cluster that has one.
    pub fn control_plane(&self) -> Result<&ControlPlane> {
        self.control_plane
            .as_ref()
            .context("this scenario's shape has no Kubernetes")
    }

    /// The control plane, to be stopped and started.
    pub fn control_plane_mut(&mut self) -> Result<&mut ControlPlane> {
        self.control_plane
            .as_mut()
            .context("this scenario's shape has no Kubernetes")
    }

    /// Switches a node off and boots it afresh, its paths healthy, its daemons up, its kubelet Ready.
    pub fn reboot(&mut self, name: &str) -> Result {
        self.boot_nodes(&[name.to_owned()])
    }

    /// Reboots the nodes that a scenario left dirty, and heals the SAN. When no node is clean the LUNs are wiped too.
    pub fn clean(&mut self) -> Result {
        let mut dirty = Vec::new();
        for node in &mut self.nodes {
            let healthy = self.san.healthy(node.name());
            if node.is_dirty() || !healthy {
                dirty.push(node.name().to_owned());
            }
        }
        if dirty.is_empty() {
            return Ok(());
        }
        say(format!("rebooting {}", dirty.join(", ")));
        for name in &dirty {
            self.node_mut(name)?.power_off();
        }
        if dirty.len() == self.nodes.len() {
            for lun in 0..self.san.luns() {
                let file = File::options().write(true).open(self.san.file(lun)?)?;
                file.set_len(0)?;
                file.set_len(LUN_MEBIBYTES << 20)?;
            }
        }
        self.boot_nodes(&dirty)
    }

    /// Every node is rebooted, and the SAN emptied, before the next scenario.
    pub fn mark_dirty(&mut self) {
        for node in &mut self.nodes {
            node.mark_dirty();
        }
    }

    fn boot_nodes(&mut self, names: &[String]) -> Result {
        let begin = Instant::now();
        self.nodes.retain(|node| !names.contains(&node.spec.name));
        self.boots += 1;
        for name in names {
            let node = self.power_on(name)?;
            self.nodes.push(node);
        }
        self.nodes.sort_by_key(|node| node.spec.host_id);
        for name in names {
            if let Err(error) = self.node_mut(name)?.wait_for_agent(FIRST_BOOT_LIMIT) {
                // Emulated CPUs of a busy machine may wait for each other before the kernel is up ("rcu_preempt detected stalls"). Nothing that
                // is under test runs by then.
                let error = error.to_string();
                say(format!(
                    "{name} is switched off and on again: {}",
                    error.lines().next().unwrap_or_default()
                ));
                self.nodes.retain(|node| node.name() != name);
                self.boots += 1;
                let node = self.power_on(name)?;
                self.nodes.push(node);
                self.nodes.sort_by_key(|node| node.spec.host_id);
                self.node_mut(name)?.wait_for_agent(BOOT_LIMIT)?;
            }
        }
        let booted = begin.elapsed().as_secs_f64();
        let (io_timeout, fire_timeout) = (self.shape.io_timeout, self.shape.fire_timeout);
        self.everywhere(names, |node| {
            let multipath = if node.spec.multipath() { "yes" } else { "no" };
            format!(
                "/payload/node/storage-up {} {io_timeout} {fire_timeout} {multipath}",
                node.spec.host_id
            )
        })?;
        for name in names {
            for lun in 0..self.shape.luns {
                self.node(name)?.device(lun)?;
            }
        }
        let storage = begin.elapsed().as_secs_f64();
        let mut line = format!(
            "{}: booted ({booted:.1} s), storage daemons answer ({storage:.1} s)",
            names.join(", ")
        );
        if let Some(control_plane) = &self.control_plane {
            let port = control_plane.port();
            self.everywhere(names, |node| {
                format!("/payload/node/kubelet-up {port} {}", node.name())
            })?;
            for name in names {
                let boot_id = self.node(name)?.boot_id()?;
                control_plane
                    .wait_for_node(name, &boot_id, BOOT_LIMIT)
                    .map_err(|error| {
                        let log = self
                            .node(name)
                            .and_then(|node| node.sh("tail -n 30 /run/kubelet.log"))
                            .unwrap_or_default();
                        format!("{error}; its kubelet says: {log}")
                    })?;
            }
            line = format!("{line}, Ready ({:.1} s)", begin.elapsed().as_secs_f64());
        }
        say(line);
        Ok(())
    }

    fn power_on(&mut self, name: &str) -> Result<Node> {
        let spec = self
            .shape
            .nodes
            .iter()
            .find(|spec| spec.name == name)
            .context(format!("no node {name}"))?
            .clone();
        let mut scsi = Vec::new();
        for lun in 0..self.shape.luns {
            for path in 0..spec.paths {
                let socket = self.san.open(&PathName {
                    node: name.to_owned(),
                    lun,
                    path,
                })?;
                scsi.push(ScsiPath { path, lun, socket });
            }
        }
        let local_disk = self.run.join(format!("{name}.local.img"));
        let file = File::create(&local_disk)?;
        file.set_len(LOCAL_MEBIBYTES << 20)?;
        let hardware = Hardware {
            name: name.to_owned(),
            accelerator: self.accelerator.clone(),
            image: self.image.clone(),
            payload: self.payload.clone(),
            local_disk,
            scsi,
            tells_unmapped: self.shape.tells_unmapped,
            wires: if self.shape.ceph {
                vec![ceph::wire(&self.run, spec.host_id, false)]
            } else {
                Vec::new()
            },
            memory: self
                .shape
                .memory
                .unwrap_or(if self.shape.kubernetes { 2048 } else { 1280 }),
            append: String::new(),
        };
        Node::power_on(&self.run, &spec, &hardware, self.boots)
    }

    /// Runs a command on several nodes at once; all have to succeed.
    fn everywhere(&self, names: &[String], command: impl Fn(&Node) -> String) -> Result {
        let mut pending = Vec::new();
        for name in names {
            let node = self.node(name)?;
            let command = command(node);
            pending.push((name, command.clone(), node.start(&command, BOOT_LIMIT)?));
        }
        for (name, command, started) in pending {
            succeeded(name, &command, &started.wait(BOOT_LIMIT + COMMAND_LIMIT)?)?;
        }
        Ok(())
    }

    /// Makes sure that `vg` exists as a shared VG on a LUN, that every node has joined its lockspace, and that it has no LV.
    pub fn shared_vg(&self, vg: &str, lun: usize) -> Result {
        let first = self.nodes.first().context("no nodes")?;
        let there = first.run(&format!("vgs {vg}"), COMMAND_LIMIT)?.code == 0;
        if !there {
            let device = first.device(lun)?;
            first.sh(&format!("vgcreate --shared {vg} {device}"))?;
        }
        self.join(vg)?;
        // What a node held that was rebooted is its own again, or free, once it has joined.
        first.sh(&format!(
            "for lv in $(lvs --noheadings -o lv_name {vg}); do lvremove -qq -y {vg}/$lv; done"
        ))?;
        Ok(())
    }

    /// Has every node join the lockspace of a VG that is there.
    pub fn join(&self, vg: &str) -> Result {
        let names: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        // Tried again: on a busy machine lvmlockd may look for the leases' device before udev has made its link ("invalid parameters for sanlock").
        self.everywhere(&names, |_| {
            format!(
                "n=0; until lvmlockctl --info | grep -q 'VG {vg} ' || vgchange --lockstart {vg}; do n=$((n+1)); [ $n -lt 6 ] || exit 1; sleep 2; done"
            )
        })
    }
}

const LUN_MEBIBYTES: u64 = 4096;
pub(super) const LOCAL_MEBIBYTES: u64 = 512;

fn add_kubernetes(
    run: &RunDir,
    payload: &Payload,
    control_plane: &ControlPlane,
    shape: &Shape,
    images: &[PathBuf],
) -> Result {
    payload.file(control_plane.program(), "bin/kubernetes")?;
    payload.file(&control_plane.ca(), "kubernetes/ca.crt")?;
    for NodeSpec { name, .. } in &shape.nodes {
        let kubeconfig = run.join(format!("{name}.kubeconfig"));
        control_plane.guest_kubeconfig(
            &format!("system:node:{name}"),
            "system:nodes",
            &kubeconfig,
        )?;
        payload.file(&kubeconfig, &format!("kubernetes/{name}.kubeconfig"))?;
    }
    let pause = run.join("pause.tar");
    output(Command::new(root().join("tests/rig/images/pause-image")).arg(&pause))?;
    payload.images(&pause)?;
    payload.images(&operator::image()?)?;
    for archive in images {
        payload.images(archive)?;
    }
    Ok(())
}
