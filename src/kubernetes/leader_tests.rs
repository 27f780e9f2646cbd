use super::*;

fn election() -> Election {
    Election::new("ns", "lease", "me")
}

#[test]
fn who_may_have_the_lease() {
    let lease = Duration::from_secs(15);
    let almost = Duration::from_millis(14_999);
    for (holder, unchanged_for, decision) in [
        (None, Duration::ZERO, Decision::Take),
        (Some(""), Duration::ZERO, Decision::Take),
        (Some("me"), Duration::ZERO, Decision::Renew),
        (Some("me"), lease * 10, Decision::Renew),
        (Some("other"), Duration::ZERO, Decision::Wait),
        (Some("other"), almost, Decision::Wait),
        (Some("other"), lease, Decision::TakeOver),
    ] {
        assert_eq!(
            decide(holder, "me", unchanged_for, lease),
            decision,
            "{holder:?} {unchanged_for:?}"
        );
    }
}

#[test]
fn a_lease_expires_by_our_clock_since_we_saw_it_change() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut seen = Observation {
        version: None,
        since: start,
    };
    let (one, two) = ("1".to_owned(), "2".to_owned());
    // The first look says nothing about how old it is.
    assert_eq!(seen.note(Some(&one), at(100)), Duration::ZERO);
    assert_eq!(seen.note(Some(&one), at(110)), Duration::from_secs(10));
    assert_eq!(seen.note(Some(&two), at(114)), Duration::ZERO);
    assert_eq!(seen.note(Some(&two), at(129)), Duration::from_secs(15));
}

#[test]
fn transitions_count_changes_of_the_holder_only() {
    let now = Timestamp::from_second(1000).unwrap();
    let first = written(&election(), Lease::default(), Decision::Take, now);
    let spec = first.spec.clone().unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("me"));
    assert_eq!(spec.lease_transitions, Some(1));
    assert_eq!(spec.lease_duration_seconds, Some(15));
    let later = Timestamp::from_second(1002).unwrap();
    let renewed = written(&election(), first, Decision::Renew, later)
        .spec
        .unwrap();
    assert_eq!(renewed.lease_transitions, Some(1));
    assert_eq!(renewed.acquire_time, spec.acquire_time);
    assert_eq!(renewed.renew_time, Some(MicroTime(later)));
}

/// The order that keeps two leaders apart: a holder has stopped before anybody else may take over, even if its last renewal was stored only when
/// the attempt's limit had almost passed.
#[test]
fn the_times_keep_two_leaders_apart() {
    let election = election();
    let attempt = Duration::from_secs(3);
    assert!(election.renew_deadline + attempt < election.lease_duration);
    assert!(election.retry_period + attempt < election.renew_deadline);
}
