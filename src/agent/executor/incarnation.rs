//! Whether a lockspace that sanlock holds is the one that the fence met, or was joined anew since: then its volumes are in use under other locks.

use crate::fence::report::VolumeGroupReport;
use crate::fence::{LockspaceState, Monotonic};
use crate::host::{SanlockLockspace, SanlockStatus};

/// What sanlock says about a lockspace of the fence.
pub(super) enum Held {
    /// Nothing, or that it is being removed.
    No,
    /// As the fence met it.
    Yes,
    /// By another incarnation: it was joined again.
    Anew,
}

pub(super) fn held(group: &VolumeGroupReport, sanlock: &SanlockStatus) -> Held {
    match of(group, sanlock) {
        None => Held::No,
        Some(l) if l.state == LockspaceState::Removing => Held::No,
        Some(l) if !same_incarnation(group, l.host_id, l.generation) => Held::Anew,
        Some(_) => Held::Yes,
    }
}

/// One that was joined again may be listed beside its predecessor.
fn of<'a>(group: &VolumeGroupReport, sanlock: &'a SanlockStatus) -> Option<&'a SanlockLockspace> {
    let all = sanlock.lockspaces.iter();
    all.filter(|l| Some(&l.name) == group.lockspace.as_ref())
        .min_by_key(|l| l.state == LockspaceState::Removing)
}

/// Whether a lockspace is the one that the fence began with. A generation that is not told on either side does not speak against it.
pub(super) fn same_incarnation(
    group: &VolumeGroupReport,
    host_id: u64,
    generation: Option<u64>,
) -> bool {
    let known_to_differ = matches!((group.generation, generation), (Some(a), Some(b)) if a != b);
    group.host_id == Some(host_id) && !known_to_differ
}

/// The same for something that is to be done to a lockspace that was not frozen, so that nothing else tells: its generation is known, or its lease was
/// written last before the fence began. Who joins it writes it.
pub(super) fn surely_same(
    group: &VolumeGroupReport,
    sanlock: &SanlockStatus,
    begun: Monotonic,
) -> bool {
    of(group, sanlock).is_some_and(|l| {
        let there = !matches!(l.state, LockspaceState::Removing | LockspaceState::Adding);
        let told = group.generation.is_some() && l.generation.is_some();
        let old = l.last_renewal.is_some_and(|at| at <= begun);
        there && same_incarnation(group, l.host_id, l.generation) && (told || old)
    })
}
