//! What this same program does inside a node: the agent that runs the harness's commands, the writers that scenarios watch, and
//! the stepper that stops a program at one system call after the other.

pub mod agent;
pub mod stepper;
pub mod writer;
