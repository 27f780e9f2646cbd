//! The fence as a domain: what is stacked on what, what has to happen in which order, and what counts as proof.
//!
//! Pure: no I/O, no clock, no async, no Kubernetes. Time comes in as [`Monotonic`].

pub mod affected;
pub mod budget;
pub mod denials;
pub mod inventory;
pub mod limits;
pub mod order;
pub mod outage;
pub mod plan;
pub mod preflight;
pub mod remembered;
pub mod report;
pub mod selection;
pub mod stacks;
pub mod time;
pub mod topology;
pub mod trigger;
pub mod unfence;
pub mod unlocked;

pub use inventory::{
    DevNo, DevNos, DmDevice, Inventory, IoCount, LockManager, Lockspace, LockspaceState,
    MultipathMap, Path, PhysicalVolume, PvKind, Table, Target, VolumeGroup, Watchdog,
};
pub use order::Order;
pub use remembered::{DiskMark, PvRecord};
pub use report::FenceReport;
pub use time::Monotonic;
