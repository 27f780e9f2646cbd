//! One virtual machine: QEMU, its disks, its watchdog, its console log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{Guarded, RunDir};
use super::qmp::{Monitor, Reset};
use super::wait::until;
use super::{Context, Result};

/// One SCSI disk of a VM: a path to a LUN.
pub struct ScsiPath {
    /// Its host bus adapter.
    pub path: usize,
    /// Its LUN.
    pub lun: usize,
    /// The socket of its NBD server.
    pub socket: PathBuf,
}

/// A network card on a wire of its own to another VM: one end listens, the other one connects.
pub struct Wire {
    /// Its socket.
    pub socket: PathBuf,
    /// Whether this is the end that has to be there first.
    pub listens: bool,
    /// Last byte of the card's address, 52:54:00:77:00:xx.
    pub address: u32,
}

/// What a VM is made of.
pub struct Hardware {
    /// Name in file names and messages.
    pub name: String,
    /// Accelerator and CPU model.
    pub accelerator: Vec<String>,
    /// Folder of the node image.
    pub image: PathBuf,
    /// The payload disk.
    pub payload: PathBuf,
    /// The node's own disk, not on the SAN.
    pub local_disk: PathBuf,
    /// Paths to the SAN.
    pub scsi: Vec<ScsiPath>,
    /// Whether the HBA tells the node of a LUN that is unmapped. If not, its disks stay, and commands to them get the target's answer: ILLEGAL
    /// REQUEST, LOGICAL UNIT NOT SUPPORTED (but for LUN 0, which every target has).
    pub tells_unmapped: bool,
    /// Wires to other VMs.
    pub wires: Vec<Wire>,
    /// Memory in MiB.
    pub memory: u64,
    /// Added to the kernel's command line.
    pub append: String,
}

/// A running VM.
pub struct Vm {
    qemu: Guarded,
    monitor: Monitor,
    console: PathBuf,
    agent_socket: PathBuf,
    log: PathBuf,
}

impl Vm {
    /// Starts it; `boot` counts its boots in this run, so that every boot has log files of its own.
    pub fn start(run: &RunDir, hardware: &Hardware, boot: u32) -> Result<Self> {
        let name = &hardware.name;
        let console = run.join(format!("{name}.console.{boot}.log"));
        let log = run.join(format!("{name}.qemu.{boot}.log"));
        let agent_socket = run.join(format!("{name}.agent"));
        let qmp_socket = run.join(format!("{name}.qmp"));
        for socket in [&agent_socket, &qmp_socket] {
            let _ = fs::remove_file(socket);
        }
        let args = arguments(hardware, &console, &agent_socket, &qmp_socket);
        let mut qemu = Guarded::start(
            &format!("QEMU of {name}"),
            "qemu-system-x86_64",
            &args,
            &log,
        )?;
        let monitor = Monitor::connect(&qmp_socket).map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let state = qemu
                .ended()
                .map_or_else(|| "runs".to_owned(), |status| status.to_string());
            format!("{error}; QEMU of {name} ({state}) said: {said}")
        })?;
        Ok(Self {
            qemu,
            monitor,
            console,
            agent_socket,
            log,
        })
    }

    /// The socket of the guest agent's serial port.
    pub fn agent_socket(&self) -> &Path {
        &self.agent_socket
    }

    /// How it went down by itself, if it did.
    pub fn reset(&self) -> Option<Reset> {
        self.monitor.reset()
    }

    /// An error with the last lines of the console, if the VM has ended.
    pub fn check(&mut self) -> Result {
        let Some(status) = self.qemu.ended() else {
            return Ok(());
        };
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        Err(format!(
            "{} ended ({status}). {said}\nIts console: {}",
            self.qemu.name(),
            self.console_tail(15)
        )
        .into())
    }

    /// Presses the reset button.
    pub fn press_reset(&mut self) -> Result {
        self.monitor.execute("system_reset")
    }

    /// Takes a path's disk out of the running VM, as an array does that unmaps a LUN, and waits until QEMU has.
    pub fn unplug(&mut self, lun: usize, path: usize) -> Result {
        let id = disk_id(lun, path);
        self.monitor
            .execute_with("device_del", &serde_json::json!({ "id": id }))?;
        until(&format!("{id} is gone"), Duration::from_secs(20), || {
            Ok(self.monitor.unplugged(&id).then_some(()))
        })
    }

    /// Everything that the kernel printed.
    pub fn console(&self) -> Result<String> {
        let bytes =
            fs::read(&self.console).context(format!("reading {}", self.console.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn console_tail(&self, lines: usize) -> String {
        let text = self.console().unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Switches it off.
    pub fn power_off(&mut self) {
        self.qemu.end();
    }

    /// Asks QEMU to end in order (the guest is not asked).
    pub fn quit(&mut self) {
        self.qemu.terminate(Duration::from_secs(3));
    }
}

fn arguments(
    hardware: &Hardware,
    console: &Path,
    agent_socket: &Path,
    qmp_socket: &Path,
) -> Vec<String> {
    let Hardware {
        name,
        image,
        payload,
        local_disk,
        ..
    } = hardware;
    let mut args = hardware.accelerator.clone();
    let mut arg = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    let file = |name: &str| image.join(name).display().to_string();

    arg("-name", name.clone());
    arg("-m", hardware.memory.to_string());
    arg("-smp", "2".to_owned());
    arg("-display", "none".to_owned());
    arg("-kernel", file("vmlinuz"));
    arg("-initrd", file("initrd.gz"));
    // no_timer_check: the kernel gives the timer ten ticks of a busy-loop to show that it works, and an emulated CPU on a busy machine may be too
    // late for that: "IO-APIC + timer doesn't work", panic.
    arg(
        "-append",
        format!(
            "console=ttyS0 panic=-1 no_timer_check quiet mitigations=off rig.name={name} {}",
            hardware.append
        ),
    );
    arg("-serial", format!("file:{}", console.display()));
    arg(
        "-qmp",
        format!("unix:{},server=on,wait=off", qmp_socket.display()),
    );

    // One root image under all VMs; what a node writes is gone when it goes down.
    for (id, file, options) in [
        ("root", image.join("root.img"), "snapshot=on"),
        ("payload", payload.clone(), "readonly=on"),
        ("local", local_disk.clone(), "cache=none"),
    ] {
        arg(
            "-drive",
            format!(
                "file={},if=none,id={id},format=raw,{options}",
                file.display()
            ),
        );
        arg("-device", format!("virtio-blk-pci,drive={id},serial={id}"));
    }

    // The agent's port: no terminal in between that could change a byte.
    arg(
        "-chardev",
        format!(
            "socket,id=agent,path={},server=on,wait=off",
            agent_socket.display()
        ),
    );
    arg("-device", "virtio-serial-pci".to_owned());
    arg(
        "-device",
        "virtserialport,chardev=agent,name=rig".to_owned(),
    );

    arg("-netdev", "user,id=net".to_owned());
    arg("-device", "virtio-net-pci,netdev=net".to_owned());

    // A real watchdog: it resets the VM when nobody pets it, and -no-reboot makes a reset the end of QEMU, which nobody can overlook.
    arg("-device", "i6300esb".to_owned());
    arg("-action", "watchdog=reset".to_owned());

    let hbas = hardware
        .scsi
        .iter()
        .map(|scsi| scsi.path + 1)
        .max()
        .unwrap_or(0);
    for hba in 0..hbas {
        let hotplug = if hardware.tells_unmapped { "on" } else { "off" };
        arg(
            "-device",
            format!("virtio-scsi-pci,id=hba{hba},hotplug={hotplug}"),
        );
    }
    for ScsiPath { path, lun, socket } in &hardware.scsi {
        arg(
            "-drive",
            format!(
                "file=nbd+unix:///?socket={},if=none,id=l{lun}p{path},format=raw,cache=none",
                socket.display()
            ),
        );
        // One name on every path: that is how multipath knows a LUN.
        arg(
            "-device",
            format!(
                "scsi-hd,id={},bus=hba{path}.0,lun={lun},drive=l{lun}p{path},serial=SAN000{lun},wwn={},share-rw=on",
                disk_id(*lun, *path),
                wwn(*lun)
            ),
        );
    }
    args.extend(wires(&hardware.wires));
    args.extend(["-nodefaults", "-no-reboot"].map(str::to_owned));
    args
}

fn wires(wires: &[Wire]) -> Vec<String> {
    let card = |(n, wire): (usize, &Wire)| {
        let server = if wire.listens { "on" } else { "off" };
        let path = wire.socket.display();
        [
            "-netdev".to_owned(),
            format!("stream,id=wire{n},server={server},addr.type=unix,addr.path={path}"),
            "-device".to_owned(),
            format!(
                "virtio-net-pci,netdev=wire{n},mac=52:54:00:77:00:{:02x}",
                wire.address
            ),
        ]
    };
    wires.iter().enumerate().flat_map(card).collect()
}

/// What QEMU calls the disk that a path is.
fn disk_id(lun: usize, path: usize) -> String {
    format!("disk-l{lun}p{path}")
}

/// The name by which a LUN is known on every path, NAA 5.
pub fn wwn(lun: usize) -> String {
    format!("{:#x}", 0x5000_c500_15ea_71a0_u64 + lun as u64)
}
