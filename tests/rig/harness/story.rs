//! Scenarios, and the run of them: in order, on a cluster that is booted once and cleaned up in between.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::cluster::{Cluster, Shape};
use super::process::root;
use super::{Result, say};

/// One scenario.
pub struct Scenario {
    /// Its name, for filters.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// What it needs.
    pub shape: fn() -> Shape,
    /// The story. An error is a failure.
    pub tell: fn(&mut Cluster) -> Result,
}

/// An error saying `what` is not so.
pub fn ensure(holds: bool, what: impl std::fmt::Display) -> Result {
    if holds {
        say(format!("    ok: {what}"));
        Ok(())
    } else {
        Err(format!("not so: {what}").into())
    }
}

/// How to run.
#[derive(Default)]
pub struct Options {
    /// Names, or parts of names; none means all.
    pub filters: Vec<String>,
    /// Leave the cluster up after the last scenario, or after the first that fails.
    pub keep: bool,
    /// Another Debian suite than the scenarios ask for.
    pub suite: Option<String>,
    /// Archives of container images for the nodes.
    pub images: Vec<PathBuf>,
}

/// How a scenario ended.
struct Outcome {
    name: &'static str,
    error: Option<String>,
    seconds: f64,
}

/// Runs scenarios; ends with one line `N passed, N failed`. Gives whether all passed.
pub fn run(all: &[Scenario], options: &Options, stay: impl Fn(&mut Cluster)) -> bool {
    // A whole name means that one, and not those that have it in theirs.
    let meant = |scenario: &Scenario, filter: &String| {
        let whole = all.iter().any(|s| s.name == filter);
        scenario.name == filter || (!whole && scenario.name.contains(filter.as_str()))
    };
    let chosen: Vec<&Scenario> = all
        .iter()
        .filter(|s| options.filters.is_empty() || options.filters.iter().any(|f| meant(s, f)))
        .collect();
    let mut cluster: Option<Cluster> = None;
    let mut outcomes = Vec::new();
    for scenario in &chosen {
        say(format!("== {}: {}", scenario.name, scenario.about));
        let begin = Instant::now();
        let ended = prepare(&mut cluster, scenario, options).and_then(|cluster| {
            let told = (scenario.tell)(cluster);
            if told.is_err() {
                if cluster.control_plane().is_ok() {
                    println!("{}", cluster.words_of_agents());
                }
                cluster.mark_dirty();
            }
            told
        });
        let seconds = begin.elapsed().as_secs_f64();
        let error = ended.err().map(|error| error.to_string());
        match &error {
            None => say(format!("-- {} passed ({seconds:.0} s)", scenario.name)),
            Some(error) => say(format!(
                "-- {} FAILED ({seconds:.0} s): {error}",
                scenario.name
            )),
        }
        let failed = error.is_some();
        outcomes.push(Outcome {
            name: scenario.name,
            error,
            seconds,
        });
        if failed && options.keep {
            break;
        }
    }
    if let (true, Some(cluster)) = (options.keep, &mut cluster) {
        stay(cluster);
    }
    drop(cluster);
    report(&outcomes)
}

/// A cluster in which the scenario can begin: the present one if it serves, cleaned up; or a new one.
fn prepare<'a>(
    cluster: &'a mut Option<Cluster>,
    scenario: &Scenario,
    options: &Options,
) -> Result<&'a mut Cluster> {
    let ask = |scenario: &Scenario| {
        let shape = (scenario.shape)();
        match &options.suite {
            Some(suite) => shape.with_suite(suite),
            None => shape,
        }
    };
    // Not one with more: a kubelet makes every reboot twice as long, and its load disturbs what is timed.
    let needed = ask(scenario);
    let serves = cluster
        .as_ref()
        .is_some_and(|cluster| *cluster.shape() == needed);
    if serves && let Some(present) = cluster.as_mut() {
        if let Err(error) = present.clean() {
            // A cluster that does not come up again is of no use to the next scenario either.
            *cluster = None;
            return Err(error);
        }
    } else {
        // The old one first: two do not fit into the memory.
        *cluster = None;
        *cluster = Some(Cluster::boot(&needed, &options.images)?);
    }
    cluster.as_mut().ok_or_else(|| "no cluster".into())
}

fn report(outcomes: &[Outcome]) -> bool {
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.error.is_some())
        .count();
    let lines: Vec<String> = outcomes
        .iter()
        .map(|outcome| {
            let result = if outcome.error.is_some() {
                "FAILED"
            } else {
                "passed"
            };
            format!("{:<40} {result} {:6.1} s", outcome.name, outcome.seconds)
        })
        .collect();
    println!("\n{}", lines.join("\n"));
    let file = root().join("target/rig-timing.txt");
    if let Err(error) = fs::create_dir_all(root().join("target"))
        .and_then(|()| fs::write(&file, lines.join("\n") + "\n"))
    {
        say(format!("{}: {error}", file.display()));
    }
    for outcome in outcomes {
        if let Some(error) = &outcome.error {
            println!("{}: {error}", outcome.name);
        }
    }
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    failed == 0 && !outcomes.is_empty()
}
