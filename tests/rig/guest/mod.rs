//! What this same program does inside a node: the agent that runs the harness's commands, and the writers that scenarios watch.

pub mod agent;
pub mod writer;
