//! Kill hooks that wait for the desk: each for its turn, and then for the end of a fence of its volume group, whoever ordered it.

use std::collections::BTreeSet;

use super::is_ours;
use super::server::Call;
use crate::agent::decide::Known;
use crate::fence::report::{FenceReport, Outcome};

/// Those that wait, in the order in which they came.
#[derive(Debug, Default)]
pub struct Waiting {
    calls: Vec<Call>,
}

impl Waiting {
    /// One more.
    pub fn push(&mut self, call: Call) {
        self.calls.push(call);
    }

    /// The volume group that is to be fenced next for them; not one that a fence is at already, which they wait for. Hooks that no longer wait
    /// have gone their own way.
    pub fn first(&mut self, in_hand: &BTreeSet<String>) -> Option<&str> {
        self.calls.retain(|c| !c.answer.is_closed());
        let mut all = self.calls.iter().map(|c| c.vg.as_str());
        all.find(|vg| !in_hand.contains(*vg))
    }

    /// A fence has ended: answers those whom it concerns.
    pub fn ended(&mut self, known: &Known) {
        for call in std::mem::take(&mut self.calls) {
            match verdict(&call.vg, known) {
                // A hook that is gone needs no answer.
                Some(verdict) => drop(call.answer.send(verdict)),
                None => self.calls.push(call),
            }
        }
    }
}

/// What a fence that has ended means for the hook of a volume group; None when it waits on for one of its own.
fn verdict(vg: &str, Known { order, report }: &Known) -> Option<Result<(), String>> {
    let covered = covers(report, vg);
    let own = is_ours(&order.uid) && order.name == super::order(vg, 0).name;
    match report.outcome {
        Outcome::Proven if covered => Some(Ok(())),
        Outcome::NotProven if covered => Some(Err(report.message.clone())),
        // Whatever else became of a hook's own order: it is not tried again, or it would be for ever.
        _ if own => Some(Err(report.message.clone())),
        _ => None,
    }
}

fn covers(report: &FenceReport, vg: &str) -> bool {
    report.volume_groups.iter().any(|g| g.name == vg)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::agent::hook::order;
    use crate::fence::Order;
    use crate::fence::report::VolumeGroupReport;

    fn known(order: Order, groups: &[&str], outcome: Outcome) -> Known {
        let group = |name: &&str| VolumeGroupReport {
            name: (*name).to_owned(),
            ..VolumeGroupReport::default()
        };
        Known {
            order,
            report: FenceReport {
                outcome,
                message: "why".into(),
                volume_groups: groups.iter().map(group).collect(),
                ..FenceReport::default()
            },
        }
    }

    fn request() -> Order {
        Order {
            uid: "1234".into(),
            ..Order::default()
        }
    }

    #[test]
    fn a_hook_is_answered_by_the_end_of_a_fence_of_its_volume_group_only() {
        use crate::fence::selection::RefusalReason::NothingAffected;
        let failed = Some(Err("why".to_owned()));
        for (order, groups, outcome, expected) in [
            (request(), &["a", "b"][..], Outcome::Proven, Some(Ok(()))),
            (request(), &["b"], Outcome::Proven, None),
            (request(), &["a"], Outcome::NotProven, failed.clone()),
            // Another's order that came to nothing: the hook's own is next.
            (request(), &["a"], Outcome::CalledOff, None),
            (request(), &[], Outcome::Refused(NothingAffected), None),
            (request(), &["a"], Outcome::DryRun, None),
            (order("a", 7), &["a"], Outcome::Proven, Some(Ok(()))),
            (
                order("a", 7),
                &[],
                Outcome::Refused(NothingAffected),
                failed.clone(),
            ),
            (order("a", 7), &["a"], Outcome::CalledOff, failed),
            (order("b", 7), &[], Outcome::Refused(NothingAffected), None),
        ] {
            let text = format!("{order:?} {groups:?} {outcome:?}");
            let mut waiting = Waiting::default();
            let (answer, mut answered) = oneshot::channel();
            waiting.push(Call {
                vg: "a".into(),
                answer,
            });
            waiting.ended(&known(order, groups, outcome));
            assert_eq!(answered.try_recv().ok(), expected, "{text}");
            assert_eq!(
                waiting.first(&BTreeSet::new()).is_some(),
                expected.is_none(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_hook_that_went_its_own_way_is_not_fenced_for() {
        let mut waiting = Waiting::default();
        let (answer, answered) = oneshot::channel();
        waiting.push(Call {
            vg: "a".into(),
            answer,
        });
        let (other, _waits) = oneshot::channel();
        waiting.push(Call {
            vg: "b".into(),
            answer: other,
        });
        let nothing = BTreeSet::new();
        assert_eq!(waiting.first(&nothing), Some("a"));
        assert_eq!(waiting.first(&BTreeSet::from(["a".into()])), Some("b"));
        drop(answered);
        assert_eq!(waiting.first(&nothing), Some("b"));
    }
}
