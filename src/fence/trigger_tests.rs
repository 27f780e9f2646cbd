use proptest::prelude::*;

use super::*;
use crate::fence::outage::{Outages, SETTLE};
use crate::fence::{Inventory, LockManager, Path, PhysicalVolume, PvKind};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_secs(seconds)
}

fn outage(since: u64, loss: Loss, up_since: Option<u64>) -> Outage {
    Outage {
        since: at(since),
        loss,
        loss_since: at(since),
        up_since: up_since.map(at),
    }
}

fn lockspace(renewed: u64, state: LockspaceState) -> Lockspace {
    Lockspace {
        io_timeout: 10,
        last_renewal: Some(at(renewed)),
        state,
        ..Lockspace::default()
    }
}

fn watchdog() -> Watchdog {
    Watchdog {
        known: true,
        fire_timeout: 60,
        ..Watchdog::default()
    }
}

fn ask(rules: &Rules, now: u64, outage: Option<&Outage>, lease: Option<&Lockspace>) -> Verdict {
    ask_of(rules, now, now, outage, lease)
}

/// At `now`, about a look at `looked`.
fn ask_of(
    rules: &Rules,
    looked: u64,
    now: u64,
    outage: Option<&Outage>,
    lease: Option<&Lockspace>,
) -> Verdict {
    let signs = Signs {
        now: at(now),
        looked: at(looked),
        outage,
        lockspace: lease,
        watchdog: &watchdog(),
        conditions: &[],
    };
    evaluate(rules, &signs)
}

fn cause(verdict: &Verdict) -> Option<&Cause> {
    match verdict {
        Verdict::Due(alarm) => Some(&alarm.cause),
        _ => None,
    }
}

fn everything() -> Rules {
    Rules {
        all_paths_down: Some(s(10)),
        device_gone: Some(s(2)),
        renewals_failing: Some(s(40)),
        budget_below: Some(s(60)),
        conditions: vec![],
    }
}

#[test]
fn paths_that_are_down_long_enough_set_it_off() {
    let down = outage(100, Loss::PathsDown, None);
    let rules = everything();
    assert_eq!(ask(&rules, 109, Some(&down), None), Verdict::Waits(s(1)));
    let due = ask(&rules, 110, Some(&down), None);
    assert_eq!(cause(&due), Some(&Cause::AllPathsDown));
    let Verdict::Due(alarm) = due else { panic!() };
    assert_eq!(alarm.episode, "outage@100000");
    assert!(alarm.seen.contains("10 s"), "{}", alarm.seen);
    // One that works at this moment keeps it off, however long the outage.
    let back = outage(100, Loss::PathsDown, Some(159));
    assert_eq!(ask(&rules, 160, Some(&back), None), Verdict::Quiet);
    assert_eq!(
        ask(&Rules::default(), 900, Some(&down), None),
        Verdict::Quiet
    );
}

#[test]
fn gone_for_good_has_a_delay_of_its_own() {
    let gone = outage(100, Loss::DeviceGone, None);
    assert_eq!(
        ask(&everything(), 101, Some(&gone), None),
        Verdict::Waits(s(1))
    );
    assert_eq!(
        cause(&ask(&everything(), 102, Some(&gone), None)),
        Some(&Cause::DeviceGone)
    );
    let only_down = Rules {
        device_gone: None,
        ..everything()
    };
    assert_eq!(cause(&ask(&only_down, 109, Some(&gone), None)), None);
    assert_eq!(
        cause(&ask(&only_down, 110, Some(&gone), None)),
        Some(&Cause::AllPathsDown)
    );
    let only_gone = Rules {
        all_paths_down: None,
        ..everything()
    };
    let down = outage(100, Loss::PathsDown, None);
    assert_eq!(ask(&only_gone, 900, Some(&down), None), Verdict::Quiet);
}

/// Limits that any lease passes.
fn absurd() -> Rules {
    Rules {
        renewals_failing: Some(s(1)),
        budget_below: Some(s(3600)),
        ..Rules::default()
    }
}

#[test]
fn a_lease_that_is_renewed_is_quiet_whatever_the_limit() {
    let absurd = absurd();
    for now in 100..=132 {
        let healthy = lockspace(100, LockspaceState::Healthy);
        assert_eq!(
            ask(&absurd, now, None, Some(&healthy)),
            Verdict::Quiet,
            "{now}"
        );
    }
    for state in [LockspaceState::Adding, LockspaceState::Removing] {
        assert_eq!(
            ask(&absurd, 500, None, Some(&lockspace(100, state))),
            Verdict::Quiet
        );
    }
}

/// Looks may be rarer than renewals, or take long: what was renewed since is not known.
#[test]
fn a_lease_is_as_old_as_it_was_when_it_was_looked_at() {
    let absurd = absurd();
    let renewed = lockspace(100, LockspaceState::Healthy);
    for now in [120, 133, 180] {
        let verdict = ask_of(&absurd, 120, now, None, Some(&renewed));
        assert_eq!(verdict, Verdict::Quiet, "{now}");
    }
    // Nor does one that is late grow older than it was seen.
    let forty = Rules {
        budget_below: None,
        ..everything()
    };
    let late = ask_of(&forty, 135, 150, None, Some(&renewed));
    assert_eq!(late, Verdict::Waits(s(5)));
    let due = ask_of(&forty, 140, 150, None, Some(&renewed));
    assert_eq!(cause(&due), Some(&Cause::RenewalsFailing));
}

#[test]
fn a_lease_that_is_not_renewed_sets_it_off_though_no_path_is_missed() {
    let failing = lockspace(100, LockspaceState::RenewalFailing);
    assert_eq!(
        ask(&everything(), 139, None, Some(&failing)),
        Verdict::Waits(s(1))
    );
    assert_eq!(
        cause(&ask(&everything(), 140, None, Some(&failing))),
        Some(&Cause::RenewalsFailing)
    );
    // A renewal whose write hangs is not called failed: its age tells.
    let hangs = lockspace(100, LockspaceState::Healthy);
    assert_eq!(ask(&everything(), 132, None, Some(&hangs)), Verdict::Quiet);
    assert_eq!(
        ask(&everything(), 133, None, Some(&hangs)),
        Verdict::Waits(s(7))
    );
    assert_eq!(
        cause(&ask(&everything(), 140, None, Some(&hangs))),
        Some(&Cause::RenewalsFailing)
    );
}

#[test]
fn the_budget_counts_down_to_the_earliest_reset() {
    let rules = Rules {
        budget_below: Some(s(60)),
        ..Rules::default()
    };
    // 130 s after the last renewal, at 230, the watchdog may fire.
    let failing = lockspace(100, LockspaceState::Expired);
    assert_eq!(
        ask(&rules, 170, None, Some(&failing)),
        Verdict::Waits(Duration::from_millis(1))
    );
    assert_eq!(
        cause(&ask(&rules, 171, None, Some(&failing))),
        Some(&Cause::BudgetBelow)
    );
    let signs = Signs {
        now: at(200),
        looked: at(200),
        outage: None,
        lockspace: Some(&failing),
        watchdog: &Watchdog::default(),
        conditions: &[],
    };
    assert_eq!(
        evaluate(&rules, &signs),
        Verdict::Quiet,
        "unknown is not below"
    );
}

#[test]
fn a_condition_of_the_node_counts_by_type_status_and_duration() {
    let rules = Rules {
        conditions: vec![ConditionRule {
            type_: "SanBroken".into(),
            status: "True".into(),
            held: s(5),
        }],
        ..Rules::default()
    };
    let condition = |type_: &str, status: &str, held| NodeCondition {
        type_: type_.into(),
        status: status.into(),
        since: "T0".into(),
        held: s(held),
    };
    let ask = |conditions: &[NodeCondition]| {
        let signs = Signs {
            now: at(0),
            looked: at(0),
            outage: None,
            lockspace: None,
            watchdog: &watchdog(),
            conditions,
        };
        evaluate(&rules, &signs)
    };
    assert_eq!(ask(&[]), Verdict::Quiet);
    assert_eq!(ask(&[condition("SanBroken", "False", 99)]), Verdict::Quiet);
    assert_eq!(ask(&[condition("Other", "True", 99)]), Verdict::Quiet);
    assert_eq!(
        ask(&[condition("SanBroken", "True", 4)]),
        Verdict::Waits(s(1))
    );
    let Verdict::Due(alarm) = ask(&[condition("SanBroken", "True", 5)]) else {
        panic!("due")
    };
    assert_eq!(alarm.cause, Cause::Condition("SanBroken".into()));
    assert_eq!(alarm.episode, "SanBroken=True@T0");
}

/// A look at a node of one volume group whose only path works or not.
fn look(milliseconds: u64, up: bool) -> Inventory {
    let path = Path {
        active: up,
        device_state: "running".into(),
        ..Path::default()
    };
    let group = VolumeGroup {
        uuid: "u".into(),
        pvs: vec![PhysicalVolume {
            dev: crate::fence::DevNo::default(),
            uuid: String::new(),
            kind: PvKind::Disk(path),
        }],
        ..VolumeGroup::default()
    };
    Inventory {
        taken_at: Monotonic(Duration::from_millis(milliseconds)),
        boot_id: String::new(),
        volume_groups: vec![group],
        lock_manager: LockManager::Running(vec![]),
        watchdog: Watchdog::default(),
    }
}

/// Looks in order, and the episodes that go off, with the time of each.
fn play(delay: Duration, looks: impl IntoIterator<Item = (u64, bool)>) -> Vec<(u64, String)> {
    let rules = Rules {
        all_paths_down: Some(delay),
        ..Rules::default()
    };
    let mut outages = Outages::default();
    let mut alarms: Vec<(u64, String)> = Vec::new();
    for (ms, up) in looks {
        outages.see(&look(ms, up));
        let verdict = evaluate(
            &rules,
            &Signs {
                now: Monotonic(Duration::from_millis(ms)),
                looked: Monotonic(Duration::from_millis(ms)),
                outage: outages.of("u"),
                lockspace: None,
                watchdog: &watchdog(),
                conditions: &[],
            },
        );
        if let Verdict::Due(alarm) = verdict
            && !alarms.iter().any(|(_, episode)| *episode == alarm.episode)
        {
            alarms.push((ms, alarm.episode));
        }
    }
    alarms
}

#[test]
fn flapping_every_second_for_a_minute_is_one_episode_at_most() {
    for delay in 0..30 {
        let looks = (0..600).map(|tenth| (tenth * 100, (tenth / 10) % 2 == 0));
        let alarms = play(s(delay), looks);
        assert!(alarms.len() <= 1, "delay {delay}: {alarms:?}");
    }
}

proptest! {
    /// A cut that is shorter than the delay does nothing, whenever it is looked at.
    #[test]
    fn a_cut_shorter_than_the_delay_does_nothing(
        delay in 1_u64..60_000,
        cut in 0_u64..60_000,
        steps in proptest::collection::vec(1_u64..5000, 1..200),
    ) {
        prop_assume!(cut < delay);
        let begin = 10_000;
        let looks = steps.iter().scan(0, |now, step| { *now += step; Some(*now) });
        let looks = looks.map(|ms| (ms, !(begin..begin + cut).contains(&ms)));
        prop_assert_eq!(play(Duration::from_millis(delay), looks), vec![]);
    }

    /// Whatever the paths do: it goes off only while they are down, only when they were lost for the delay, give or take interruptions that are
    /// shorter than it takes to settle, and once an outage.
    #[test]
    fn it_goes_off_only_for_what_was_down_and_once(
        delay in 0_u64..30_000,
        looks in proptest::collection::vec((1_u64..3000, any::<bool>()), 1..300),
    ) {
        let mut now = 0;
        let looks: Vec<(u64, bool)> = looks.into_iter().map(|(step, up)| { now += step; (now, up) }).collect();
        let settle = u64::try_from(SETTLE.as_millis()).unwrap();
        for (ms, _) in play(Duration::from_millis(delay), looks.clone()) {
            prop_assert!(looks.contains(&(ms, false)), "off at {} while a path works", ms);
            // No stretch of working looks within the delay before it lasts as long as it takes to settle.
            let mut up_since = None;
            for (at, up) in looks.iter().filter(|(at, _)| *at <= ms && *at + delay >= ms) {
                let since = *up_since.get_or_insert(*at);
                if !up { up_since = None; }
                prop_assert!(!up || at - since < settle, "settled at {}", at);
            }
        }
    }

    /// However it flaps, as long as it never settles there is one episode.
    #[test]
    fn one_episode_until_it_has_settled(
        delay in 0_u64..20_000,
        steps in proptest::collection::vec(50_u64..1000, 1..200),
    ) {
        let mut now = 0;
        let mut up = false;
        let looks = steps.into_iter().map(|step| { now += step; up = !up; (now, up) });
        prop_assert!(play(Duration::from_millis(delay), looks).len() <= 1);
    }
}
