//! Which node is to declare which fenced peer dead, and what is to be said about it. Pure.
//!
//! Where a task is, stands in the NodeStorages themselves: a new leader goes on from there. A peer that fails keeps its task and tries on; another one
//! is asked beside it. Two that declare the same are no harm: it is one flag of exactly one life of a host.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fitness::{Unfit, fit};
use super::proof::{Attested, proven, wanted};
use crate::api::condition::find;
use crate::api::takeover::{
    DeclareDead, DeclareDeadResult, DeclaredDead, MOST_TASKS, condition_type, reason,
};
use crate::api::{ConditionStatus, NodeStorageStatus, StorageFenceRequest};
use crate::controller::request::validate::Verdict;

/// How long a peer may take before another one is asked beside it.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// So many at most are asked to declare one host dead.
const MOST_PEERS: usize = 3;
/// So many are named in a message.
const NAMED: usize = 5;
/// What becomes of the locks otherwise.
pub const OTHERWISE: &str =
    "Otherwise other hosts get the locks when the leases have run out, as with takeover Wait";

/// A node as take-overs see it.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Name of the node.
    pub name: String,
    /// UID of its NodeStorage.
    pub uid: String,
    /// Whether its agent answers, and the report is of this agent and this Node.
    pub answers: bool,
    /// The report.
    pub storage: NodeStorageStatus,
    /// What it was asked.
    pub tasks: Vec<DeclareDead>,
    /// Why the API server did not take its tasks, a moment ago.
    pub refused: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The requests.
    pub requests: Vec<StorageFenceRequest>,
    /// The nodes.
    pub peers: Vec<Peer>,
    /// Requests that have to wait for a limit of their policy, by UID, and why.
    pub held_back: BTreeMap<String, String>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nodes whose tasks are not what they should be, with these.
    pub tasks: BTreeMap<String, Vec<DeclareDead>>,
    /// `TakenOver` of each request, in their order; None: it should have none.
    pub verdicts: Vec<Option<Verdict>>,
    /// Look again after this time even if nothing changes.
    pub look_again: Option<Duration>,
}

/// What was decided about one lockspace.
enum Stand {
    Done(String),
    Asked(String),
    Nobody(&'static str, String),
    /// There is nobody to be declared dead.
    Unlocked(String),
}

/// Plans. `waited`: how long that node has had that task.
#[must_use]
pub fn plan(view: &View, waited: &dyn Fn(&str, &DeclareDead) -> Duration) -> Plan {
    let mut planner = Planner {
        view,
        waited,
        tasks: BTreeMap::new(),
        look_again: None,
    };
    let verdicts = view.requests.iter().map(|r| planner.request(r)).collect();
    let Planner {
        mut tasks,
        look_again,
        ..
    } = planner;
    let differs = |peer: &Peer| {
        let mut wanted = tasks.remove(&peer.name).unwrap_or_default();
        wanted.sort();
        let mut stored = peer.tasks.clone();
        stored.sort();
        (wanted != stored).then_some((peer.name.clone(), wanted))
    };
    Plan {
        tasks: view.peers.iter().filter_map(differs).collect(),
        verdicts,
        look_again,
    }
}

struct Planner<'a> {
    view: &'a View,
    waited: &'a dyn Fn(&str, &DeclareDead) -> Duration,
    tasks: BTreeMap<String, Vec<DeclareDead>>,
    look_again: Option<Duration>,
}

impl<'a> Planner<'a> {
    fn request(&mut self, request: &StorageFenceRequest) -> Option<Verdict> {
        if !wanted(request) {
            return None;
        }
        let node = &request.spec.node_name;
        let fenced = self.view.peers.iter().find(|p| p.name == *node);
        let attested = match proven(request, fenced) {
            Ok(attested) => attested,
            Err(verdict) => return Some(verdict),
        };
        let stored = request.status.as_ref();
        let stored = stored.and_then(|s| find(&s.conditions, condition_type::TAKEN_OVER));
        if let Some(stored) = stored.filter(|c| {
            c.status == ConditionStatus::True
                && c.observed_generation == request.metadata.generation
        }) {
            // It was seen. The tasks, and what came of them, may be gone since.
            return Some(verdict(
                ConditionStatus::True,
                reason::TAKEN_OVER,
                stored.message.clone(),
            ));
        }
        let uid = request.metadata.uid.as_deref().unwrap_or_default();
        if let Some(why) = self.view.held_back.get(uid) {
            return Some(verdict(
                ConditionStatus::False,
                reason::LIMIT_REACHED,
                format!("{why}. {OTHERWISE}"),
            ));
        }
        let stands: Vec<Stand> = attested.iter().map(|one| self.stand(one)).collect();
        Some(sum_up(node, &stands))
    }

    fn stand(&mut self, attested: &Attested) -> Stand {
        match attested {
            Attested::Host(pin) => self.lockspace(pin),
            Attested::Unlocked(name) => Stand::Unlocked(format!(
                "nobody held the locks of volume group {name} any more when it was fenced, so nobody can be declared dead in its lockspace"
            )),
        }
    }

    /// Sees to it that somebody declares the fenced node dead in one lockspace.
    fn lockspace(&mut self, pin: &DeclareDead) -> Stand {
        let peers = &self.view.peers;
        if let Some(other) = peers.iter().find(|p| claims(p, pin)) {
            return Stand::Nobody(
                reason::HOST_ID_IN_USE,
                format!(
                    "node {} attests host id {} of lockspace {}, which node {} reports as its own: nobody is declared dead. Look at both nodes \
                     (sanlock client status)",
                    pin.node_name, pin.host_id, pin.lockspace, other.name
                ),
            );
        }
        let asked = || peers.iter().filter(|p| p.tasks.contains(pin));
        if let Some((peer, done)) =
            asked().find_map(|p| said(p, pin).filter(|d| d.done()).map(|d| (p, d)))
        {
            // Until the request says so: then its tasks go.
            self.give(peer, pin);
            return Stand::Done(format!("node {}: {}", peer.name, done.message));
        }
        let (mut failures, mut working, mut kept) = (Vec::new(), None, 0);
        let mut silent: Option<&Peer> = None;
        for peer in asked() {
            if let Err(unfit) = fit(peer, pin) {
                failures.push(format!("{}: {unfit}", peer.name));
                continue;
            }
            self.give(peer, pin);
            kept += 1;
            match self.failure(peer, pin) {
                Some(failure) => failures.push(format!("{}: {failure}", peer.name)),
                None => working = Some(peer),
            }
            let first = silent.is_none_or(|s| peer.name < s.name);
            if said(peer, pin).is_none() && first {
                silent = Some(peer);
            }
        }
        // One that says nothing, as agents do that know nothing of this yet, makes room for others, or three of them would keep all from being asked.
        let makes_room = silent.filter(|_| kept >= MOST_PEERS);
        if working.is_none() && (kept < MOST_PEERS || makes_room.is_some()) {
            working = self.choose(pin);
            if let Some(peer) = working {
                if let Some(silent) = makes_room {
                    self.take(silent, pin);
                }
                self.give(peer, pin);
            }
        }
        match working {
            Some(peer) => {
                let mut words = format!(
                    "node {} was asked to declare host {} generation {} of lockspace {} dead",
                    peer.name, pin.host_id, pin.generation, pin.lockspace
                );
                if !failures.is_empty() {
                    words = format!("{words}; before that {}", few(&failures));
                }
                Stand::Asked(words)
            }
            None => self.nobody(pin, &failures),
        }
    }

    /// Why a peer that was asked is not waited for any longer.
    fn failure(&mut self, peer: &Peer, pin: &DeclareDead) -> Option<String> {
        if let Some(word) = said(peer, pin).filter(|d| d.result != DeclareDeadResult::InProgress) {
            return Some(word.message.clone());
        }
        let waited = (self.waited)(&peer.name, pin);
        let left = PATIENCE.saturating_sub(waited);
        if left.is_zero() {
            return Some(format!("no answer for {} s", PATIENCE.as_secs()));
        }
        self.look_again = Some(self.look_again.map_or(left, |l| l.min(left)));
        None
    }

    /// Of the nodes that are fit and were not asked, one with the fewest tasks.
    fn choose(&self, pin: &DeclareDead) -> Option<&'a Peer> {
        let load = |peer: &Peer| self.tasks.get(&peer.name).map_or(0, Vec::len);
        let fits = |p: &&Peer| {
            !p.tasks.contains(pin)
                && p.refused.is_none()
                && load(p) < MOST_TASKS
                && fit(p, pin).is_ok()
        };
        // In turn, so that each comes to be asked.
        let asked = self.view.peers.iter().filter(|p| p.tasks.contains(pin));
        let last = asked.map(|p| p.name.as_str()).max().unwrap_or_default();
        let all = self.view.peers.iter().filter(fits);
        all.min_by_key(|p| (p.name.as_str() < last, load(p), p.name.as_str()))
    }

    fn take(&mut self, peer: &Peer, pin: &DeclareDead) {
        if let Some(tasks) = self.tasks.get_mut(&peer.name) {
            tasks.retain(|t| t != pin);
        }
    }

    fn give(&mut self, peer: &Peer, pin: &DeclareDead) {
        let tasks = self.tasks.entry(peer.name.clone()).or_default();
        tasks.push(pin.clone());
    }

    fn nobody(&self, pin: &DeclareDead, failures: &[String]) -> Stand {
        let others = self.view.peers.iter().filter(|p| p.name != pin.node_name);
        let unasked = others.filter(|p| !p.tasks.contains(pin));
        let refused = unasked.clone().filter(|p| fit(p, pin).is_ok());
        let refused = refused.filter_map(|p| {
            let why = p.refused.as_ref()?;
            Some(format!(
                "{}: the API server does not take its task: {why}",
                p.name
            ))
        });
        let failures: Vec<String> = failures.iter().cloned().chain(refused).collect();
        let unfit: Vec<(&str, Unfit)> = unasked
            .filter_map(|p| Some((p.name.as_str(), fit(p, pin).err()?)))
            .collect();
        // Those that do not have the volume group are beside the point.
        let near = unfit.iter().filter(|(_, why)| *why != Unfit::Elsewhere);
        let mut why = failures.clone();
        why.extend(near.clone().map(|(name, why)| format!("{name}: {why}")));
        let too_old = near.clone().all(|(_, why)| matches!(why, Unfit::TooOld(_)));
        let (reason, what) = if why.is_empty() {
            (
                reason::NO_PEER,
                format!(
                    "no other node reports lockspace {} of that volume group",
                    pin.lockspace
                ),
            )
        } else if failures.is_empty() && too_old {
            (
                reason::PEERS_TOO_OLD,
                format!(
                    "no node can declare host {} of lockspace {} dead: {}. Update sanlock there to 4.2 or newer",
                    pin.host_id,
                    pin.lockspace,
                    few(&why)
                ),
            )
        } else {
            (
                reason::NO_PEER,
                format!(
                    "no node can declare host {} of lockspace {} dead now: {}",
                    pin.host_id,
                    pin.lockspace,
                    few(&why)
                ),
            )
        };
        Stand::Nobody(reason, what)
    }
}

/// What a peer says came of a task.
fn said<'p>(peer: &'p Peer, pin: &DeclareDead) -> Option<&'p DeclaredDead> {
    peer.storage.declared_dead.iter().find(|d| d.is_of(pin))
}

/// Whether another node says that the host id is its own. An agent attests for its own node, and that is all that may be taken from it.
fn claims(peer: &Peer, pin: &DeclareDead) -> bool {
    peer.name != pin.node_name
        && peer.storage.volume_groups.iter().any(|g| {
            let own = g.lockspace.as_ref();
            g.uuid == pin.volume_group_uuid && own.is_some_and(|l| l.host_id == pin.host_id)
        })
}

fn sum_up(node: &str, stands: &[Stand]) -> Verdict {
    let mut words = Vec::new();
    let (mut asked, mut done, mut nobody) = (false, false, None);
    for stand in stands {
        match stand {
            Stand::Done(how) => {
                done = true;
                words.push(how.clone());
            }
            Stand::Unlocked(why) => words.push(why.clone()),
            Stand::Asked(whom) => {
                asked = true;
                words.push(whom.clone());
            }
            Stand::Nobody(reason, why) => {
                nobody = nobody.or(Some(*reason));
                words.push(why.clone());
            }
        }
    }
    let words = words.join("; ");
    match (nobody, asked) {
        (Some(reason), _) => verdict(
            ConditionStatus::False,
            reason,
            format!("{words}. It is tried again when something changes. {OTHERWISE}"),
        ),
        (None, true) => verdict(
            ConditionStatus::False,
            reason::EXPEDITING,
            format!("{words}. {OTHERWISE}"),
        ),
        (None, false) if !done => verdict(
            ConditionStatus::False,
            reason::GENERATION_UNKNOWN,
            format!("{words}. {OTHERWISE}"),
        ),
        (None, false) => verdict(
            ConditionStatus::True,
            reason::TAKEN_OVER,
            format!(
                "{words}. What node {node} had locked can be activated on other nodes (lvchange -aey)"
            ),
        ),
    }
}

pub(super) fn verdict(status: ConditionStatus, reason: &str, message: String) -> Verdict {
    Verdict {
        status,
        reason: reason.to_owned(),
        message,
    }
}

fn few(all: &[String]) -> String {
    let few: Vec<&str> = all.iter().take(NAMED).map(String::as_str).collect();
    match all.len().saturating_sub(NAMED) {
        0 => few.join("; "),
        more => format!("{}; and {more} more", few.join("; ")),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(super) mod tests;
