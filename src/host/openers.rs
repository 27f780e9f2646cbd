//! Who holds a device open: from procfs and sysfs.
//!
//! Needs the host's processes in /proc. What cannot be seen is not made up: the open count of the device decides whether it is open, this only
//! says by whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::procfs::{Mount, is_kubelets_mount, pod_uid, pod_uid_of_mount};
use super::{Openers, Paths, urgency};
use crate::fence::topology::split_name;
use crate::fence::unfence::Opener;
use crate::fence::{DevNo, DmDevice};

/// The real one.
#[derive(Clone, Debug)]
pub struct Procfs {
    paths: Paths,
}

impl Procfs {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            paths: paths.clone(),
        }
    }
}

/// A process that can be seen.
struct Process {
    pid: u32,
    folder: PathBuf,
}

impl Openers for Procfs {
    fn of(&self, devices: &[DmDevice], found: &mut dyn FnMut(Opener)) {
        if devices.is_empty() {
            return;
        }
        // It may take seconds where there are many processes, and has time.
        let _ = urgency::ordinary_thread();
        let search = Search {
            paths: &self.paths,
            wanted: devices.iter().map(|d| d.dev).collect(),
            names: names(devices),
        };
        let mut seen = BTreeSet::new();
        let mut once = |opener: Opener| {
            if seen.insert(opener.clone()) {
                found(opener);
            }
        };
        search.holders(&mut once);
        search.loops_and_swap(&mut once);
        let processes = search.processes();
        search.mounts(&processes, &mut once);
        // First what names a device node: looking at any other file may wait for a server that is not there.
        for devices_only in [true, false] {
            for process in &processes {
                search.files(process, devices_only, &mut once);
            }
        }
    }
}

/// What the devices are called in paths.
fn names(devices: &[DmDevice]) -> BTreeMap<String, DevNo> {
    let mut names = BTreeMap::new();
    for d in devices {
        names.insert(format!("/dev/dm-{}", d.dev.minor), d.dev);
        names.insert(format!("/dev/mapper/{}", d.name), d.dev);
        if let [vg, lv] = split_name(&d.name).as_slice() {
            names.insert(format!("/dev/{vg}/{lv}"), d.dev);
        }
    }
    names
}

struct Search<'a> {
    paths: &'a Paths,
    wanted: BTreeSet<DevNo>,
    names: BTreeMap<String, DevNo>,
}

type Found<'a> = &'a mut dyn FnMut(Opener);

impl Search<'_> {
    /// Devices that are stacked on one.
    fn holders(&self, found: Found<'_>) {
        for dev in &self.wanted {
            let folder = self.paths.sys.join(format!("dev/block/{dev}/holders"));
            for name in entries(&folder) {
                let label = text(&self.paths.sys.join(format!("block/{name}/dm/name")));
                let label = label.map(|l| format!(" ({l})")).unwrap_or_default();
                found(Opener {
                    dev: *dev,
                    who: format!("device {name}{label}"),
                    pod_uid: None,
                });
            }
        }
    }

    fn loops_and_swap(&self, found: Found<'_>) {
        let block = self.paths.sys.join("block");
        for name in entries(&block).iter().filter(|n| n.starts_with("loop")) {
            let backing = text(&block.join(name).join("loop/backing_file"));
            if let Some(dev) = backing.and_then(|b| self.names.get(b.as_str()).copied()) {
                found(Opener {
                    dev,
                    who: format!("loop device {name}"),
                    pod_uid: None,
                });
            }
        }
        let swaps = text(&self.paths.proc.join("swaps")).unwrap_or_default();
        for line in swaps.lines().skip(1) {
            let path = line.split_whitespace().next().unwrap_or_default();
            if let Some(dev) = self.names.get(path) {
                found(Opener {
                    dev: *dev,
                    who: "swap (swapoff takes it away)".to_owned(),
                    pod_uid: None,
                });
            }
        }
    }

    fn processes(&self) -> Vec<Process> {
        let mut pids: Vec<u32> = entries(&self.paths.proc)
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        pids.sort_unstable();
        pids.into_iter()
            .map(|pid| Process {
                pid,
                folder: self.paths.proc.join(pid.to_string()),
            })
            .collect()
    }

    /// Mounts, each mount namespace once: by its first process, which for the host's is process 1.
    fn mounts(&self, processes: &[Process], found: Found<'_>) {
        let mut namespaces = BTreeSet::new();
        for process in processes {
            let Ok(namespace) = fs::read_link(process.folder.join("ns/mnt")) else {
                continue;
            };
            if !namespaces.insert(namespace) {
                continue;
            }
            let info = text(&process.folder.join("mountinfo")).unwrap_or_default();
            for mount in info.lines().filter_map(Mount::decode) {
                let Some(dev) = self.mounted(&mount) else {
                    continue;
                };
                let Mount { point, kind, .. } = mount;
                // Whoever sees the host's mounts, such as a volume driver, sees those of other pods.
                let of_the_mount = pod_uid_of_mount(&point);
                let (who, pod_uid) = if process.pid == 1 {
                    (format!("mount {point} ({kind})"), of_the_mount)
                } else {
                    let of = process.words();
                    let pod_uid = if of_the_mount.is_some() || is_kubelets_mount(&point) {
                        of_the_mount
                    } else {
                        process.pod_uid()
                    };
                    (format!("mount {point} ({kind}) as seen by {of}"), pod_uid)
                };
                found(Opener { dev, who, pod_uid });
            }
        }
    }

    /// The device of a mount, if it is wanted.
    fn mounted(&self, mount: &Mount) -> Option<DevNo> {
        // btrfs has numbers of its own, so its source has to tell.
        Some(mount.dev)
            .filter(|d| self.wanted.contains(d))
            .or_else(|| self.names.get(&mount.source).copied())
    }

    /// Open files, working folder and root of a process: the device itself, or a file on its file system, which may no longer be mounted anywhere.
    fn files(&self, process: &Process, devices_only: bool, found: Found<'_>) {
        let fds = process.folder.join("fd");
        let mut links: Vec<PathBuf> = entries(&fds).iter().map(|fd| fds.join(fd)).collect();
        links.extend(["cwd", "root"].map(|l| process.folder.join(l)));
        for link in links {
            let Ok(target) = fs::read_link(&link) else {
                continue;
            };
            // Sockets, pipes and the like have no path.
            if !target.starts_with("/") || target.starts_with("/dev/") != devices_only {
                continue;
            }
            let Ok(metadata) = fs::metadata(&link) else {
                continue;
            };
            let Some((dev, itself)) = self.device(&metadata) else {
                continue;
            };
            let who = if itself {
                process.words()
            } else {
                format!("{} with {}", process.words(), target.display())
            };
            found(Opener {
                dev,
                who,
                pod_uid: process.pod_uid(),
            });
        }
    }

    fn device(&self, metadata: &Metadata) -> Option<(DevNo, bool)> {
        let number = |n: u64| DevNo {
            major: major(n).try_into().unwrap_or(u32::MAX),
            minor: minor(n).try_into().unwrap_or(u32::MAX),
        };
        if metadata.file_type().is_block_device() {
            let itself = number(metadata.rdev());
            if self.wanted.contains(&itself) {
                return Some((itself, true));
            }
        }
        let below = number(metadata.dev());
        self.wanted.contains(&below).then_some((below, false))
    }
}

impl Process {
    fn words(&self) -> String {
        let name = text(&self.folder.join("comm")).unwrap_or_default();
        format!("process {} ({name})", self.pid)
    }

    fn pod_uid(&self) -> Option<String> {
        pod_uid(&text(&self.folder.join("cgroup"))?)
    }
}

/// Names in a folder; none when it cannot be read: processes end, and disks go.
fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn text(file: &Path) -> Option<String> {
    let text = fs::read(file).ok()?;
    Some(String::from_utf8_lossy(&text).trim_end().to_owned())
}

#[cfg(test)]
#[path = "openers_tests.rs"]
mod tests;
