//! Giving storage back, on a simulated node.

mod bench;
mod crashes;
mod properties;
mod refusals;
mod scenarios;

use bench::{Bench, seconds};
