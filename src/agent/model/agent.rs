//! What a fence's agent and the kill hook do with their lives, in the order of the real ones (`agent::act`, `agent::hook::run`): all of it is the
//! product's own code, from the journal to the guard.

use std::ops::Range;
use std::time::Duration;

use super::group::Group;
use super::host::{BOOT_ID, HOOKED, Seat, VGS, of_agent};
use super::stage::{HOOK, Stage};
use crate::agent::executor::{resume, run};
use crate::agent::guard::Guard;
use crate::agent::journal::{Journal, Record, Standing, Turn};
use crate::fence::order::{Order, Selection, WhenPathsRemain};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome};
use crate::host::Bell;
use crate::host::simulated::uuid_of;

/// A guard that finds nothing to do that often has done its work.
const QUIET: u32 = 2;
/// More rounds of the guard than that are a circle.
const ROUNDS: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// How a life ended that ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// There was nothing to fence: it only watched over a fence that stands.
    Watched,
    Fenced(Outcome, LocksOutcome),
}

/// For the volume groups of these numbers.
pub(super) fn order(groups: Range<usize>, when_paths_remain: WhenPathsRemain) -> Order {
    let names = groups.map(|n| VGS[n].to_owned()).collect();
    Order {
        name: "request".into(),
        uid: "uid".into(),
        generation: 1,
        volume_groups: Selection::Named(names),
        when_paths_remain,
        drain_timeout: Duration::from_secs(5),
        ..Order::default()
    }
}

/// An agent: completes what is left, or watches what stands, or fences.
pub(super) fn agent(stage: &Stage, order: &Order) -> Ended {
    let seat = of_agent(stage);
    let (mut journal, left) = Journal::open(stage.directory(), BOOT_ID).expect("a journal");
    let turn = Turn::take(stage.directory(), "agent", SECOND).expect("a turn");
    journal.hold(turn);
    let stands = journal.standings().all().expect("standings");
    let nothing_stands = stands.is_empty();
    let unfinished = left.as_ref().is_some_and(Record::unfinished);
    let stands = |n: usize| stands.iter().find(|s| s.group.uuid == uuid_of(VGS[n]));
    // What came into use anew is fenced when its paths are gone, whatever of an earlier fence is still there.
    let wanted = |(n, group): (usize, &Group)| {
        let anew = |s: &Standing| group.lock.map(|l| l.generation) > s.generation && !group.up;
        group.held() && stands(n).is_none_or(anew)
    };
    let wanted = stage.world(|w| w.groups.iter().enumerate().any(wanted));
    let report = if unfinished || nothing_stands || wanted {
        Some(fence(&seat, &mut journal, left, order))
    } else {
        None
    };
    journal.give_back();
    watch(&seat, &journal);
    report.map_or(Ended::Watched, |r| Ended::Fenced(r.outcome, r.locks))
}

/// The kill hook, which finds an agent that does not move. It is called for one volume group.
pub(super) fn hook(stage: &Stage) {
    let seat = Seat {
        stage: stage.clone(),
        process: HOOK,
    };
    let turn = Turn::take(stage.directory(), "kill-hook", Duration::ZERO).expect("a turn");
    let (mut journal, left) = Journal::open(stage.directory(), BOOT_ID).expect("a journal");
    journal.hold(turn);
    let order = order(HOOKED..HOOKED + 1, WhenPathsRemain::Fence);
    fence(&seat, &mut journal, left, &order);
}

fn fence(seat: &Seat, journal: &mut Journal, left: Option<Record>, order: &Order) -> FenceReport {
    let host = seat.host();
    let stage = seat.stage.clone();
    let mut progress = |_: &FenceReport| stage.files_changed();
    if let Some(record) = left.filter(Record::unfinished) {
        return resume(&host, journal, record, &|| false, &mut progress);
    }
    let inventory = seat.inventory();
    run(&host, journal, order, inventory, &|| false, &mut progress)
}

/// The guard, until it has had nothing to do for a while.
fn watch(seat: &Seat, journal: &Journal) {
    let host = seat.host();
    let mut guard = Guard::new(host.clone(), journal.standings(), Box::new(|_, _| ()));
    let mut quiet = 0;
    for _ in 0..ROUNDS {
        if journal.standings().all().is_ok_and(|all| all.is_empty()) {
            return;
        }
        let pause = guard.round();
        quiet = if pause >= SECOND { quiet + 1 } else { 0 };
        if quiet == QUIET {
            return;
        }
        let until = host.system.monotonic() + pause;
        host.system.wait(&Bell::default(), 0, until);
    }
}
