//! The kill hook: what `lvmlockctl --kill VG` runs on the host when a lockspace's lease is lost (lvm.conf `global/lvmlockctl_kill_command`).
//!
//! It is a process of its own, a child of sanlock's helper, and it has to do its work whatever has become of the agent: hand over to it when it
//! lives, so that one fence runs and not two; fence by itself when it is dead, or does not move. It ends with 0 only with proof, since
//! lvmlockctl then drops the lockspace.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`protocol`] | what is said on the agent's socket |
//! | [`server`] | the agent's side |
//! | [`waiting`] | hooks that wait for the desk |
//! | [`client`] | the hook's side |
//! | [`run`] | the hook |
//! | [`kept`] | fences whose locks are to stay |
//! | [`conf`], [`install`] | the setting in lvm.conf, and the binary on the host |
//! | [`watch`] | whether the hook is in force |

pub mod client;
pub mod conf;
pub mod install;
mod kept;
pub mod protocol;
mod run;
pub mod server;
#[cfg(test)]
mod tests;
pub mod waiting;
pub mod watch;

pub use kept::keeping;
pub use run::{Options, Verdict, run};

use std::time::Duration;

use crate::fence::Order;
use crate::fence::order::{ReleaseLocks, Selection, WhenPathsRemain};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "agent.sock";
/// UIDs of the kill hook's orders begin with this; those of requests never do.
const UID: &str = "kill-hook:";
/// I/O may take as long as the watchdog lets the host live.
const DRAIN: Duration = Duration::from_hours(1);

/// What the hook of a volume group orders. The lease is lost, whatever the paths look like: working paths are no reason not to fence.
///
/// The locks are released too, though lvmlockctl drops the lockspace once more when the hook has succeeded: its drop is not looked after by
/// anybody, and its answer proves nothing.
#[must_use]
pub fn order(vg: &str, incident: u64) -> Order {
    Order {
        name: format!("kill-hook of {vg}"),
        uid: format!("{UID}{vg}:{incident}"),
        generation: 0,
        volume_groups: Selection::Named(vec![vg.to_owned()]),
        when_paths_remain: WhenPathsRemain::Fence,
        release_locks: ReleaseLocks::AfterProof,
        drain_timeout: DRAIN,
        dry_run: false,
    }
}

/// Whether an order of that UID is the kill hook's and no request's.
#[must_use]
pub fn is_ours(uid: &str) -> bool {
    uid.starts_with(UID)
}
