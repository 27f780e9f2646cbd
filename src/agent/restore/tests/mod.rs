//! Giving storage back, on a simulated node.

mod bench;
mod crashes;
mod interleaved;
mod interrupted;
mod many;
mod passed_on;
mod properties;
mod refusals;
mod renamed;
mod scenarios;

use bench::{Bench, seconds};
