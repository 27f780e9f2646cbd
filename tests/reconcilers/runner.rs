//! Stages one after the other, the cases of a stage side by side: they spend their time waiting.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt};

use crate::bed::Bed;
use crate::support::Result;
use crate::support::progress::say;

/// One claim, and how it is shown.
pub struct Case {
    /// Its name, for filters.
    pub name: &'static str,
    /// An error is a failure.
    pub tell: for<'a> fn(&'a Bed) -> LocalBoxFuture<'a, Result>,
    /// Whether it switches the control plane off and on, which nobody does to a developer's cluster.
    pub needs_own_control_plane: bool,
}

/// Cases that need the same ground.
pub struct Stage {
    /// What is going on.
    pub name: &'static str,
    /// Prepares the ground; whatever the stage before left.
    pub prepare: for<'a> fn(&'a Bed) -> LocalBoxFuture<'a, Result>,
    /// How many at a time.
    pub at_a_time: usize,
    /// The cases.
    pub cases: Vec<Case>,
}

/// A case that is called like its function.
#[macro_export]
macro_rules! case {
    ($module:ident :: $name:ident) => {
        $crate::runner::Case {
            name: stringify!($name),
            tell: |bed| Box::pin($module::$name(bed)),
            needs_own_control_plane: false,
        }
    };
    (own $module:ident :: $name:ident) => {
        $crate::runner::Case {
            needs_own_control_plane: true,
            ..$crate::case!($module::$name)
        }
    };
}

/// How the cases came out.
#[derive(Default)]
struct Tally {
    passed: usize,
    failures: Vec<String>,
    skipped: usize,
}

/// Runs what the filters leave; the last line is `N passed, N failed`. Gives whether all passed.
pub async fn run(stages: &[Stage], filters: &[String]) -> Result<bool> {
    let chosen = |case: &&Case| filters.is_empty() || filters.iter().any(|f| case.name.contains(f));
    if !stages.iter().flat_map(|s| &s.cases).any(|c| chosen(&c)) {
        return Err(format!("no case is called like {}", filters.join(" or ")).into());
    }
    let bed = Bed::make().await?;
    let mut tally = Tally::default();
    for stage in stages {
        let cases: Vec<&Case> = stage.cases.iter().filter(chosen).collect();
        if cases.is_empty() {
            continue;
        }
        say(format!("== {}", stage.name));
        if let Err(error) = (stage.prepare)(&bed).await {
            say(format!("-- {} could not begin: {error}", stage.name));
            let why =
                |case: &&Case| format!("{}: its ground could not be prepared: {error}", case.name);
            tally.failures.extend(cases.iter().map(why));
            continue;
        }
        let mut running = futures::stream::iter(cases)
            .map(|case| one(&bed, case))
            .buffer_unordered(stage.at_a_time);
        while let Some((case, seconds, outcome)) = running.next().await {
            match outcome {
                Ok(true) => {
                    say(format!("ok      {} ({seconds:.1} s)", case.name));
                    tally.passed += 1;
                }
                Ok(false) => {
                    say(format!(
                        "ignored {}: needs a control plane of its own",
                        case.name
                    ));
                    tally.skipped += 1;
                }
                Err(error) => {
                    say(format!("FAILED  {} ({seconds:.1} s): {error}", case.name));
                    tally.failures.push(format!("{}: {error}", case.name));
                }
            }
        }
    }
    bed.clean_up().await;
    for failure in &tally.failures {
        println!("\nFAILED {failure}");
    }
    let failed = tally.failures.len();
    println!(
        "\n{} passed; {failed} failed; {} ignored",
        tally.passed, tally.skipped
    );
    Ok(failed == 0)
}

async fn one<'a>(bed: &'a Bed, case: &'a Case) -> (&'a Case, f64, Result<bool>) {
    let began = Instant::now();
    if case.needs_own_control_plane && !bed.owns_control_plane() {
        return (case, 0.0, Ok(false));
    }
    let told = AssertUnwindSafe((case.tell)(bed)).catch_unwind().await;
    let outcome = told.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("it panicked: {}", text.unwrap_or_default()).into())
    });
    (case, began.elapsed().as_secs_f64(), outcome.map(|()| true))
}
