//! The only place that talks to an API server.

pub mod apply;
pub mod backoff;
pub mod client;
pub mod events;
pub mod evict;
pub mod leader;
#[cfg(test)]
pub(crate) mod mock;
pub mod watch;
