//! Fences a node's SAN storage instead of the node.
//!
//! The rooms, in the order in which data may flow (a room never reaches up):
//!
//! | room | what it is |
//! | --- | --- |
//! | [`api`] | the custom resources: types, schema, CEL rules. No runtime, no client |
//! | [`fence`] | the domain, pure: topology, plan, step order, watchdog budget, report |
//! | [`host`] | the only place that talks to the node: device mapper, sysfs, sockets |
//! | [`kubernetes`] | the only place that talks to an API server |
//! | [`agent`] | observe, decide, act, report: one a node |
//! | [`controller`] | one folder a reconciled kind |

pub mod agent;
pub mod api;
pub mod controller;
pub mod fence;
pub mod host;
pub mod kubernetes;
pub mod telemetry;
