//! Node images: made once by tests/rig/images and kept in the cache.

use std::path::PathBuf;
use std::process::Command;

use super::Result;
use super::process::{output, root};

/// The folder with root.img, initrd.gz and vmlinuz of a Debian suite.
pub fn folder(suite: &str) -> Result<PathBuf> {
    let script = root().join("tests/rig/images/node-image");
    Ok(PathBuf::from(output(Command::new(script).arg(suite))?))
}

/// The same of the VM that is a Ceph cluster.
pub fn ceph_folder() -> Result<PathBuf> {
    let script = root().join("tests/rig/images/ceph-image");
    Ok(PathBuf::from(output(&mut Command::new(script))?))
}
