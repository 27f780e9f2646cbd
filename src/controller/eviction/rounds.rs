//! When to ask the API server again: soon after the agent has named other pods, less and less often while nothing changes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::eviction::AffectedPods;

/// Never sooner after the last time.
const LEAST: Duration = Duration::from_secs(2);
/// The first wait while the same pods are affected; each is twice as long as the one before...
const FIRST: Duration = Duration::from_secs(5);
/// ...up to this: one question a node and minute.
const LONGEST: Duration = Duration::from_mins(1);
/// Where asking again would only tell the same: for what a watch may miss.
const SETTLED: Duration = Duration::from_mins(10);
/// So long it is seen whether other nodes of the policy lose their storage too, before the first eviction by a policy.
pub const COUNTING: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Round {
    since: Instant,
    last: Option<(Instant, Of)>,
    tries: u32,
    /// How often other pods were named than before.
    others: u32,
    wait: Duration,
    /// When the limit's numbers were told last.
    told: Option<Instant>,
}

/// What was asked about: the generation of the request, and its pods.
type Of = (Option<i64>, AffectedPods);

/// By UID of the request.
#[derive(Debug, Default)]
pub struct Rounds(Mutex<HashMap<String, Round>>);

impl Rounds {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Round>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has been wished by now that pods are evicted for a request.
    #[must_use]
    pub fn wished_for(&self, uid: &str, now: Instant) -> Duration {
        let mut all = self.all();
        let round = all.entry(uid.to_owned()).or_insert(Round {
            since: now,
            last: None,
            tries: 0,
            others: 0,
            wait: Duration::ZERO,
            told: None,
        });
        now.saturating_duration_since(round.since)
    }

    /// How long to wait before the API server is asked about these pods.
    #[must_use]
    pub fn wait(&self, uid: &str, about: &Of, now: Instant) -> Option<Duration> {
        let all = self.all();
        let round = all.get(uid)?;
        let (at, of) = round.last.as_ref()?;
        let wait = if of == about {
            round.wait
        } else if brings_others(of, about) {
            // The successors of those that were evicted, on the same node again: they must not be chased ever faster.
            LEAST.saturating_mul(1 << round.others.min(6)).min(LONGEST)
        } else {
            LEAST
        };
        let wait = (*at + wait).saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// The API server was asked about these pods. Gives when to ask it again. `settled`: it would only tell the same.
    pub fn asked(&self, uid: &str, about: Of, settled: bool, now: Instant) -> Duration {
        let mut all = self.all();
        let Some(round) = all.get_mut(uid) else {
            return FIRST;
        };
        let same = round.last.as_ref().is_some_and(|(_, of)| *of == about);
        round.tries = if same { round.tries + 1 } else { 0 };
        let others = round
            .last
            .as_ref()
            .is_some_and(|(_, of)| brings_others(of, &about));
        round.others = round.others.saturating_add(others.into());
        round.wait = if settled {
            SETTLED
        } else {
            FIRST.saturating_mul(1 << round.tries.min(6)).min(LONGEST)
        };
        round.last = Some((now, about));
        round.wait
    }

    /// The limit keeps it: it is asked at once when it no longer does. Whether the limit's numbers may be told again: all of a policy's requests would
    /// be written with every node that comes or goes.
    pub fn limited(&self, uid: &str, now: Instant) -> bool {
        let mut all = self.all();
        let Some(round) = all.get_mut(uid) else {
            return true;
        };
        round.last = None;
        let may = round
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= LONGEST);
        if may {
            round.told = Some(now);
        }
        may
    }

    /// Nothing is wished any more.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }
}

/// Whether pods are named that were not named before.
fn brings_others(before: &Of, now: &Of) -> bool {
    let known = |uid: &String| before.1.pods.iter().any(|p| p.uid == *uid);
    now.1.pods.iter().any(|p| !known(&p.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::eviction::AffectedPod;

    fn pods(uids: &[&str]) -> Of {
        let pod = |uid: &&str| AffectedPod {
            uid: (*uid).to_owned(),
            volumes: Vec::new(),
        };
        let pods = AffectedPods {
            pods: uids.iter().map(pod).collect(),
            ..AffectedPods::default()
        };
        (Some(1), pods)
    }

    #[test]
    fn it_is_asked_less_and_less_often_until_other_pods_are_named() {
        let rounds = Rounds::default();
        let (one, other) = (pods(&["a"]), pods(&["b"]));
        let mut now = Instant::now();
        assert_eq!(rounds.wished_for("r", now), Duration::ZERO);
        assert_eq!(rounds.wait("r", &one, now), None, "the first time at once");
        let mut waits = Vec::new();
        for _ in 0..7 {
            let wait = rounds.asked("r", one.clone(), false, now);
            assert_eq!(rounds.wait("r", &one, now), Some(wait));
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(rounds.wait("r", &one, now), None);
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60, 60]);
        assert_eq!(rounds.wished_for("r", now), Duration::from_secs(255));
        // Others: soon, but not at once.
        rounds.asked("r", one.clone(), false, now);
        assert_eq!(rounds.wait("r", &other, now), Some(LEAST));
        assert_eq!(rounds.asked("r", other.clone(), false, now), FIRST);
        // One that is settled is left alone until others are named.
        assert_eq!(rounds.asked("r", other.clone(), true, now), SETTLED);
        assert_eq!(rounds.wait("r", &one, now + 2 * LEAST), None);
        let edited = (Some(2), other.1.clone());
        assert_eq!(rounds.wait("r", &edited, now + LEAST), None);
        // What a limit has kept is asked at once, and its numbers are not told all the time.
        assert!(rounds.limited("r", now));
        assert_eq!(rounds.wait("r", &other, now), None);
        assert!(!rounds.limited("r", now + FIRST));
        assert!(rounds.limited("r", now + LONGEST));
        rounds.forget("r");
        assert_eq!(rounds.wait("r", &other, now), None);
        assert_eq!(rounds.wished_for("r", now), Duration::ZERO);
    }

    #[test]
    fn successors_are_not_chased_ever_faster() {
        let rounds = Rounds::default();
        let now = Instant::now();
        let _ = rounds.wished_for("r", now);
        let mut waits = Vec::new();
        for uid in ["a", "b", "c", "d", "e", "f", "g"] {
            let next = pods(&[uid]);
            waits.push(rounds.wait("r", &next, now).unwrap_or_default().as_secs());
            rounds.asked("r", next, false, now);
        }
        assert_eq!(waits, [0, 2, 4, 8, 16, 32, 60]);
        // Where they only become fewer, there is nothing to chase.
        assert_eq!(rounds.wait("r", &pods(&[]), now), Some(LEAST));
    }
}
