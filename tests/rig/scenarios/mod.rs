//! The scenarios. One file a subject; a scenario is a function that tells a story and an entry in its file's `SCENARIOS`.

// A story is told in one go.
#![allow(clippy::too_many_lines)]

mod busy;
mod ceph;
mod chart_hook;
mod deaths;
mod demo;
mod denied;
mod evict;
mod fence;
mod flaps;
mod gone;
mod hanging;
mod hook;
mod network;
mod oracles;
mod outage;
mod policy;
mod programs;
mod refusals;
mod restart;
mod scale;
mod speed;
mod stacks;
mod storage;
mod takeover;
mod timeouts;
mod unfence;

use crate::harness::Scenario;

/// All of them, in the order in which they are run: those that leave the nodes clean first, because a reboot costs half a minute.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(refusals::scenarios());
    all.extend(fence::scenarios());
    all.push(demo::demo());
    all.extend(unfence::scenarios());
    all.extend(deaths::scenarios());
    all.extend(policy::scenarios());
    all.extend(storage::scenarios());
    all.extend(hook::scenarios());
    all.extend(stacks::scenarios());
    all
}

/// Those that take long and that no change is likely to break: run by `make rig-long`, or by name.
pub fn long() -> Vec<Scenario> {
    let mut long = hook::long();
    long.extend(oracles::long());
    long.extend(outage::long());
    long.extend(busy::long());
    // Those on the same shape of cluster one after the other: each boot of one takes minutes.
    long.extend(policy::long());
    long.extend(flaps::long());
    long.extend(restart::long());
    long.extend(gone::long());
    long.extend(network::long());
    long.extend(chart_hook::long());
    long.extend(timeouts::long());
    long.extend(stacks::long());
    long.extend(hanging::long());
    long.extend(evict::long());
    long.extend(denied::long());
    long.extend(takeover::long());
    long.extend(ceph::long());
    long.extend(speed::long());
    long
}

/// Those that only tell figures, and take an hour for it: run by `make bench`, or by name.
pub fn bench() -> Vec<Scenario> {
    let mut bench = speed::bench();
    bench.extend(scale::bench());
    bench
}

/// The demonstration: what `make demo` shows.
pub fn demo() -> Vec<Scenario> {
    vec![demo::demo()]
}
