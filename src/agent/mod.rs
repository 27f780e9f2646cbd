//! The node agent: observe, decide, act, report.

pub mod executor;
pub mod inspect;
pub mod journal;
pub mod observe;
