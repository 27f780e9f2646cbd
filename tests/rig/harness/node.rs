//! One node: a VM and what runs in it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::wire::Answer;

use super::agent::{Agent, Pending};
use super::process::{RunDir, output};
use super::qmp::Reset;
use super::vm::{Hardware, Vm};
use super::wait::until;
use super::{Context, Result};

/// How long a command may take when nothing else is said. Software emulation is slow, and LVM under a lock manager is not fast.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How often an LVM command is tried again that found the VG locked.
const LOCK_TRIES: usize = 10;
/// On top of a command's own limit, for the guest to say so.
const GRACE: Duration = Duration::from_secs(20);

/// What a node is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name: host name, Kubernetes Node, `our_host_name` of sanlock.
    pub name: String,
    /// Host id in lockspaces, from 1.
    pub host_id: u32,
    /// Paths to each LUN; with one path there is no multipathd, and PVs are plain SCSI disks.
    pub paths: usize,
}

impl NodeSpec {
    /// Whether its LUNs come as multipath devices.
    pub fn multipath(&self) -> bool {
        self.paths > 1
    }
}

/// A node that is on.
pub struct Node {
    /// What it is.
    pub spec: NodeSpec,
    vm: Vm,
    agent: Agent,
    booted: Instant,
    dirty: bool,
}

impl Node {
    /// Switches it on. Returns before anything runs in it: [`Node::wait_for_agent`] comes next.
    pub fn power_on(run: &RunDir, spec: &NodeSpec, hardware: &Hardware, boot: u32) -> Result<Self> {
        let vm = Vm::start(run, hardware, boot)?;
        let agent = Agent::connect(&spec.name, vm.agent_socket())?;
        Ok(Self {
            spec: spec.clone(),
            vm,
            agent,
            booted: Instant::now(),
            dirty: false,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Waits until it takes commands.
    pub fn wait_for_agent(&mut self, limit: Duration) -> Result {
        let begin = Instant::now();
        while !self.agent.ready(Duration::from_secs(1)) {
            self.vm.check()?;
            if begin.elapsed() > limit {
                return Err(format!(
                    "{} takes no commands after {} s; its console: {}",
                    self.name(),
                    limit.as_secs(),
                    self.vm.console()?
                )
                .into());
            }
        }
        Ok(())
    }

    /// Starts a command and does not wait.
    pub fn start(&self, command: &str, limit: Duration) -> Result<Pending> {
        self.agent.start(command, limit)
    }

    /// Runs a command to its end, whatever that is.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Answer> {
        self.start(command, limit)?.wait(limit + GRACE)
    }

    /// Runs a command that has to succeed, and gives what it printed.
    pub fn sh(&self, command: &str) -> Result<String> {
        self.sh_within(command, COMMAND_LIMIT)
    }

    /// The same with a limit of its own.
    pub fn sh_within(&self, command: &str, limit: Duration) -> Result<String> {
        let mut answer = self.run(command, limit)?;
        // An LVM command gives up at once when another host has the VG's lock for a moment; nothing was done then.
        for _ in 0..LOCK_TRIES {
            if !answer.err.contains("due to failed lock") {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
            answer = self.run(command, limit)?;
        }
        succeeded(self.name(), command, &answer)
    }

    /// Writes a small file.
    pub fn write_file(&self, path: &str, text: &str) -> Result {
        let quoted = text.replace('\'', r"'\''");
        self.sh(&format!(
            "mkdir -p \"$(dirname '{path}')\" && printf %s '{quoted}' > '{path}'"
        ))?;
        Ok(())
    }

    /// Sends a program of the host's to it, through the agent's port: for what only one scenario needs.
    pub fn send(&self, from: &Path, to: &str) -> Result {
        /// Bash takes no longer argument than 128 KiB.
        const CHUNK: usize = 96 << 10;
        let text = output(
            Command::new("bash")
                .args(["-c", "gzip -1 <\"$1\" | base64 -w0", "send"])
                .arg(from),
        )?;
        self.sh(&format!("mkdir -p \"$(dirname {to})\"; : >{to}.part"))?;
        for chunk in text.trim().as_bytes().chunks(CHUNK) {
            let chunk = std::str::from_utf8(chunk)?;
            self.sh(&format!("printf %s {chunk} >>{to}.part"))?;
        }
        self.sh(&format!(
            "base64 -d {to}.part | gzip -d >{to} && chmod 0755 {to} && rm {to}.part"
        ))?;
        Ok(())
    }

    /// How it went down by itself, if it did.
    pub fn reset(&self) -> Option<Reset> {
        self.vm.reset()
    }

    /// Waits for the watchdog to reset it; gives the moment.
    pub fn wait_for_reset(&self, limit: Duration) -> Result<Reset> {
        until(&format!("{} is reset", self.name()), limit, || {
            Ok(self.reset())
        })
    }

    /// Presses its reset button, and waits until it is down: to be booted again by [`super::Cluster::reboot`].
    pub fn press_reset(&mut self) -> Result {
        self.vm.press_reset()?;
        self.wait_for_reset(Duration::from_secs(20))?;
        Ok(())
    }

    /// The LUN is there no more, on any path, and does not come back before the next boot. Whether the node is told: [`super::Shape`].
    pub fn unmap(&mut self, lun: usize) -> Result {
        self.dirty = true;
        for path in 0..self.spec.paths {
            self.vm.unplug(lun, path)?;
        }
        Ok(())
    }

    /// Everything its kernel printed since it was switched on.
    pub fn console(&self) -> Result<String> {
        self.vm.console()
    }

    /// When it was switched on.
    pub fn booted(&self) -> Instant {
        self.booted
    }

    /// The kernel's boot ID: another one means that it was reset.
    pub fn boot_id(&self) -> Result<String> {
        self.sh("cat /proc/sys/kernel/random/boot_id")
    }

    /// Seconds since boot, as the guest's CLOCK_MONOTONIC says.
    pub fn uptime(&self) -> Result<f64> {
        let text = self.sh("cut -d' ' -f1 /proc/uptime")?;
        text.parse().context("uptime")
    }

    /// The kernel's table of an LV: `dmsetup table`.
    pub fn lv_table(&self, vg: &str, lv: &str) -> Result<String> {
        self.sh(&format!("dmsetup table '{}'", dm_name(vg, lv)))
    }

    /// The table's target (`linear`, `error`, …) of each active LV of a VG, by LV, lvmlock left out.
    pub fn lv_targets(&self, vg: &str) -> Result<Vec<(String, String)>> {
        let prefix = format!("{}-", vg.replace('-', "--"));
        let text = self.sh("dmsetup table")?;
        let mut targets: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| {
                let (name, table) = line.split_once(": ")?;
                let lv = name.strip_prefix(&prefix)?;
                let target = table.split(' ').nth(2)?;
                (lv != "lvmlock").then(|| (lv.replace("--", "-"), target.to_owned()))
            })
            .collect();
        targets.sort();
        Ok(targets)
    }

    /// What wdmd says of itself and its clients.
    pub fn wdmd(&self) -> Result<String> {
        self.sh("wdmd -d")
    }

    /// Whether the watchdog counts on some lockspace: wdmd has a client with a time at which it expires.
    pub fn watchdog_armed(&self) -> Result<bool> {
        let text = self.wdmd()?;
        Ok(text.lines().any(|line| {
            line.contains("sanlock_lvm_")
                && line
                    .split_once("expire ")
                    .and_then(|(_, rest)| rest.split_whitespace().next())
                    .is_some_and(|expire| expire != "0")
        }))
    }

    /// Lockspaces that sanlock has or is about to have or to lose: `s NAME:HOST:PATH:OFFSET [REM|ADD]`.
    pub fn lockspaces(&self) -> Result<Vec<String>> {
        let text = self.sh("sanlock client gets")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// sanlock's whole state.
    pub fn sanlock(&self) -> Result<String> {
        self.sh("sanlock client status -D")
    }

    /// lvmlockd's whole state.
    pub fn lvmlockd(&self) -> Result<String> {
        self.sh("lvmlockctl --info --dump 2>/dev/null || lvmlockctl --info")
    }

    /// The PVs' device as this node knows a LUN: the multipath map, or the plain disk.
    pub fn device(&self, lun: usize) -> Result<String> {
        let id = if self.spec.multipath() {
            "dm-uuid-mpath-3"
        } else {
            "scsi-3"
        };
        let link = format!(
            "/dev/disk/by-id/{id}{}",
            super::vm::wwn(lun).trim_start_matches("0x")
        );
        until(
            &format!("{} has {link}", self.name()),
            Duration::from_secs(60),
            || {
                let answer = self.run(&format!("test -b {link} && echo {link}"), COMMAND_LIMIT)?;
                Ok((answer.code == 0).then(|| answer.out.trim().to_owned()))
            },
        )
    }

    /// The multipath map of a LUN: each path's state as the kernel sees it, `A`ctive or `F`ailed.
    pub fn path_states(&self, lun: usize) -> Result<String> {
        let uuid = format!("mpath-3{}", super::vm::wwn(lun).trim_start_matches("0x"));
        let status = self.sh(&format!("dmsetup status --target multipath -u {uuid}"))?;
        let words: Vec<&str> = status.split_whitespace().collect();
        // A path is `MAJOR:MINOR STATE FAILURES`.
        Ok(words
            .windows(2)
            .filter(|pair| pair[0].contains(':') && matches!(pair[1], "A" | "F"))
            .map(|pair| pair[1])
            .collect())
    }

    /// Whether the kernel still queues I/O of a LUN that has no path.
    pub fn queues(&self, lun: usize) -> Result<bool> {
        let uuid = format!("mpath-3{}", super::vm::wwn(lun).trim_start_matches("0x"));
        Ok(self
            .sh(&format!("dmsetup table --target multipath -u {uuid}"))?
            .contains("queue_if_no_path"))
    }

    /// The next scenario needs this node rebooted.
    pub fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Whether it has to be rebooted before it is of use.
    pub fn is_dirty(&mut self) -> bool {
        self.dirty || self.reset().is_some() || self.vm.check().is_err()
    }

    /// Switches it off the hard way.
    pub fn power_off(&mut self) {
        self.vm.power_off();
    }
}

/// The output of a command that has to succeed.
pub fn succeeded(node: &str, command: &str, answer: &Answer) -> Result<String> {
    if answer.code == 0 {
        return Ok(answer.out.trim().to_owned());
    }
    Err(format!(
        "{node}: `{command}` ended with {} after {} ms\n{}{}",
        answer.code, answer.ms, answer.out, answer.err
    )
    .into())
}

/// The device mapper's name of an LV: LVM doubles the hyphens of both names.
pub fn dm_name(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}
