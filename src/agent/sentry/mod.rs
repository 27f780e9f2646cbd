//! The node on its own: what the policies in force have it do, with or without an API server.
//!
//! [`Sentry`] takes in looks at the node and what the API server tells of policies and the Node, says which fence is due, and keeps what a
//! successor has to know. It does nothing by itself: the desk begins its fences. It is given no clock but the monotonic one, which nobody can set.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`in_force`] | policies that select this node |
//! | [`records`] | fences that the node began, and the requests that record them |
//! | [`store`] | files on tmpfs |
//! | [`tasks`] | what talks to the API server |

pub mod in_force;
pub mod records;
pub mod store;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use self::in_force::{InForce, Learned};
use self::records::{Answer, LocalFence, Place, Records, local_fence, worth_a_record};
use self::store::Store;
use super::decide::{Known, Uid};
use super::journal::Record;
use super::node_conditions::{Says, conditions};
use crate::api::StorageFenceRequest;
use crate::api::policy::{Response, StorageFencePolicy, governing};
use crate::api::request::FenceState;
use crate::fence::order::WhenPathsRemain;
use crate::fence::outage::{Outage, Outages};
use crate::fence::report::FenceReport;
use crate::fence::trigger::{Alarm, NodeCondition, Signs, Verdict, can_be_fenced, evaluate};
use crate::fence::{Inventory, Monotonic, Order, VolumeGroup};

const OUTAGES: &str = "outages.json";
const FENCES: &str = "local-fences.json";
/// An outage that nobody has looked at for longer than this may have ended and begun anew.
const UNSEEN: Duration = Duration::from_secs(15);
/// Before a fence that came to nothing (a path came back, a daemon did not answer) is tried again, if it is still due.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Outages as they are kept.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct KeptOutages {
    seen: Monotonic,
    outages: BTreeMap<String, Outage>,
}

/// What others want to know of the latest look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Conditions of the Node.
    pub conditions: Vec<Says>,
    /// Which policy governs which volume group, by UUID.
    pub policies: BTreeMap<String, String>,
}

/// What would be done if the policy said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// For people.
    pub note: String,
    /// The outage of the volume group in this boot, whoever tells of it.
    pub occasion: String,
}

/// What is to be done now.
#[derive(Clone, Debug, Default)]
pub struct Due {
    /// A fence to begin, and what set it off, for people.
    pub fence: Option<(Order, String)>,
    /// Whether that fence has begun before, and came to nothing: people were told.
    pub again: bool,
    /// What would be done if the policies said so, each once.
    pub reports: Vec<Report>,
    /// Whether a fence waits for the one that is going on.
    pub held_up: bool,
    /// When it is worth asking again, if nothing else happens.
    pub wait: Option<Duration>,
}

/// See the module.
pub struct Sentry {
    node_name: String,
    store: Store,
    in_force: InForce,
    outages: Outages,
    kept: KeptOutages,
    last_look: Option<Monotonic>,
    closely: bool,
    records: Records,
    /// By UUID of a volume group: the episode that was reported last.
    reported: BTreeMap<String, String>,
    not_before: BTreeMap<String, Monotonic>,
    /// By UUID of the first volume group that it was about: the name of the fence that was due last.
    told: BTreeMap<String, String>,
    in_hand: BTreeSet<String>,
    make: mpsc::UnboundedSender<StorageFenceRequest>,
    outlook: watch::Sender<Outlook>,
}

impl Sentry {
    /// With what an earlier agent of this boot kept. Records to be made come out of the receiver.
    #[must_use]
    pub fn new(
        node_name: &str,
        store: Store,
        now: Monotonic,
    ) -> (Self, mpsc::UnboundedReceiver<StorageFenceRequest>) {
        let kept: KeptOutages = store.load(OUTAGES);
        let fresh = now.since(kept.seen) <= UNSEEN;
        let (make, to_make) = mpsc::unbounded_channel();
        let me = Self {
            node_name: node_name.to_owned(),
            in_force: InForce::load(&store),
            outages: Outages::resume(if fresh { kept.outages } else { BTreeMap::new() }),
            kept: KeptOutages::default(),
            last_look: None,
            closely: false,
            records: Records(store.load(FENCES)),
            reported: BTreeMap::new(),
            not_before: BTreeMap::new(),
            told: BTreeMap::new(),
            in_hand: BTreeSet::new(),
            make,
            outlook: watch::Sender::default(),
            store,
        };
        (me, to_make)
    }

    /// The latest outlook and its successors.
    #[must_use]
    pub fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.subscribe()
    }

    /// Compares what was kept with the journal of the earlier agent, and gives the fences of this boot that have ended. A fence that was about to
    /// begin when that agent died, and left no trace, never was: it is due again.
    ///
    /// `lifted` tells whether what a fence had proven was given back since. A record that is made after that says so: it would be an order otherwise, to
    /// fence what is in use again.
    pub fn resume(
        &mut self,
        left: Option<&Record>,
        lifted: &dyn Fn(&FenceReport) -> bool,
    ) -> Vec<Known> {
        if let Some(record) = left
            && let Some(fence) = self.records.by_uid(&record.begun.order.uid)
        {
            if record.unfinished() {
                fence.to_record |= record.touched();
            } else if let Some(report) = &record.finished {
                // An earlier try that came to nothing goes by the same UID: it is no answer to the outage, whatever it tried.
                fence.to_record |= worth_a_record(report);
                fence.report = Some(report.clone());
            }
        }
        // One that goes on without having left a trace yet is recorded when it does, and is due again if it comes to nothing.
        let goes_on = left.filter(|r| r.unfinished());
        let goes_on = goes_on.map(|r| r.begun.order.uid.as_str());
        let stays = |f: &LocalFence| f.to_record || goes_on.is_some_and(|uid| f.goes_by(uid));
        self.records.0.retain(stays);
        for fence in self.records.0.iter_mut().filter(|f| f.uid.is_none()) {
            if fence.report.as_ref().is_some_and(lifted) {
                fence.record.spec.fence_state = FenceState::Unfenced;
            }
        }
        self.store.save(FENCES, &self.records.0);
        for record in self.records.to_make() {
            let _ = self.make.send(record.clone());
        }
        let ended = self.records.0.iter().filter_map(|fence| {
            let mut known = Known {
                order: fence.order(),
                report: fence.report.clone()?,
            };
            let (uid, generation) = (known.order.uid.clone(), known.order.generation);
            records::rename(&mut known, &uid, generation);
            Some(known)
        });
        ended.collect()
    }

    /// The UID by which a fence goes by now.
    pub fn uid_now(&mut self, uid: &str) -> Uid {
        let fence = self.records.by_uid(uid);
        fence
            .and_then(|f| f.uid.clone())
            .unwrap_or_else(|| uid.to_owned())
    }

    /// Takes in what the API server tells.
    pub fn hear(&mut self, news: Learned, now: Monotonic) {
        self.in_force.hear(news, now, &self.store);
    }

    /// Takes in a look at the node, or why there is none.
    pub fn look(&mut self, inventory: Result<&Inventory, &str>, now: Monotonic) {
        if let Ok(inventory) = inventory
            && self.last_look.is_none_or(|last| inventory.taken_at > last)
        {
            self.last_look = Some(inventory.taken_at);
            let before: Vec<String> = self.outages.all().keys().cloned().collect();
            self.outages.see(inventory);
            self.tell_outages(&before, inventory, now);
            self.keep_outages(inventory.taken_at);
            self.closely = inventory.volume_groups.iter().any(|g| self.urgent(g));
        }
        let policies = inventory.map(|i| self.policies(i)).unwrap_or_default();
        let outlook = Outlook {
            conditions: conditions(inventory, &self.outages).into(),
            policies,
        };
        self.outlook.send_if_modified(|old| {
            let changed = *old != outlook;
            *old = outlook;
            changed
        });
    }

    fn tell_outages(&self, before: &[String], inventory: &Inventory, now: Monotonic) {
        for group in &inventory.volume_groups {
            let name = group.name.as_str();
            match (before.contains(&group.uuid), self.outages.of(&group.uuid)) {
                (false, Some(outage)) => {
                    let uptime = format!("{:.3}", now.0.as_secs_f64());
                    tracing::warn!(volume_group = name, loss = ?outage.loss, uptime, "no path works");
                }
                (true, None) => tracing::info!(volume_group = name, "paths work again"),
                _ => {}
            }
        }
    }

    fn keep_outages(&mut self, seen: Monotonic) {
        let outages = self.outages.all().clone();
        if outages.is_empty() && self.kept.outages.is_empty() {
            return;
        }
        self.kept = KeptOutages { seen, outages };
        self.store.save(OUTAGES, &self.kept);
    }

    fn policies(&self, inventory: &Inventory) -> BTreeMap<String, String> {
        let groups = inventory.volume_groups.iter().filter(|g| g.on_san());
        groups
            .filter_map(|g| {
                let policy = governing(&g.name, self.in_force.policies())?;
                Some((g.uuid.clone(), policy.metadata.name.clone()?))
            })
            .collect()
    }

    /// Whether a volume group that is in use has lost its storage, or gets it back: then the node is worth a closer look. For one that stands
    /// fenced there is no hurry, and its outage may last for days.
    fn urgent(&self, group: &VolumeGroup) -> bool {
        let outage = self.outages.of(&group.uuid);
        outage.is_some_and(|o| can_be_fenced(group) || !o.down())
    }

    /// Whether the node is worth a closer look, as of the latest one.
    #[must_use]
    pub fn alarmed(&self) -> bool {
        self.closely
    }

    /// Volume groups (by UUID) that a fence hangs on: another one would only hang as well, so none is due for them.
    pub fn in_hand(&mut self, uuids: BTreeSet<String>) {
        self.in_hand = uuids;
    }

    /// What is due. `busy`: a fence is going on, so that none can begin.
    pub fn due(&mut self, inventory: &Inventory, now: Monotonic, busy: bool) -> Due {
        let mut due = Due::default();
        let node = self.in_force.conditions(now);
        let mut wait = |more: Duration| {
            due.wait = Some(due.wait.map_or(more, |w: Duration| w.min(more)));
        };
        // The first policy that has something to be fenced, with all that it has to be fenced in the same way.
        let mut first: Option<(&StorageFencePolicy, WhenPathsRemain)> = None;
        let mut answers: Vec<Answer> = Vec::new();
        for group in inventory.volume_groups.iter().filter(|g| can_be_fenced(g)) {
            let Some(policy) = governing(&group.name, self.in_force.policies()) else {
                continue;
            };
            if policy.spec.response == Response::ConditionOnly {
                continue;
            }
            let mut alarm = match self.ask(policy, group, inventory, now, &node) {
                Verdict::Quiet => continue,
                Verdict::Waits(more) => {
                    wait(more);
                    continue;
                }
                Verdict::Due(alarm) => alarm,
            };
            if policy.spec.response == Response::Report {
                if self.reported.get(&group.uuid) != Some(&alarm.episode) {
                    let (boot, uuid) = (self.store.boot_id(), &group.uuid);
                    due.reports.push(Report {
                        note: in_words(policy, &[(group.name.as_str(), &alarm)]),
                        occasion: format!("{boot} {uuid} {}", alarm.episode),
                    });
                    self.reported.insert(group.uuid.clone(), alarm.episode);
                }
                continue;
            }
            let dry_run = policy.spec.dry_run;
            // A fence that was begun under its locks and fell short was left to the watchdog, which stands behind it no more.
            if group.unlocked && !dry_run && self.records.fell_short(&group.uuid, &alarm.episode) {
                alarm.episode.push_str(" without a lock");
                alarm.seen.push_str(", and nobody holds its locks any more");
            }
            if self.records.answered(&group.uuid, &alarm.episode, dry_run) {
                continue;
            }
            let not_before = self
                .not_before
                .get(&group.uuid)
                .copied()
                .unwrap_or_default();
            if busy || now < not_before || self.in_hand.contains(&group.uuid) {
                due.held_up |= now >= not_before && !dry_run && !self.in_hand.contains(&group.uuid);
                wait(not_before.since(now).max(Duration::from_millis(200)));
                continue;
            }
            let when = when_paths_remain(policy, &alarm);
            let key = *first.get_or_insert((policy, when));
            if std::ptr::eq(key.0, policy) && key.1 == when {
                answers.push(Answer {
                    name: group.name.clone(),
                    uuid: group.uuid.clone(),
                    alarm,
                });
            }
        }
        let Some((policy, when)) = first else {
            return due;
        };
        let place = Place {
            node_name: &self.node_name,
            boot_id: self.store.boot_id(),
            uptime: now.0.as_secs(),
        };
        let fence = local_fence(policy, &answers, when, place);
        // An agent of an earlier version called its dry runs as the fence is called: two of one name cannot be told apart, nor both be recorded.
        if self.records.has(fence.name()) {
            return due;
        }
        let seen: Vec<(&str, &Alarm)> = answers
            .iter()
            .map(|a| (a.name.as_str(), &a.alarm))
            .collect();
        due.fence = Some((fence.order(), in_words(policy, &seen)));
        if let Some(of) = answers.first().map(|a| a.uuid.clone()) {
            let last = self.told.insert(of, fence.name().to_owned());
            due.again = last.as_deref() == Some(fence.name());
        }
        self.records.0.push(fence);
        self.records.bound();
        // Before the fence begins: a successor has to know it by name.
        self.store.save(FENCES, &self.records.0);
        due
    }

    fn ask(
        &self,
        policy: &StorageFencePolicy,
        group: &VolumeGroup,
        inventory: &Inventory,
        now: Monotonic,
        node: &[NodeCondition],
    ) -> Verdict {
        let signs = Signs {
            now,
            looked: inventory.taken_at,
            outage: self.outages.of(&group.uuid),
            lockspace: group.lockspace.as_ref(),
            watchdog: &inventory.watchdog,
            conditions: node,
        };
        evaluate(&in_force::rules(&policy.spec.triggers), &signs)
    }

    /// A fence could not begin: it is due again.
    pub fn not_begun(&mut self, order: &Order, now: Monotonic) {
        self.forget(&order.uid, now);
    }

    fn forget(&mut self, uid: &str, now: Monotonic) {
        let Some(at) = self.records.0.iter().position(|f| f.local_uid() == uid) else {
            return;
        };
        let fence = self.records.0.remove(at);
        for uuid in fence.answers.into_keys() {
            self.not_before.insert(uuid, now + TRY_AGAIN);
        }
        self.store.save(FENCES, &self.records.0);
    }

    /// Takes in how a fence goes, and has its report speak of the request that records it, once that is known. Not about other fences.
    pub fn goes(&mut self, known: &mut Known, ended: bool, now: Monotonic) {
        let Some(fence) = self.records.by_uid(&known.order.uid) else {
            return;
        };
        if let Some(uid) = fence.uid.clone() {
            let generation = fence.order().generation;
            records::rename(known, &uid, generation);
        }
        let worth = worth_a_record(&known.report);
        if !worth && ended && !fence.to_record {
            // Nothing was touched: a path came back, or a daemon did not answer.
            self.forget(&known.order.uid.clone(), now);
            return;
        }
        let first = worth && !fence.to_record;
        fence.to_record |= worth;
        if ended {
            fence.report = Some(known.report.clone());
        }
        if first {
            let _ = self.make.send(fence.record.clone());
        }
        if first || ended {
            self.store.save(FENCES, &self.records.0);
        }
    }

    /// Whether a fence was begun here and is not held by the API server yet: nobody can have taken it back.
    #[must_use]
    pub fn owns(&self, uid: &str) -> bool {
        records::is_local(uid)
    }

    /// A request has turned up. When it is the record of a fence of ours: the UID that this went by until now.
    pub fn adopt(&mut self, request: &StorageFenceRequest) -> Option<Uid> {
        let local = self.records.adopt(request)?;
        self.store.save(FENCES, &self.records.0);
        Some(local)
    }
}

/// Whether a volume group with a working path is fenced: never on account of paths, always on account of the lease, and as the policy says on
/// account of a condition, which says nothing of either.
fn when_paths_remain(policy: &StorageFencePolicy, alarm: &Alarm) -> WhenPathsRemain {
    use crate::api::request::WhenPathsRemain as Says;
    if alarm.cause.is_about_paths() {
        return WhenPathsRemain::Refuse;
    }
    match policy.spec.request.when_paths_remain {
        _ if alarm.cause.is_about_the_lease() => WhenPathsRemain::Fence,
        Says::Fence => WhenPathsRemain::Fence,
        Says::Refuse => WhenPathsRemain::Refuse,
    }
}

fn in_words(policy: &StorageFencePolicy, seen: &[(&str, &Alarm)]) -> String {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let seen: Vec<String> = seen
        .iter()
        .map(|(group, alarm)| format!("volume group {group}: {}", alarm.seen))
        .collect();
    let what = match (policy.spec.response, policy.spec.dry_run) {
        (Response::Fence, false) => "it is fenced",
        (Response::Fence, true) => "a fence is planned (dry run)",
        _ => "nothing is done, since the policy only reports",
    };
    format!("policy {name}: {}: {what}", seen.join("; "))
}
