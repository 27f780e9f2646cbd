//! Fences whose locks are to stay (`releaseLocks: Never`): the hook does not undo that, when the lease runs out.

use super::{Verdict, is_ours};
use crate::agent::journal::{Journal, Standing, Standings};
use crate::fence::order::{ReleaseLocks, Selection};
use crate::fence::{Inventory, Order, VolumeGroup};

/// The fence of a volume group that stands and keeps its locks, if the lockspace is still the one that it met.
fn kept(standings: &Standings, group: &VolumeGroup) -> Option<Standing> {
    let one = standings.of(&group.uuid).ok().flatten()?;
    let lockspace = group.lockspace.as_ref()?;
    let differs = matches!((one.generation, lockspace.generation), (Some(a), Some(b)) if a != b);
    let same = one.lockspace.as_ref() == Some(&lockspace.name)
        && one.host_id == Some(lockspace.host_id)
        && !differs
        && !one.joined;
    (one.keep_locks && same).then_some(one)
}

/// The order of a hook as it may be carried out: where a fence stands that keeps its locks, it cuts off and releases nothing.
#[must_use]
pub fn keeping(order: &Order, inventory: &Inventory, standings: &Standings) -> Order {
    let named =
        |name: &String| matches!(&order.volume_groups, Selection::Named(all) if all.contains(name));
    let mut groups = inventory.volume_groups.iter().filter(|g| named(&g.name));
    let mut order = order.clone();
    if is_ours(&order.uid) && groups.any(|g| kept(standings, g).is_some()) {
        order.release_locks = ReleaseLocks::Never;
    }
    order
}

/// What lvmlockctl has to be told of a volume group whose locks are to stay: not 0, since it would drop the lockspace then.
pub(super) fn verdict(journal: &Journal, group: &VolumeGroup) -> Option<Verdict> {
    kept(&journal.standings(), group).map(|one| of(&one))
}

/// The same of a fence that stands.
pub(super) fn of(one: &Standing) -> Verdict {
    Verdict::Unproven(format!(
        "volume group {} stands fenced by {}, which keeps its locks (releaseLocks: Never): nothing is released, and the watchdog resets the host",
        one.group.name, one.by
    ))
}
