//! Where the node's file systems are mounted.

use std::path::{Path, PathBuf};

/// Roots of what is read. In a pod they may lie elsewhere than on the node; in tests they are folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `/dev`
    pub dev: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
    /// `/run`
    pub run: PathBuf,
}

impl Paths {
    /// All four below one folder.
    #[must_use]
    pub fn under(root: &Path) -> Self {
        Self {
            dev: root.join("dev"),
            sys: root.join("sys"),
            proc: root.join("proc"),
            run: root.join("run"),
        }
    }
}

impl Default for Paths {
    /// Where a host has them.
    fn default() -> Self {
        Self::under(Path::new("/"))
    }
}
