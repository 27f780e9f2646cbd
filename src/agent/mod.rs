//! The node agent: observe, decide, act, report.

pub mod executor;
pub mod journal;
