//! A model check of the step protocol (docs/engine.md): in no state that can be reached do two hosts write one volume, no lock is released unproven,
//! none is released in another generation, nothing is left suspended or open, and every fence ends.
//!
//! The agent is no model: it is the executor, the journal, the turn and the guard themselves. Only what is around them is drawn
//! ([`world`]), so small that everything that may happen in it can be tried at every point ([`explore`]).

mod agent;
mod answers;
mod events;
mod explore;
mod eye;
mod files;
mod group;
mod host;
mod pool;
mod stage;
mod world;

use explore::{Bounds, Search};
use eye::Budget;
use world::World;

use crate::fence::Order;
use crate::fence::order::WhenPathsRemain;

/// All of one event or of one crash; what happens to what a crash leaves; and the agent's threads in another order.
fn short(world: &World, order: &Order) -> Vec<Bounds> {
    let bounds = |events, crashes, alone, interleave| Bounds {
        world: world.clone(),
        order: order.clone(),
        budget: Budget { events, crashes },
        alone,
        interleave,
    };
    vec![
        bounds(1, 0, false, false),
        bounds(0, 1, false, false),
        bounds(1, 1, true, false),
        bounds(0, 1, false, true),
    ]
}

/// The short bounds, or as `SFO_MODEL=EVENTS+CRASHES` says.
fn bounds(world: World, when_paths_remain: WhenPathsRemain) -> Vec<Bounds> {
    let order = agent::order(0..world.groups.len(), when_paths_remain);
    let text = std::env::var("SFO_MODEL").unwrap_or_default();
    let mut numbers = text.split('+').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(events)), Some(Ok(crashes))) => vec![Bounds {
            world,
            order,
            budget: Budget { events, crashes },
            alone: false,
            interleave: false,
        }],
        _ => short(&world, &order),
    }
}

fn check(what: &str, all: Vec<Bounds>) {
    for bounds in all {
        let Budget { events, crashes } = bounds.budget;
        let how = match (bounds.alone, bounds.interleave) {
            (true, _) => ", events while no agent lives only",
            (_, true) => ", threads taking turns",
            _ => "",
        };
        let (count, violations) = Search::run(bounds);
        println!("{what}; events: {events}, crashes: {crashes}{how}: {count}");
        let told: Vec<String> = violations
            .iter()
            .map(|(what, story)| format!("{what}:\n  {}", story.join("\n  ")))
            .collect();
        assert!(told.is_empty(), "{what}\n{}", told.join("\n"));
        // Otherwise nothing was shown.
        assert!(count.proven > 0 && count.states() > 20, "{count}");
    }
}

#[test]
fn in_no_state_do_two_hosts_write_when_all_paths_are_lost() {
    let all = bounds(World::cut_off(&[1]), WhenPathsRemain::Refuse);
    check("all paths are lost", all);
}

#[test]
fn in_no_state_do_two_hosts_write_when_paths_work() {
    let all = bounds(World::at_work(&[2]), WhenPathsRemain::Fence);
    check("paths work", all);
}

#[test]
fn in_no_state_do_two_hosts_write_when_two_volume_groups_lose_their_paths() {
    let all = bounds(World::cut_off(&[1, 1]), WhenPathsRemain::Refuse);
    check("two volume groups lose all paths", all);
}
