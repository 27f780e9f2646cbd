//! What is to be fenced, on whose word and within which limits: a request, freed of its wire format.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which volume groups an order is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// Shared ones whose paths are all gone.
    #[default]
    Affected,
    /// Every shared one.
    AllShared,
    /// Those with these names.
    Named(Vec<String>),
}

/// What to do about a volume group that can still reach its storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenPathsRemain {
    /// Touch nothing.
    #[default]
    Refuse,
    /// Fence it all the same.
    Fence,
}

/// Whether the lock manager is told to let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseLocks {
    /// Once the fence is proven.
    #[default]
    AfterProof,
    /// Not at all.
    Never,
}

/// One order to fence. Kept in the journal, so that a successor of a killed agent knows what it completes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Name of the request.
    pub name: String,
    /// UID of the request: a request that was deleted and made again is another order.
    pub uid: String,
    /// Generation of the request's spec.
    pub generation: i64,
    /// Which volume groups.
    pub volume_groups: Selection,
    /// What to do about working paths.
    pub when_paths_remain: WhenPathsRemain,
    /// Whether locks are released.
    pub release_locks: ReleaseLocks,
    /// How long I/O that was already issued may take to end.
    pub drain_timeout: Duration,
    /// Only make the plan.
    pub dry_run: bool,
}
