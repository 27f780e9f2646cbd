//! What this same program does inside a node: the agent that runs the harness's commands, the writers that scenarios watch, and
//! the stepper that stops a program at one system call after the other; and the babbler that sits in a daemon's place.

pub mod agent;
pub mod babbler;
pub mod stepper;
pub mod writer;
