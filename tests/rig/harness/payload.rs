//! The payload disk: all that a node needs beyond Debian, made anew for each run and read by every node. So nothing of ours is in the node
//! image, and a change of a script or of the operator costs no new image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{RunDir, output, root};
use super::{Context, Result};

/// A payload under construction.
pub struct Payload {
    tree: PathBuf,
    disk: PathBuf,
}

impl Payload {
    /// With what every node needs: its init, its scripts and configuration, and this program as the guest agent.
    pub fn new(run: &RunDir) -> Result<Self> {
        let tree = run.join("payload");
        let payload = Self {
            tree: tree.clone(),
            disk: run.join("payload.img"),
        };
        fs::create_dir_all(tree.join("node"))?;
        fs::create_dir_all(tree.join("images"))?;
        let scripts = root().join("tests/rig/images/node");
        for entry in fs::read_dir(&scripts).context(format!("reading {}", scripts.display()))? {
            let entry = entry?;
            fs::copy(entry.path(), tree.join("node").join(entry.file_name()))?;
        }
        payload.file(&scripts.join("init"), "init")?;
        // The same C library or an older one than the guest's: the rig is built on Debian 12 or 13, and the oldest guest is 13.
        payload.file(&std::env::current_exe()?, "bin/rig")?;
        // For nodes without Kubernetes: the engine alone, as the kill hook runs it. The DaemonSet's agent is the release build in its image.
        payload.file(
            Path::new(env!("CARGO_BIN_EXE_storage-fence")),
            "bin/storage-fence",
        )?;
        Ok(payload)
    }

    /// Adds a file of the host under a name in /payload.
    pub fn file(&self, from: &Path, name: &str) -> Result {
        let to = self.tree.join(name);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        // mke2fs copies what it finds: a link costs nothing, and works when both are on one file system.
        let _ = fs::remove_file(&to);
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, &to).context(format!("copying {} to the payload", from.display()))?;
        }
        Ok(())
    }

    /// Adds an archive of container images, which every node's containerd takes in before its kubelet starts.
    pub fn images(&self, archive: &Path) -> Result {
        let name = archive
            .file_name()
            .context(format!("{} is no archive", archive.display()))?;
        self.file(archive, &format!("images/{}", name.to_string_lossy()))
    }

    /// Writes the disk.
    pub fn write(&self) -> Result<PathBuf> {
        let kibibytes: u64 = output(Command::new("du").arg("-skL").arg(&self.tree))?
            .split_whitespace()
            .next()
            .context("du said nothing")?
            .parse()?;
        let size = kibibytes + kibibytes / 10 + 16384;
        let _ = fs::remove_file(&self.disk);
        output(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
                .arg(&self.tree)
                .arg(&self.disk)
                .arg(format!("{size}k")),
        )?;
        Ok(self.disk.clone())
    }
}
