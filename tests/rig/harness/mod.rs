//! The rig: real nodes on a real SAN, and a real cluster, all on this machine, so that a scenario reads like a story.
//!
//! [`Cluster`] owns everything. [`Node`] is one VM and what runs in it; [`San`] is the storage, whose paths can be cut, made a black hole and
//! brought back one by one. [`story`] runs scenarios.

// A vocabulary for scenarios: not every word is used by the present ones.
#![allow(dead_code)]

pub mod accel;
pub mod agent;
pub mod ceph;
pub mod cluster;
pub mod node;
pub mod node_image;
pub mod operator;
pub mod payload;
pub mod qmp;
pub mod san;
pub mod story;
#[path = "../../support/mod.rs"]
mod support;
pub mod timeline;
pub mod vm;
pub mod writer;

pub use cluster::{Cluster, Shape};
#[allow(unused_imports)]
pub use node::Node;
pub use story::{Scenario, ensure};
pub use support::progress::say;
pub use support::wait::until;
pub use support::{Context, Result, control_plane, process, wait};

/// Locks, whatever a thread that died while holding the lock left: the values here are maps and lists that are whole after every line.
pub fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
