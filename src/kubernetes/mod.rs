//! The only place that talks to an API server.

pub mod client;
pub mod events;
pub mod leader;
