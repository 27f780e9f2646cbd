//! sysfs, procfs and the clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use super::scsi_log::Kmsg;
use super::{DiskInfo, Error, Paths, Result, ScsiLog, System, procfs};
use crate::fence::{DevNo, DiskMark, Monotonic};

/// The real one.
#[derive(Clone, Debug)]
pub struct Sysfs {
    paths: Paths,
    /// It is the same for as long as the kernel lives, and each look at the node asks.
    boot_id: Arc<OnceLock<String>>,
}

impl Sysfs {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            paths: paths.clone(),
            boot_id: Arc::default(),
        }
    }

    fn rcu_expedited_path(&self) -> PathBuf {
        self.paths.sys.join("kernel/rcu_expedited")
    }

    fn links(&self) -> PathBuf {
        self.paths.sys.join("dev/block")
    }

    /// The folder of the whole disk: a partition's parent.
    fn folder(&self, dev: DevNo) -> Option<PathBuf> {
        let links = self.links();
        // One call for each disk of each look: to resolve the whole path takes one for each folder of it.
        let folder = links.join(fs::read_link(links.join(dev.to_string())).ok()?);
        if folder.join("partition").exists() {
            return folder.parent().map(Path::to_path_buf);
        }
        Some(folder)
    }
}

/// Of the block device with that folder. The kernel keeps all of it in memory: nothing here asks a disk (a virtio disk's serial number would).
fn mark_of(folder: &Path) -> DiskMark {
    let read = |file: PathBuf| {
        let text = fs::read_to_string(file).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let partition = read(folder.join("partition")).and_then(|n| n.parse().ok());
    // A partition's folder lies in its disk's; through the link, that is its parent as well.
    let disk = if partition.is_some() {
        folder.join("..")
    } else {
        folder.to_owned()
    };
    DiskMark {
        // SCSI's, then NVMe's.
        wwid: read(disk.join("device/wwid")).or_else(|| read(disk.join("wwid"))),
        sequence: read(disk.join("diskseq")).and_then(|n| n.parse().ok()),
        partition,
    }
}

/// Whether a file of a device is not there, or went with its device while it was open.
fn gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

fn expedited(what: &str, path: &Path, source: std::io::Error) -> Error {
    Error::Unavailable {
        what: format!("{} cannot be {what}", path.display()),
        source,
        hint: "In a pod, it takes `privileged: true`; a kernel without it only swaps more slowly",
    }
}

impl System for Sysfs {
    fn boot_id(&self) -> Result<String> {
        if let Some(known) = self.boot_id.get() {
            return Ok(known.clone());
        }
        let path = self.paths.proc.join("sys/kernel/random/boot_id");
        let what = || format!("the boot ID in {}", path.display());
        let text = fs::read_to_string(&path).map_err(|source| Error::Unavailable {
            what: what(),
            source,
            hint: "Mount the host's /proc",
        })?;
        let id = text.trim();
        if id.len() == 36 && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Ok(self.boot_id.get_or_init(|| id.to_owned()).clone());
        }
        Err(Error::Protocol {
            what: what(),
            detail: format!("{:?} is no UUID", id.chars().take(50).collect::<String>()),
        })
    }

    fn monotonic(&self) -> Monotonic {
        // It cannot fail: the clock exists on every Linux. Zero would read as "long before any deadline", which acts on nothing.
        clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or_else(|_| Monotonic::default(), |t| Monotonic(Duration::from(t)))
    }

    fn disk(&self, dev: DevNo) -> Option<DiskInfo> {
        let folder = self.folder(dev)?;
        let name = folder.file_name()?.to_string_lossy().into_owned();
        // SCSI and NVMe have it; loop, RBD, md and virtio disks do not.
        let state = fs::read_to_string(folder.join("device/state"));
        let state = state.map_or_else(|_| "running".to_owned(), |s| s.trim().to_owned());
        // The kernel gives it to every disk: without it, the disk has gone since its folder was found, and its state was not read either.
        let stat = match fs::read_to_string(folder.join("stat")) {
            Err(e) if gone(&e) => return None,
            stat => stat.ok(),
        };
        let io = stat.and_then(|s| procfs::io_count(&s));
        Some(DiskInfo { name, state, io })
    }

    fn sequence(&self, dev: DevNo) -> Option<u64> {
        let path = self.paths.sys.join(format!("dev/block/{dev}/diskseq"));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    fn mark(&self, dev: DevNo) -> DiskMark {
        let folder = self.links().join(dev.to_string());
        mark_of(&folder)
    }

    fn disks_of(&self, mark: &DiskMark) -> Vec<DevNo> {
        let Ok(links) = fs::read_dir(self.links()) else {
            return Vec::new();
        };
        let is = |link: &fs::DirEntry| {
            let found = mark_of(&link.path());
            mark.wwid.is_some() && found.wwid == mark.wwid && found.partition == mark.partition
        };
        let number = |link: fs::DirEntry| {
            let name = link.file_name();
            let (major, minor) = name.to_str()?.split_once(':')?;
            Some(DevNo {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        let mut all: Vec<DevNo> = links.flatten().filter(is).filter_map(number).collect();
        all.sort_unstable();
        all
    }

    fn scsi_log(&self) -> Option<Box<dyn ScsiLog>> {
        let log = Kmsg::open(&self.paths).inspect_err(|error| {
            tracing::warn!(%error, "a LUN that is unmapped counts as one that may return until its disks are gone");
        });
        Some(Box::new(log.ok()?))
    }

    fn rcu_expedited(&self) -> Result<u32> {
        let path = self.rcu_expedited_path();
        let text = fs::read_to_string(&path).map_err(|e| expedited("read", &path, e))?;
        text.trim().parse().map_err(|_| Error::Protocol {
            what: path.display().to_string(),
            detail: format!("{:?} is no number", text.trim()),
        })
    }

    fn set_rcu_expedited(&self, value: u32) -> Result<()> {
        let path = self.rcu_expedited_path();
        fs::write(&path, value.to_string()).map_err(|e| expedited("written", &path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::IoCount;
    use std::os::unix::fs::symlink;

    fn sysfs() -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let sda = paths.sys.join("devices/pci0/host0/block/sda");
        fs::create_dir_all(sda.join("sda1")).unwrap();
        fs::create_dir_all(sda.join("device")).unwrap();
        fs::write(sda.join("sda1/partition"), "1\n").unwrap();
        fs::write(sda.join("device/state"), "transport-offline\n").unwrap();
        let stat = "  10 1 2 3 20 5 6 7 4 9 9 40 0 0 0 80 0\n";
        fs::write(sda.join("stat"), stat).unwrap();
        let rbd = paths.sys.join("devices/rbd/0/block/rbd0");
        fs::create_dir_all(&rbd).unwrap();
        fs::write(rbd.join("stat"), "0\n").unwrap();
        let block = paths.sys.join("dev/block");
        fs::create_dir_all(&block).unwrap();
        symlink("../../devices/pci0/host0/block/sda", block.join("8:0")).unwrap();
        symlink("../../devices/pci0/host0/block/sda/sda1", block.join("8:1")).unwrap();
        symlink("../../devices/rbd/0/block/rbd0", block.join("252:0")).unwrap();
        let system = Sysfs::new(&paths);
        (root, system)
    }

    #[test]
    fn a_disk_and_its_partition_have_the_disks_state() {
        let (_root, system) = sysfs();
        let sda = DiskInfo {
            name: "sda".into(),
            state: "transport-offline".into(),
            io: Some(IoCount {
                in_flight: 4,
                completed: 150,
            }),
        };
        assert_eq!(system.disk(DevNo { major: 8, minor: 0 }), Some(sda.clone()));
        assert_eq!(system.disk(DevNo { major: 8, minor: 1 }), Some(sda));
    }

    #[test]
    fn a_disk_without_a_state_runs_and_one_without_a_folder_is_none() {
        let (_root, system) = sysfs();
        let rbd = DiskInfo {
            name: "rbd0".into(),
            state: "running".into(),
            io: None,
        };
        assert_eq!(
            system.disk(DevNo {
                major: 252,
                minor: 0
            }),
            Some(rbd)
        );
        assert_eq!(
            system.disk(DevNo {
                major: 8,
                minor: 16
            }),
            None
        );
    }

    #[test]
    fn a_disk_that_goes_while_it_is_looked_at_is_none_and_does_not_run() {
        let (_root, system) = sysfs();
        let folder = system.paths.sys.join("devices/rbd/0/block/rbd0");
        // The link was read before it went.
        fs::remove_file(folder.join("stat")).unwrap();
        let rbd = DevNo {
            major: 252,
            minor: 0,
        };
        assert_eq!(system.disk(rbd), None);
        // What cannot be read for another reason is there.
        fs::create_dir(folder.join("stat")).unwrap();
        let there = system.disk(rbd).unwrap();
        assert_eq!((there.state.as_str(), there.io), ("running", None));
    }

    #[test]
    fn a_disk_tells_the_number_that_it_was_made_with() {
        let (_root, system) = sysfs();
        let sda = DevNo { major: 8, minor: 0 };
        assert_eq!(system.sequence(sda), None);
        let file = system.paths.sys.join("dev/block/8:0/diskseq");
        fs::write(file, "27\n").unwrap();
        assert_eq!(system.sequence(sda), Some(27));
    }

    #[test]
    fn a_disk_is_told_from_another_with_its_number() {
        let (_root, system) = sysfs();
        let [sda, sda1] = [0, 1].map(|minor| DevNo { major: 8, minor });
        let rbd = DevNo {
            major: 252,
            minor: 0,
        };
        assert_eq!(system.mark(sda), DiskMark::default());
        let gone = DevNo { major: 9, minor: 9 };
        assert_eq!(system.mark(gone), DiskMark::default());
        let devices = system.paths.sys.join("devices");
        let disk = devices.join("pci0/host0/block/sda");
        fs::write(disk.join("diskseq"), "27\n").unwrap();
        fs::write(disk.join("device/wwid"), "naa.6001\n").unwrap();
        fs::write(devices.join("rbd/0/block/rbd0/wwid"), "eui.02\n").unwrap();
        let whole = DiskMark {
            wwid: Some("naa.6001".into()),
            sequence: Some(27),
            partition: None,
        };
        let part = DiskMark {
            partition: Some(1),
            ..whole.clone()
        };
        assert_eq!(system.mark(sda), whole);
        assert_eq!(system.mark(sda1), part);
        assert_eq!(system.mark(rbd).wwid.as_deref(), Some("eui.02"));
        // Wherever it came back, and as what it is now.
        assert_eq!(system.disks_of(&whole), [sda]);
        assert_eq!(system.disks_of(&part), [sda1]);
        assert_eq!(system.disks_of(&DiskMark::default()), []);
    }

    #[test]
    fn the_boot_id_is_checked() {
        let (root, system) = sysfs();
        assert!(matches!(system.boot_id(), Err(Error::Unavailable { .. })));
        let folder = root.path().join("proc/sys/kernel/random");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("boot_id"), "").unwrap();
        assert!(matches!(system.boot_id(), Err(Error::Protocol { .. })));
        let id = "f3f0e8a4-7f0d-4f3c-9d35-0b1f0f4b7a11";
        fs::write(folder.join("boot_id"), format!("{id}\n")).unwrap();
        assert_eq!(system.boot_id().unwrap(), id);
        // It cannot change, and is not read again.
        fs::remove_file(folder.join("boot_id")).unwrap();
        assert_eq!(system.boot_id().unwrap(), id);
    }

    #[test]
    fn the_clock_runs_on_this_machine() {
        let system = Sysfs::new(&Paths::default());
        let before = system.monotonic();
        assert!(before > Monotonic::default());
        assert!(system.monotonic() >= before);
        assert!(system.boot_id().is_ok());
    }
}
