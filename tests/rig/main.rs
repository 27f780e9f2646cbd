//! Scenarios on real nodes: `cargo test --test rig -- help`. See tests/rig/README.md.

// What starts no program is the product.
#![allow(clippy::disallowed_methods)]

mod guest;
mod harness;
mod scenarios;
mod wire;

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use harness::story::{self, Options};
use harness::{Cluster, Result, Scenario, Shape, say};

const HELP: &str = "\
The rig: scenarios on real nodes (VMs), a real SAN, a real Kubernetes control plane.

  cargo test --test rig -- list                  what there is
  cargo test --test rig -- [run] [FILTER..]      run those whose name contains a FILTER; without one, all but the long ones
  cargo test --test rig -- long [FILTER..]       run the long ones
  cargo test --test rig -- up                    boot a cluster and take commands for it
  cargo test --test rig -- demo                  the demonstration

  --keep            leave the cluster up at the end, or at the first failure
  --suite SUITE     Debian suite of the nodes: trixie, forky
  --image ARCHIVE   a container image for the nodes; may be repeated
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match words.as_slice() {
        ["guest-agent"] => guest::agent::serve().map(|()| true),
        ["guest-writer", name, target, owner] => {
            guest::writer::write(name, target, owner).map(|()| true)
        }
        ["guest-babbler", socket] => guest::babbler::serve(socket).map(|()| true),
        ["guest-stepper", ..] => guest::stepper::run(&args[1..]).map(|()| true),
        ["help" | "--help" | "-h", ..] => {
            print!("{HELP}");
            Ok(true)
        }
        _ => command(&args),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rig: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command(args: &[String]) -> Result<bool> {
    let mut options = Options::default();
    let mut words = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--keep" => options.keep = true,
            "--suite" => options.suite = Some(value()?.clone()),
            "--image" => options.images.push(PathBuf::from(value()?)),
            flag if flag.starts_with('-') => {
                return Err(format!("unknown flag {flag}\n{HELP}").into());
            }
            word => words.push(word.to_owned()),
        }
    }
    let (all, long) = (scenarios::all(), scenarios::long());
    let bench = scenarios::bench();
    match words.first().map(String::as_str) {
        Some("list") => {
            for scenario in all.iter().chain(&long).chain(&bench) {
                println!("{:<40} {}", scenario.name, scenario.about);
            }
            Ok(true)
        }
        Some("up") => {
            let mut shape = Shape::kubernetes();
            if let Some(suite) = &options.suite {
                shape = shape.with_suite(suite);
            }
            let mut cluster = Cluster::boot(&shape, &options.images)?;
            stay(&mut cluster);
            Ok(true)
        }
        Some("demo") => {
            options.keep |= std::env::var("KEEP").is_ok_and(|keep| keep == "1");
            Ok(story::run(&scenarios::demo(), &options, stay))
        }
        Some("long") => {
            options.filters = words[1..].to_vec();
            Ok(story::run(&long, &options, stay))
        }
        first => {
            options.filters = words[usize::from(first == Some("run"))..].to_vec();
            let named = !options.filters.is_empty();
            let also = long.into_iter().chain(bench).filter(|_| named);
            let chosen: Vec<Scenario> = all.into_iter().chain(also).collect();
            Ok(story::run(&chosen, &options, stay))
        }
    }
}

/// Takes commands for a cluster from the terminal until its input ends.
fn stay(cluster: &mut Cluster) {
    say(format!(
        "the cluster stays up; logs are in {}",
        cluster.run_dir().path().display()
    ));
    if let Ok(control_plane) = cluster.control_plane() {
        println!(
            "  export KUBECONFIG={}; {} kubectl get nodes",
            control_plane.kubeconfig().display(),
            control_plane.program().display()
        );
    }
    println!(
        "  NODE COMMAND | cut NODE | black-hole NODE | restore NODE | reboot NODE; end of input (Ctrl-D) or Ctrl-C ends it"
    );
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let (first, rest) = line.trim().split_once(' ').unwrap_or(("", ""));
        let done = match first {
            "" => continue,
            "cut" => cluster.san.cut_all(rest, None),
            "black-hole" => cluster.san.black_hole_all(rest, None),
            "restore" => cluster.san.restore_all(rest, None),
            "reboot" => cluster.reboot(rest),
            node => cluster
                .node(node)
                .and_then(|node| node.run(rest, Duration::from_secs(600)))
                .map(|answer| {
                    print!("{}{}", answer.out, answer.err);
                    println!("[exit code {}, {} ms]", answer.code, answer.ms);
                }),
        };
        if let Err(error) = done {
            println!("{error}");
        }
    }
}
