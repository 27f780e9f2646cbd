//! A policy that is changed while the outage goes on.

use super::*;

/// Whether the fence of `b` was planned, and whether it was carried out.
fn of_b(desk: &Desk) -> (usize, usize) {
    let all = desk.known.values().map(|k| &k.report);
    let of_b: Vec<_> = all
        .filter(|r| r.volume_groups.iter().any(|g| g.name == "b"))
        .collect();
    let count = |outcome| of_b.iter().filter(|r| r.outcome == outcome).count();
    (count(Outcome::DryRun), count(Outcome::Proven))
}

fn for_seconds(agent: &mut Agent<'_>, seconds: u64) {
    let began = Instant::now();
    agent.until("some time", |_| {
        began.elapsed() > Duration::from_secs(seconds)
    });
}

#[test]
fn a_dry_run_that_is_turned_off_while_the_outage_goes_on_becomes_one_fence() {
    for killed in [false, true] {
        let bench = Bench::new();
        bench.cut("b");
        let mut agent = bench.agent();
        agent.policies_but(&["b"], &json!({ "dryRun": true }));
        agent.until("it is planned", |d| of_b(d) == (1, 0));
        for_seconds(&mut agent, 2);
        assert_eq!(of_b(&agent.desk), (1, 0));
        assert!(bench.held("b") && bench.count("kill_vg b") == 0);
        if killed {
            agent.kill();
            agent = bench.agent();
        }
        agent.policies(&["b"]);
        agent.until("b is released", |d| of_b(d) == (1, 1) && !bench.held("b"));
        // Turned on and off again, by whichever agent: it was answered.
        if killed {
            agent.kill();
            agent = bench.agent();
        }
        agent.policies_but(&["b"], &json!({ "dryRun": true }));
        for_seconds(&mut agent, 2);
        agent.policies(&["b"]);
        for_seconds(&mut agent, 2);
        assert_eq!(of_b(&agent.desk), (1, 1));
        assert_eq!(bench.count("kill_vg b"), 1);
        let names: BTreeSet<_> = agent.desk.known.values().map(|k| &k.order.name).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

#[test]
fn a_policy_that_begins_to_fence_in_the_middle_of_an_outage_fences_at_once() {
    for before in [
        json!({ "response": "Report" }),
        json!({ "nodeSelector": { "matchLabels": { "a": "b" } } }),
    ] {
        let bench = Bench::new();
        bench.cut("b");
        let mut agent = bench.agent();
        agent.policies_but(&["b"], &before);
        for_seconds(&mut agent, 5);
        assert!(bench.held("b") && of_b(&agent.desk) == (0, 0), "{before}");
        let long = json!({ "triggers": { "allPathsDown": { "forSeconds": 5 } } });
        agent.policies_but(&["b"], &long);
        let began = Instant::now();
        agent.until("it begins", |d| report(d, "b").is_some());
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{before}: it counts from the beginning of the outage"
        );
        agent.until("b is released", |d| of_b(d) == (0, 1) && !bench.held("b"));
        assert_eq!(bench.count("kill_vg b"), 1);
    }
}
