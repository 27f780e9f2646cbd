//! The node agent: observe, decide, act, report.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`observe`] | asks the node everything |
//! | [`decide`] | which request's turn it is; pure |
//! | [`act`] | threads that fence and un-fence |
//! | [`observer`], `detect` | looks again and again, and when to look at once |
//! | [`executor`] | carries a fence out |
//! | [`journal`] | what a successor needs to know |
//! | [`guard`] | watches fences that stand |
//! | [`hook`] | the kill hook of the host, with or without the agent |
//! | [`sentry`] | what the node does by itself |
//! | [`sight`] | what is known of the Node |
//! | `takeover` | declares fenced peers dead |
//! | [`report`], [`node_storage`], [`node_conditions`] | what the API server is told; pure |
//! | `affected` | which pods hold fenced volumes open |
//! | [`desk`] | where all of it comes together |

pub mod act;
mod affected;
pub mod decide;
pub mod desk;
mod detect;
pub mod executor;
pub mod guard;
pub mod hook;
pub mod inspect;
pub mod journal;
mod memory;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod node_conditions;
pub mod node_storage;
mod node_storage_task;
pub mod observe;
pub mod observer;
mod options;
mod outlived;
pub mod preflight;
mod prepare;
pub mod publish;
pub mod report;
pub mod restore;
mod run;
pub mod sentry;
pub mod sight;
mod takeover;

pub use options::Options;
pub use prepare::prepare;
pub use run::{Agent, Error, run};
