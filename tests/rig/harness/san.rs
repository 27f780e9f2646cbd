//! The SAN: LUNs as sparse files, and for each path of each node to each LUN a server of its own (nbdkit), so that a path can be cut, frozen
//! and brought back without any other noticing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::{Guarded, RunDir};
use super::wait::until;
use super::{Context, Result};

/// One path of one node to one LUN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathName {
    /// Node.
    pub node: String,
    /// LUN, from 0.
    pub lun: usize,
    /// Path (HBA), from 0.
    pub path: usize,
}

impl std::fmt::Display for PathName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-l{}p{}", self.node, self.lun, self.path)
    }
}

struct Line {
    server: Guarded,
    cut_file: PathBuf,
}

/// The storage of a run.
pub struct San {
    dir: PathBuf,
    luns: Vec<PathBuf>,
    lines: BTreeMap<PathName, Line>,
}

impl San {
    /// `luns` LUNs of `mebibytes` each; nothing is written until a node writes.
    pub fn new(run: &RunDir, luns: usize, mebibytes: u64) -> Result<Self> {
        let mut files = Vec::new();
        for lun in 0..luns {
            let file = run.join(format!("lun{lun}.img"));
            File::create(&file)?.set_len(mebibytes << 20)?;
            files.push(file);
        }
        Ok(Self {
            dir: run.path().to_owned(),
            luns: files,
            lines: BTreeMap::new(),
        })
    }

    /// How many LUNs there are.
    pub fn luns(&self) -> usize {
        self.luns.len()
    }

    /// The file that a LUN is: what was really written, seen from outside.
    pub fn file(&self, lun: usize) -> Result<&Path> {
        Ok(self.luns.get(lun).context(format!("no LUN {lun}"))?)
    }

    /// Opens a path (again: with every fault removed) and gives the socket of its server.
    pub fn open(&mut self, name: &PathName) -> Result<PathBuf> {
        let lun = self.file(name.lun)?.to_owned();
        let socket = self.dir.join(format!("{name}.nbd"));
        let cut_file = self.dir.join(format!("{name}.cut"));
        // The old server first: it removes its socket when it ends.
        self.lines.remove(name);
        let _ = fs::remove_file(&socket);
        let _ = fs::remove_file(&cut_file);
        let args = [
            "--foreground".to_owned(),
            "--unix".to_owned(),
            socket.display().to_string(),
            "--filter=error".to_owned(),
            "file".to_owned(),
            lun.display().to_string(),
            "error=EIO".to_owned(),
            "error-rate=100%".to_owned(),
            format!("error-file={}", cut_file.display()),
        ];
        let log = self.dir.join(format!("{name}.nbd.log"));
        let mut server = Guarded::start(&format!("nbdkit of path {name}"), "nbdkit", &args, &log)?;
        until(
            &format!("nbdkit listens for path {name}"),
            Duration::from_secs(20),
            || match server.ended() {
                Some(status) => Err(format!(
                    "nbdkit: {status}: {}",
                    fs::read_to_string(&log).unwrap_or_default()
                )
                .into()),
                None => Ok(socket.exists().then_some(())),
            },
        )?;
        self.lines.insert(name.clone(), Line { server, cut_file });
        Ok(socket)
    }

    fn line(&mut self, node: &str, lun: usize, path: usize) -> Result<&mut Line> {
        let name = PathName {
            node: node.to_owned(),
            lun,
            path,
        };
        self.lines
            .get_mut(&name)
            .context(format!("the SAN has no path {name}"))
    }

    fn of(&self, node: &str, lun: Option<usize>) -> Vec<(usize, usize)> {
        self.lines
            .keys()
            .filter(|name| name.node == node && lun.is_none_or(|lun| lun == name.lun))
            .map(|name| (name.lun, name.path))
            .collect()
    }

    /// Every command on this path fails with EIO from now on.
    pub fn cut(&mut self, node: &str, lun: usize, path: usize) -> Result {
        File::create(&self.line(node, lun, path)?.cut_file)?;
        Ok(())
    }

    /// Commands on this path neither complete nor fail from now on.
    pub fn black_hole(&mut self, node: &str, lun: usize, path: usize) -> Result {
        self.line(node, lun, path)?.server.signal(Signal::SIGSTOP)
    }

    /// The path's server dies: connection lost, not merely errors.
    pub fn kill(&mut self, node: &str, lun: usize, path: usize) -> Result {
        self.line(node, lun, path)?.server.end();
        Ok(())
    }

    /// The path as it was, whatever was done to it.
    pub fn restore(&mut self, node: &str, lun: usize, path: usize) -> Result {
        let line = self.line(node, lun, path)?;
        if line.cut_file.exists() {
            fs::remove_file(&line.cut_file)?;
        }
        if line.server.stopped() {
            line.server.signal(Signal::SIGCONT)?;
        }
        if line.server.ended().is_some() {
            // QEMU connects again by itself.
            self.open(&PathName {
                node: node.to_owned(),
                lun,
                path,
            })?;
        }
        Ok(())
    }

    /// Cuts every path of a node: to one LUN, or to all (`None`).
    pub fn cut_all(&mut self, node: &str, lun: Option<usize>) -> Result {
        for (lun, path) in self.of(node, lun) {
            self.cut(node, lun, path)?;
        }
        Ok(())
    }

    /// Makes every path of a node a black hole.
    pub fn black_hole_all(&mut self, node: &str, lun: Option<usize>) -> Result {
        for (lun, path) in self.of(node, lun) {
            self.black_hole(node, lun, path)?;
        }
        Ok(())
    }

    /// Brings every path of a node back.
    pub fn restore_all(&mut self, node: &str, lun: Option<usize>) -> Result {
        for (lun, path) in self.of(node, lun) {
            self.restore(node, lun, path)?;
        }
        Ok(())
    }

    /// Whether each path of the node is free of faults.
    pub fn healthy(&mut self, node: &str) -> bool {
        self.lines
            .iter_mut()
            .filter(|(name, _)| name.node == node)
            .all(|(_, line)| {
                !line.cut_file.exists() && !line.server.stopped() && line.server.ended().is_none()
            })
    }
}
