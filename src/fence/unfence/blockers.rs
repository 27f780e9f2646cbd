//! What speaks against lifting a fence, and how long the paths have been healthy.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LockState, Standing};
use crate::fence::inventory::{DevNo, DmDevice, PhysicalVolume, PvKind};
use crate::fence::time::Monotonic;
use crate::fence::topology::GONE;

/// Two looks that are farther apart than this are no observation of what was in between.
const LONGEST_GAP: Duration = Duration::from_secs(15);

/// How long the paths of a volume group have been healthy: every physical volume reachable, and no path lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Since when; None while they are not.
    pub since: Option<Monotonic>,
    /// Working paths at the last look.
    working: BTreeSet<DevNo>,
    /// When that was.
    looked: Monotonic,
}

impl Health {
    /// With one more look. A path that was lost meanwhile, or a gap between looks, begins the time anew.
    #[must_use]
    pub fn look(before: Option<&Self>, pvs: &[PhysicalVolume], now: Monotonic) -> Self {
        let working: BTreeSet<DevNo> = pvs
            .iter()
            .flat_map(PhysicalVolume::paths)
            .filter(|p| p.active)
            .map(|p| p.dev)
            .collect();
        let reachable = !pvs.is_empty() && pvs.iter().all(PhysicalVolume::reachable);
        let kept = before
            .filter(|b| b.working.is_subset(&working) && now.since(b.looked) <= LONGEST_GAP)
            .and_then(|b| b.since);
        Self {
            since: reachable.then(|| kept.unwrap_or(now)),
            working,
            looked: now,
        }
    }

    /// How long, up to the last look. None while they are not.
    #[must_use]
    pub fn lasted(&self) -> Option<Duration> {
        self.since.map(|since| self.looked.since(since))
    }
}

/// Who holds a device open.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opener {
    /// The device.
    pub dev: DevNo,
    /// A process, mount or device, in words: `process 812 (qemu-system-x86)`.
    pub who: String,
    /// UID of the pod that it belongs to.
    pub pod_uid: Option<String>,
}

/// What speaks against lifting a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockerReason {
    /// A physical volume cannot be reached, or not for long enough.
    PathsUnhealthy,
    /// Something holds a fenced device open.
    DeviceOpen,
    /// A device is not on the error target.
    DeviceNotFenced,
    /// It is not known how things stand.
    StateUnknown,
    /// The former lockspace is still there.
    LockspaceRemains,
    /// A step failed; it is tried again.
    StepFailed,
}

/// One thing that speaks against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// What kind of thing.
    pub reason: BlockerReason,
    /// Volume group.
    pub volume_group: String,
    /// Name of the device.
    pub device: Option<String>,
    /// Who holds it.
    pub holder: Option<String>,
    /// UID of the holder's pod.
    pub pod_uid: Option<String>,
    /// What it is, and what to do about it.
    pub message: String,
}

impl Blocker {
    /// About a volume group as a whole.
    #[must_use]
    pub fn new(reason: BlockerReason, group: &str, message: String) -> Self {
        Self {
            reason,
            volume_group: group.to_owned(),
            device: None,
            holder: None,
            pod_uid: None,
            message,
        }
    }
}

/// What is seen of one volume group.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// All devices.
    pub devices: &'a [DmDevice],
    /// Its physical volumes.
    pub pvs: &'a [PhysicalVolume],
    /// How long its paths have been healthy.
    pub health: &'a Health,
    /// Who holds its devices open, as far as that can be told.
    pub openers: &'a [Opener],
    /// Its lockspace.
    pub lock: &'a LockState,
}

/// Everything that speaks against lifting the fence of a volume group now.
#[must_use]
pub fn blockers(group: &Standing, healthy_for: Duration, seen: Seen<'_>) -> Vec<Blocker> {
    let name = group.name.as_str();
    let mut all = Vec::new();
    let error = group.error_devices(seen.devices);
    for device in error.iter().filter(|d| d.open_count > 0) {
        all.extend(held_open(name, device, seen.openers));
    }
    // Once the lockspace is joined, a volume that is active may be so with a lock: it is none of the fence's any more.
    let joined = matches!(seen.lock, LockState::Joined { .. } | LockState::Joining);
    if !joined {
        let foreign = seen
            .devices
            .iter()
            .filter(|d| group.owns(d) && !group.is_lvmlock(d) && !d.is_error_only());
        all.extend(foreign.map(|d| Blocker {
            device: Some(d.name.to_string()),
            ..Blocker::new(
                BlockerReason::DeviceNotFenced,
                name,
                format!(
                    "{} is not on the error target: it may be in use without a lock. Deactivate it (dmsetup remove {0}) once nobody uses it, or reboot \
                     the node",
                    d.name
                ),
            )
        }));
        all.extend(lock_blocker(group, seen.lock));
    }
    if !joined || !error.is_empty() {
        all.extend(path_blockers(name, healthy_for, seen));
    }
    all
}

fn held_open(group: &str, device: &DmDevice, openers: &[Opener]) -> Vec<Blocker> {
    let blocker = |holder: Option<&Opener>, message: String| Blocker {
        device: Some(device.name.to_string()),
        holder: holder.map(|h| h.who.clone()),
        pod_uid: holder.and_then(|h| h.pod_uid.clone()),
        ..Blocker::new(BlockerReason::DeviceOpen, group, message)
    };
    let known: Vec<Blocker> = openers
        .iter()
        .filter(|o| o.dev == device.dev)
        .map(|o| {
            let pod = o
                .pod_uid
                .as_ref()
                .map(|uid| format!(" of the pod with UID {uid}"))
                .unwrap_or_default();
            let what = format!(
                "{} holds {} open{pod}: it only sees I/O errors. End it, unmount it, or delete the pod",
                o.who, device.name
            );
            blocker(Some(o), what)
        })
        .collect();
    if known.is_empty() {
        let what = format!(
            "{} is open ({} times), but no process, mount or device is seen that holds it: perhaps the kernel does, by a loop device, swap or an \
             export. Look with: dmsetup info {0}; losetup; swapon",
            device.name, device.open_count
        );
        return vec![blocker(None, what)];
    }
    known
}

fn lock_blocker(group: &Standing, lock: &LockState) -> Option<Blocker> {
    let message = match lock {
        LockState::Removing => format!(
            "lockspace {} is still being removed; it goes on when it is gone",
            group.lockspace
        ),
        LockState::Orphaned => format!(
            "sanlock holds lockspace {} though lvmlockd does not know it: what a lvmlockd that was killed leaves. Reboot the node",
            group.lockspace
        ),
        LockState::FrozenByOthers { vg } => format!(
            "the lockspace of {vg} is frozen in lvmlockd, and not by a fence that is known here. Once no volume of {vg} is active: \
             lvmlockctl --drop {vg}"
        ),
        _ => return None,
    };
    Some(Blocker::new(
        BlockerReason::LockspaceRemains,
        &group.name,
        message,
    ))
}

fn path_blockers(group: &str, healthy_for: Duration, seen: Seen<'_>) -> Vec<Blocker> {
    let unhealthy = |message| Blocker::new(BlockerReason::PathsUnhealthy, group, message);
    if seen.pvs.is_empty() {
        return vec![unhealthy(format!(
            "no physical volume of {group} is to be seen: bring the SAN back, and see that multipathd makes its map again (multipath -ll)"
        ))];
    }
    let unreachable = seen.pvs.iter().filter(|pv| !pv.reachable());
    let (gone, lost): (Vec<_>, Vec<_>) = unreachable.partition(|pv| is_gone(pv));
    let in_words = |pvs: Vec<&PhysicalVolume>| {
        let all: Vec<String> = pvs.into_iter().map(PhysicalVolume::in_words).collect();
        all.join(", ")
    };
    let mut all = Vec::new();
    if !lost.is_empty() {
        all.push(unhealthy(format!(
            "no path works to {}; it goes on when the SAN is back",
            in_words(lost)
        )));
    }
    if !gone.is_empty() {
        let verb = if gone.len() == 1 { "is" } else { "are" };
        all.push(unhealthy(format!(
            "{} {verb} gone from the kernel, and without multipath a LUN that comes back is another disk, with another number: it goes on by itself only \
             if its WWID is known from before, or if the number comes back too. Otherwise reboot the node once the SAN is back, which ends the fence",
            in_words(gone)
        )));
    }
    if !all.is_empty() {
        return all;
    }
    let lasted = seen.health.lasted().unwrap_or_default();
    // Whole seconds of the requirement, never of what has passed: a status must not change with every look.
    if lasted < healthy_for {
        all.push(unhealthy(format!(
            "the paths of {group} work, but not yet for {} s without losing one",
            healthy_for.as_secs()
        )));
    }
    all
}

/// Whether it is a disk that the kernel has no more. A map stays, and finds its disks again by what they are called.
fn is_gone(pv: &PhysicalVolume) -> bool {
    matches!(&pv.kind, PvKind::Disk(path) if path.device_state == GONE)
}
