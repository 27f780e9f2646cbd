//! What the test programs share that start real processes: the rig and the reconcilers. Each includes it by its path.

// A vocabulary for both: neither uses all of it.
#![allow(dead_code)]

pub mod control_plane;
pub mod process;
pub mod progress;
pub mod wait;

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
