//! The rig: real nodes on a real SAN, and a real cluster, all on this machine, so that a scenario reads like a story.
//!
//! [`Cluster`] owns everything. [`Node`] is one VM and what runs in it; [`San`] is the storage, whose paths can be cut, made a black hole and
//! brought back one by one. [`story`] runs scenarios.

// A vocabulary for scenarios: not every word is used by the present ones.
#![allow(dead_code)]

pub mod accel;
pub mod agent;
pub mod cluster;
pub mod control_plane;
pub mod node;
pub mod node_image;
pub mod operator;
pub mod payload;
pub mod process;
pub mod progress;
pub mod qmp;
pub mod san;
pub mod story;
pub mod timeline;
pub mod vm;
pub mod wait;
pub mod writer;

pub use cluster::{Cluster, Shape};
#[allow(unused_imports)]
pub use node::Node;
pub use progress::say;
pub use story::{Scenario, ensure};
pub use wait::until;

/// What went wrong, as a person reads it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// The result of everything in the rig.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// Says what was being done when an error came.
pub trait Context<T> {
    /// Puts `what` before the error's text.
    fn context(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}").into())
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl std::fmt::Display) -> Result<T> {
        self.ok_or_else(|| what.to_string().into())
    }
}

/// Locks, whatever a thread that died while holding the lock left: the values here are maps and lists that are whole after every line.
pub fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
