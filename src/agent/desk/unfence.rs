//! The desk's part in giving storage back.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Desk, Running, Work};
use crate::agent::decide::Known;
use crate::agent::hook;
use crate::agent::report::AgentPart;
use crate::agent::restore::paths::{Paths, Waiting};
use crate::agent::restore::report::{from_report, happened};
use crate::fence::order::Selection;
use crate::fence::report::{Outcome, VolumeGroupReport};
use crate::fence::unfence::{GroupReport, Standing, UnfenceOrder, UnfenceOutcome, UnfenceReport};
use crate::fence::{Monotonic, Order};

/// Until what is half-way is let go of anew, where it was not known what is left of it: the question may take its time, and the desk waits for it.
const LET_GO_AGAIN: Duration = Duration::from_secs(30);

impl Desk {
    /// Goes on with an un-fence that was killed: at once, whatever the API server does, since half-way is the worst place to stop at. Only a fence comes
    /// before it.
    pub(super) fn lift_on(&mut self) -> std::io::Result<()> {
        self.tools.actor.watch_again();
        let mut left = self.tools.actor.lifting();
        // The others have their turn when it is known whether their requests are there.
        let known = |report: &UnfenceReport| (report.order.uid.clone(), report.clone());
        self.lifts.extend(left.iter().map(known));
        let Some(report) = left.pop().filter(|_| self.queue.is_empty()) else {
            return Ok(());
        };
        let order = report.order.clone();
        tracing::warn!(
            request = order.name,
            "going on with the un-fence of an earlier agent"
        );
        let uid = order.uid.clone();
        let others = self.others(&uid);
        let reins = self
            .tools
            .actor
            .begin_unfence(order, Some(report), others)?;
        let work = Work::Unfence;
        self.running = Some((Running { uid, work }, reins));
        Ok(())
    }

    /// Somebody has to fence, and that cannot wait. Whether there was an un-fence to be interrupted.
    pub(super) fn interrupt_unfence(&self) -> bool {
        match &self.running {
            Some((running, reins)) if running.work == Work::Unfence => {
                reins.call_off();
                true
            }
            _ => false,
        }
    }

    /// What the wall clock said at a point of the monotonic one; as it was `read` before, where that is about the same moment.
    pub(super) fn wall_clock(&self, monotonic: Monotonic, read: Option<Timestamp>) -> Timestamp {
        let ago = SignedDuration::try_from(self.tools.host.system.monotonic().since(monotonic))
            .unwrap_or_default();
        let now = Timestamp::now();
        let computed = now.checked_sub(ago).unwrap_or(now);
        read.filter(|read| read.duration_since(computed).abs() < SignedDuration::from_secs(2))
            .unwrap_or(computed)
    }

    pub(super) fn begin_unfence(&mut self, order: UnfenceOrder) {
        let uid = order.uid.clone();
        let previous = self.lifts.get(&uid).cloned();
        let others = self.others(&uid);
        match self.tools.actor.begin_unfence(order, previous, others) {
            Ok(reins) => {
                let work = Work::Unfence;
                self.running = Some((Running { uid, work }, reins));
            }
            Err(error) => tracing::error!(%error, "no thread for an un-fence; trying again"),
        }
    }

    /// Those that wait while this one has its turn.
    fn others(&self, uid: &str) -> Paths {
        let waits = |l: &&UnfenceReport| l.order.uid != uid && l.again_at().is_some();
        Paths::of(self.lifts.values().filter(waits))
    }

    pub(super) fn hear_paths(&mut self, seen: Vec<Waiting>) {
        for one in seen {
            let report = self.lifts.get_mut(&one.uid);
            let groups = report.into_iter().flat_map(|r| &mut r.groups);
            for group in groups.filter(|g| g.standing.uuid == one.group.uuid) {
                group.health.clone_from(&one.health);
            }
        }
    }

    pub(super) fn hear_unfence(&mut self, report: UnfenceReport, ended: bool) {
        let uid = report.order.uid.clone();
        if let Some(happened) = happened(self.lifts.get(&uid), &report) {
            tracing::info!(
                request = report.order.name,
                reason = happened.reason,
                happened.note,
                "unfence"
            );
            self.tell(&report.order.name, &uid, "Unfence", &happened);
        }
        if ended && report.outcome == UnfenceOutcome::Done {
            self.overtake();
        }
        if ended {
            self.running = None;
            if let Some(order) = self.after_unfence.take() {
                self.begin_own(&order);
            }
        }
        if ended && report.outcome == UnfenceOutcome::Done {
            // Nothing of these fences stands any more: a request that wants one again gets one. But not the record of one of our own that turns up later.
            let given_back = |name: &str| report.groups.iter().any(|g| g.standing.uuid == name);
            self.known.retain(|uid, known| {
                let groups = &known.report.volume_groups;
                !Self::recorded(uid) || !groups.iter().any(|g| given_back(&g.uuid))
            });
            // What NodeStorage says of the volume groups is no longer so.
            self.tools.observer.look();
        }
        self.lifts.insert(uid, report);
    }

    /// Fences of the node's own that nobody can record yet, and of which nothing stands any more: that is what their records are to say. Not while
    /// anything is going on.
    pub(super) fn overtake(&mut self) {
        let mut local = self.known.values().filter(|k| {
            let uid = &k.order.uid;
            !Self::recorded(uid) && !hook::is_ours(uid) && k.report.outcome == Outcome::Proven
        });
        let Some(first) = local.next() else { return };
        let Ok(stands) = self.tools.actor.standings().all() else {
            return;
        };
        // What is half-way may come to stand again.
        let lifting = self.tools.actor.lifting();
        let half_way = |uuid: &str| {
            let mut groups = lifting.iter().flat_map(|l| &l.groups);
            groups.any(|g| g.standing.uuid == uuid)
        };
        let stands = |uuid: &str| stands.iter().any(|s| s.group.uuid == uuid) || half_way(uuid);
        let gone = |k: &&Known| !k.report.volume_groups.iter().any(|g| stands(&g.uuid));
        let over = std::iter::once(first).chain(local).filter(gone);
        let over: Vec<UnfenceReport> = over.map(over_report).collect();
        for report in over {
            self.lifts.insert(report.order.uid.clone(), report);
        }
    }

    /// What is half-way and was put out of mind for a fence that came to nothing. Not while anything is going on.
    pub(super) fn remember_half_way(&mut self) {
        for report in self.tools.actor.lifting() {
            self.lifts.entry(report.order.uid.clone()).or_insert(report);
        }
    }

    /// A request has gone whose storage is not to be given back: nor is the rest of it, where that was begun. Its attempt ends, as one does whose
    /// request wants a fence.
    pub(super) fn retain(&mut self, uid: &str) {
        if let Some((running, reins)) = &self.running
            && running.uid == uid
            && running.work == Work::Unfence
        {
            reins.call_off();
        }
        self.retained.insert(uid.to_owned(), Monotonic::default());
    }

    /// Not while anything is going on.
    fn let_go(&mut self) {
        let now = self.tools.host.system.monotonic();
        let due = self.retained.iter().filter(|(_, at)| **at <= now);
        for uid in due.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            if self.tools.actor.let_go(&uid) {
                tracing::info!(
                    uid,
                    "a request is gone with deletionPolicy: Retain: what it left is not given back"
                );
                self.retained.remove(&uid);
                self.lifts.remove(&uid);
                self.lifts_started.remove(&uid);
            } else {
                self.retained.insert(uid, now + LET_GO_AGAIN);
            }
        }
    }

    /// Un-fences that were left half-way and that no request asks for any more. What is known of others that are gone is forgotten.
    pub(super) fn abandoned(&mut self) -> Vec<UnfenceOrder> {
        if self.running.is_none() {
            self.let_go();
        }
        // What is not recorded yet has no request.
        let gone = |uid: &String| !self.requests.contains_key(uid) && Self::recorded(uid);
        if self.running.is_some() || !self.listed || !self.lifts.keys().any(gone) {
            return Vec::new();
        }
        let mut left = self.tools.actor.lifting();
        left.retain(|l| !self.requests.contains_key(&l.order.uid));
        left.retain(|l| !self.retained.contains_key(&l.order.uid));
        let of_it = |uid: &String| left.iter().any(|l| l.order.uid == *uid);
        self.lifts.retain(|uid, _| !gone(uid) || of_it(uid));
        // Not whatever else its order would mean by now.
        let names = |l: &UnfenceReport| {
            let names = l.groups.iter().map(|g| g.standing.name.clone());
            Selection::Named(names.collect())
        };
        let order = |l: UnfenceReport| UnfenceOrder {
            volume_groups: names(&l),
            ..l.order
        };
        left.into_iter().map(order).collect()
    }

    pub(super) fn unfence_part(
        &mut self,
        uid: &str,
        report: &UnfenceReport,
        now: Timestamp,
        before: &AgentPart,
    ) -> AgentPart {
        let started = report.started.map(|monotonic| {
            let fixed = self.lifts_started.get(uid).copied();
            if let Some((_, at)) = fixed.filter(|(m, _)| *m == monotonic) {
                return at;
            }
            let read = before.node.as_ref().and_then(|n| {
                let same_boot = n.boot_id == report.boot_id;
                n.unfence.as_ref()?.started_at.filter(|_| same_boot)
            });
            let at = self.wall_clock(monotonic, read);
            self.lifts_started.insert(uid.to_owned(), (monotonic, at));
            at
        });
        from_report(report, started, now, before)
    }
}

/// What there is to say of a fence that was given back, by whomever, before its record could be made.
fn over_report(known: &Known) -> UnfenceReport {
    let group = |g: &VolumeGroupReport| GroupReport {
        standing: Standing {
            name: g.name.clone(),
            uuid: g.uuid.clone(),
            ..Standing::default()
        },
        ..GroupReport::default()
    };
    let Order {
        name,
        uid,
        generation,
        volume_groups,
        ..
    } = known.order.clone();
    UnfenceReport {
        order: UnfenceOrder {
            name,
            uid,
            generation,
            volume_groups,
            healthy_for: Duration::ZERO,
        },
        boot_id: known.report.boot_id.clone(),
        groups: known.report.volume_groups.iter().map(group).collect(),
        outcome: UnfenceOutcome::Done,
        message: "The storage had been given back before this record could be made: nothing stands fenced for it any more".into(),
        ..UnfenceReport::default()
    }
}
