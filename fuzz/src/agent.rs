//! Of the agent, what reads files and sockets.

#[path = "../../src/agent/journal/mod.rs"]
pub mod journal;

pub mod hook;
