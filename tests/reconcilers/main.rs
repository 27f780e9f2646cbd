//! The controller and the agent's reporting against a real Kubernetes control plane. See docs/development.md.

// What starts no program is the product.
#![allow(clippy::disallowed_methods)]

mod bed;
mod cases;
mod controller;
mod health;
mod heartbeat;
mod machines;
mod node;
mod objects;
mod runner;
#[path = "../support/mod.rs"]
mod support;
mod wait;

use std::process::ExitCode;

const HELP: &str = "\
The reconcilers: the built controller and real agents (on simulated nodes) against a real kube-apiserver, etcd, controller-manager and scheduler.

  cargo test --test reconcilers                   all of it; ends in `N passed, N failed`
  cargo test --test reconcilers -- [FILTER..]     those whose name contains a FILTER
  cargo test --test reconcilers -- list           what there is
  cargo test --test reconcilers -- long           those that take minutes

  SFO_KUBECONFIG   kubeconfig of a cluster of your own, to be used instead of one started here. Administrator's rights are needed. CRDs, the
                   chart and Nodes without a kubelet are put into it and taken out again: not a cluster that anybody needs
  SFO_KUBERNETES   the control plane's program, if tests/control-plane/build is not to make it; it is kubectl too
";

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args()
        .skip(1)
        // What cargo hands on to every test program.
        .filter(|word| !word.starts_with("--"))
        .collect();
    let mut stages = cases::stages();
    match words.first().map(String::as_str) {
        Some("help") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some("list") => {
            for stage in stages.iter().chain(&cases::long()) {
                for case in &stage.cases {
                    println!("{:<14} {}", stage.name, case.name);
                }
            }
            return ExitCode::SUCCESS;
        }
        Some("long") => {
            words.clear();
            stages = cases::long();
        }
        // By name, these too.
        Some(_) => stages.extend(cases::long()),
        None => {}
    }
    let ended = bed::runtime().and_then(|runtime| {
        let passed = runtime.block_on(runner::run(&stages, &words));
        runtime.shutdown_background();
        passed
    });
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("reconcilers: {error}\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
