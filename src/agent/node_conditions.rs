//! The Node's conditions, from what was seen. Pure; without clocks in the messages, so that they change only when something has changed.

use crate::api::ConditionStatus;
use crate::api::node_condition_type::{SAN_PATHS_AVAILABLE, STORAGE_FENCED};
use crate::fence::inventory::{lost_among_living, paths_of};
use crate::fence::outage::{Loss, Outages};
use crate::fence::trigger::{can_be_fenced, renewals_fail};
use crate::fence::{Inventory, Monotonic, VolumeGroup};

/// Reasons of both conditions.
pub mod reason {
    /// SANPathsAvailable=True: every path works.
    pub const PATHS_WORK: &str = "PathsWork";
    /// SANPathsAvailable=True: some path of every physical volume works, others do not.
    pub const SOME_PATHS_LOST: &str = "SomePathsLost";
    /// SANPathsAvailable=True: no path of some physical volume works, but one of another does.
    pub const PHYSICAL_VOLUME_LOST: &str = "PhysicalVolumeLost";
    /// SANPathsAvailable=True: there is nothing to lose.
    pub const NO_SAN: &str = "NoSharedVolumeGroup";
    /// SANPathsAvailable=False: no path of a volume group works; they may return.
    pub const ALL_PATHS_DOWN: &str = "AllPathsDown";
    /// SANPathsAvailable=False: the devices are gone for good.
    pub const PERMANENT_DEVICE_LOSS: &str = "PermanentDeviceLoss";
    /// SANPathsAvailable=False: paths look alive, but nothing that is sent there ends.
    pub const NO_ANSWER: &str = "NoAnswer";
    /// SANPathsAvailable=Unknown: the physical volumes are not known.
    pub const PATHS_UNKNOWN: &str = "PathsUnknown";
    /// StorageFenced=True: volume groups stand on the error target.
    pub const FENCED: &str = "Fenced";
    /// StorageFenced=False.
    pub const NOT_FENCED: &str = "NotFenced";
    /// Unknown: the agent cannot see the node's storage.
    pub const NOT_OBSERVED: &str = "NotObserved";
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Says {
    /// Type.
    pub type_: &'static str,
    /// Status.
    pub status: ConditionStatus,
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
}

/// How bad it stands with a volume group's paths; the worst speaks for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    All,
    Some,
    Part,
    Unknown,
    Silent,
    Down,
    Gone,
}

fn reach(group: &VolumeGroup, outages: &Outages, looked: Monotonic) -> Reach {
    // An outage goes on until its end has settled. That of one that stands fenced is its leases' physical volume's: nothing is given back without it.
    if let Some(outage) = outages.of(&group.uuid) {
        return match outage.loss {
            Loss::DeviceGone => Reach::Gone,
            Loss::PathsDown => Reach::Down,
        };
    }
    let known = group.known_pvs();
    if known.is_empty() {
        return Reach::Unknown;
    }
    if known.iter().all(|pv| !pv.reachable()) {
        return Reach::Down;
    }
    let unrenewed = |g: &VolumeGroup| {
        g.lockspace
            .as_ref()
            .is_some_and(|l| renewals_fail(l, looked))
    };
    if outages.silent(&group.uuid, looked).is_some() || unrenewed(group) {
        return Reach::Silent;
    }
    match paths_of(known) {
        (up, all) if up == all => Reach::All,
        _ if lost_among_living(known).is_empty() => Reach::Some,
        _ => Reach::Part,
    }
}

/// Both conditions, as of the last look: what has changed since is not known.
#[must_use]
pub fn conditions(inventory: Result<&Inventory, &str>, outages: &Outages) -> [Says; 2] {
    match inventory {
        Ok(inventory) => [paths(inventory, outages), fenced(inventory)],
        Err(why) => [SAN_PATHS_AVAILABLE, STORAGE_FENCED].map(|type_| Says {
            type_,
            status: ConditionStatus::Unknown,
            reason: reason::NOT_OBSERVED,
            message: format!("The agent cannot see the node's storage: {why}"),
        }),
    }
}

fn paths(inventory: &Inventory, outages: &Outages) -> Says {
    let groups: Vec<(&VolumeGroup, Reach)> = inventory
        .volume_groups
        .iter()
        .filter(|g| g.on_san() || !g.recorded_pvs.is_empty())
        .map(|g| (g, reach(g, outages, inventory.taken_at)))
        .collect();
    let worst = groups.iter().map(|(_, reach)| *reach).max();
    let which: Vec<String> = groups
        .iter()
        .filter(|(_, reach)| Some(*reach) == worst)
        .map(|(group, _)| named(group, worst))
        .collect();
    let which = which.join(", ");
    let next = next(&groups);
    let (status, reason, message) = match worst {
        None => (
            ConditionStatus::True,
            reason::NO_SAN,
            "The node has no shared volume group".to_owned(),
        ),
        Some(Reach::All) => (
            ConditionStatus::True,
            reason::PATHS_WORK,
            format!("Every path of {which} works"),
        ),
        Some(Reach::Some) => (
            ConditionStatus::True,
            reason::SOME_PATHS_LOST,
            format!("{which}: not every path works; look at the node's NodeStorage"),
        ),
        // True: whoever answers False with a reset would take what still works. What is lost is said.
        Some(Reach::Part) => (
            ConditionStatus::True,
            reason::PHYSICAL_VOLUME_LOST,
            parts(&groups),
        ),
        Some(Reach::Unknown) => (
            ConditionStatus::Unknown,
            reason::PATHS_UNKNOWN,
            format!(
                "{which}: no active volume leads to a physical volume, so its paths are not known"
            ),
        ),
        Some(Reach::Silent) => (
            ConditionStatus::False,
            reason::NO_ANSWER,
            format!(
                "{which}: paths look alive, but commands do not end or sanlock's lease is not renewed{next}"
            ),
        ),
        Some(Reach::Down) => (
            ConditionStatus::False,
            reason::ALL_PATHS_DOWN,
            format!("{which}: no path works; they may return{next}"),
        ),
        Some(Reach::Gone) => (
            ConditionStatus::False,
            reason::PERMANENT_DEVICE_LOSS,
            format!(
                "{which}: no path works, and the disks are gone for good: unmapped, dropped or given up by the kernel{next}"
            ),
        ),
    };
    Says {
        type_: SAN_PATHS_AVAILABLE,
        status,
        reason,
        message,
    }
}

/// A volume group; of one that stands fenced with the physical volumes that are lost, if others of it are not.
fn named(group: &VolumeGroup, reach: Option<Reach>) -> String {
    let lost = lost_among_living(&group.recorded_pvs);
    if lost.is_empty() || reach < Some(Reach::Down) {
        return group.name.clone();
    }
    format!("{} (to {})", group.name, lost.join(", "))
}

/// What becomes of the node where storage is lost that does not stand fenced.
fn next(groups: &[(&VolumeGroup, Reach)]) -> String {
    let exposed = groups
        .iter()
        .filter(|(group, reach)| *reach >= Reach::Silent && can_be_fenced(group));
    let names: Vec<&str> = exposed.map(|(group, _)| group.name.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        ". Not fenced: {}. When its lease is lost, the watchdog resets the host, unless a kill hook that is in force fences it first. A policy \
         (kubectl get sfp) or a StorageFenceRequest fences it now",
        names.join(", ")
    )
}

fn parts(groups: &[(&VolumeGroup, Reach)]) -> String {
    let half = groups.iter().filter(|(_, reach)| *reach == Reach::Part);
    let (fenced, open): (Vec<_>, Vec<_>) = half.partition(|(g, _)| !g.recorded_pvs.is_empty());
    let lost = |of: Vec<&(&VolumeGroup, Reach)>| {
        let says = of.into_iter().map(|(group, _)| {
            let lost = lost_among_living(group.known_pvs()).join(", ");
            format!("{}: no path works to {lost}", group.name)
        });
        says.collect::<Vec<_>>().join("; ")
    };
    let mut all = Vec::new();
    if !open.is_empty() {
        all.push(format!(
            "{}; volumes there wait, others go on. A volume group is fenced as a whole, when its lease is lost or a request names it and says whenPathsRemain: Fence",
            lost(open)
        ));
    }
    if !fenced.is_empty() {
        all.push(format!(
            "{}; it stands fenced, and is given back when every physical volume has a path again",
            lost(fenced)
        ));
    }
    all.join(". ")
}

fn fenced(inventory: &Inventory) -> Says {
    let names: Vec<&str> = inventory
        .volume_groups
        .iter()
        .filter(|g| g.fenced())
        .map(|g| g.name.as_str())
        .collect();
    let (status, reason, message) = if names.is_empty() {
        (
            ConditionStatus::False,
            reason::NOT_FENCED,
            "No volume group stands fenced".to_owned(),
        )
    } else {
        (
            ConditionStatus::True,
            reason::FENCED,
            format!(
                "{}: every device leads nowhere (the error target). By which request: kubectl get sfr, and status.fences of the NodeStorage",
                names.join(", ")
            ),
        )
    };
    Says {
        type_: STORAGE_FENCED,
        status,
        reason,
        message,
    }
}

#[cfg(test)]
#[path = "node_conditions_tests.rs"]
mod tests;
