//! Reconciles `StorageFenceRequest`s.

pub mod plan;
pub mod status;
pub mod validate;
