//! The executor on a simulated node.

mod bench;
mod crashes;
mod daemons;
mod expedite;
mod faults;
mod giveway;
mod handed_on;
mod lists;
mod passed_on;
mod prolonged;
mod properties;
mod release_again;
mod renamed;
mod scenarios;
mod signs;
mod unfrozen;
mod unlocked;

pub(super) use bench::Bench;
