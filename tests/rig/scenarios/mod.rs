//! The scenarios. One file a subject; a scenario is a function that tells a story and an entry in its file's `SCENARIOS`.

mod deaths;
mod demo;
mod fence;
mod hook;
mod refusals;
mod stacks;
mod storage;

use crate::harness::Scenario;

/// All of them, in the order in which they are run: those that leave the nodes clean first, because a reboot costs half a minute.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(refusals::scenarios());
    all.extend(fence::scenarios());
    all.push(demo::demo());
    all.extend(deaths::scenarios());
    all.extend(storage::scenarios());
    all.extend(hook::scenarios());
    all.extend(stacks::scenarios());
    all
}

/// The demonstration: what `make demo` shows.
pub fn demo() -> Vec<Scenario> {
    vec![demo::demo()]
}
