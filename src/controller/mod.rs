//! The controller: one folder a reconciled kind.

pub mod facts;
pub mod request;
