//! What a fence found, did and proved: everything that the status of a request needs, as plain data.
//!
//! All times are relative to [`FenceReport::started`]; whoever publishes the report knows the wall clock.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::inventory::DevNo;
use super::selection::RefusalReason;
use super::time::Monotonic;

/// The steps of a fence, in their only legal order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StepKind {
    /// lvmlockd grants no new lock in the volume group (`kill_vg`). The first step that leaves a trace.
    FreezeLocks,
    /// A multipath map no longer queues I/O while it has no path.
    Quiesce,
    /// Every device of the volume group gets the error target.
    Swap,
    /// Every device of the volume group is read back from the kernel.
    Verify,
    /// The lockspace is dropped.
    Release,
    /// The lockspace was seen to be gone from sanlock and wdmd.
    ConfirmRelease,
}

impl StepKind {
    /// As it stands in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FreezeLocks => "FreezeLocks",
            Self::Quiesce => "Quiesce",
            Self::Swap => "Swap",
            Self::Verify => "Verify",
            Self::Release => "Release",
            Self::ConfirmRelease => "ConfirmRelease",
        }
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepResult {
    /// In the plan.
    #[default]
    Planned,
    /// Going on.
    Running,
    /// Done.
    Done,
    /// Not needed; the message says why.
    Skipped,
    /// It did not succeed; the message says why.
    Failed,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which.
    pub kind: StepKind,
    /// Name of the volume group.
    pub volume_group: String,
    /// Name of the multipath map, for [`StepKind::Quiesce`].
    pub map: Option<String>,
    /// How it ended.
    pub result: StepResult,
    /// When it began.
    pub at: Option<Duration>,
    /// How long it took.
    pub took: Option<Duration>,
    /// What was (or, planned, will be) done to what, or why not.
    pub message: Option<String>,
    /// Of a [`StepKind::FreezeLocks`] that was begun: lvmlockd was surely not told to freeze anything yet, only asked. Journals of earlier versions do
    /// not say so: it may have been told.
    #[serde(default)]
    pub untold: bool,
}

impl StepReport {
    /// Whether it may have left a trace on the node.
    #[must_use]
    pub fn may_have_left_a_trace(&self) -> bool {
        match (self.kind, self.result) {
            (_, StepResult::Planned) => false,
            (_, StepResult::Done) => true,
            (StepKind::FreezeLocks, _) => !self.untold,
            (_, result) => result != StepResult::Skipped,
        }
    }
}

/// What became of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceOutcome {
    /// In the plan, not proven yet.
    #[default]
    Planned,
    /// Read back: one error target, no inactive table, not suspended.
    Error,
    /// It went away by itself.
    Gone,
    /// The deadline passed before it was proven.
    NotProven,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Device number.
    pub dev: DevNo,
    /// Device-mapper name.
    pub name: SmolStr,
    /// Device-mapper UUID.
    pub uuid: SmolStr,
    /// What became of it.
    pub outcome: DeviceOutcome,
    /// Openers when it was first seen.
    pub open_count: u32,
    /// From the start of the swap that succeeded to its return. None when another did it, or it was not needed.
    pub swap_took: Option<Duration>,
    /// Why it fell short, or what is special about it.
    pub message: Option<String>,
}

/// One volume group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeGroupReport {
    /// Name.
    pub name: String,
    /// UUID as in device-mapper UUIDs.
    pub uuid: String,
    /// Name of the lockspace.
    pub lockspace: Option<String>,
    /// This host's id when the fence began.
    pub host_id: Option<u64>,
    /// Generation of that id when the fence began, when the lock manager tells.
    pub generation: Option<u64>,
    /// All paths of its physical volumes when the fence began.
    pub paths_total: usize,
    /// Of these, working ones.
    pub paths_active: usize,
    /// Names of the multipath maps under it.
    pub maps: Vec<String>,
    /// Its devices, the `lvmlock` volume aside; those that appear during the fence are added. Shared, because the report is told at every step, and
    /// there may be thousands.
    pub devices: Arc<Vec<DeviceReport>>,
    /// When the lock manager was seen to have let go of its lockspace. None: not seen.
    pub released_after: Option<Duration>,
}

impl VolumeGroupReport {
    /// How many devices need no further proof: on the error target, or gone.
    #[must_use]
    pub fn devices_proven(&self) -> usize {
        let settled =
            |d: &&DeviceReport| matches!(d.outcome, DeviceOutcome::Error | DeviceOutcome::Gone);
        self.devices.iter().filter(settled).count()
    }
}

/// The watchdog as the fence met it and left it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogReport {
    /// Whether a lockspace of the fence kept it armed when the fence began.
    pub armed: bool,
    /// Time that was left until the earliest reset when the fence began. None: it could not be told.
    pub budget: Option<Duration>,
    /// When the fence's lockspaces were seen to be gone from wdmd. None: not seen.
    pub disarmed_after: Option<Duration>,
}

/// What became of the fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is going on.
    #[default]
    InProgress,
    /// No device was touched, and none will be. Its message says so where a `kill_vg` was sent that may be carried out yet.
    Refused(RefusalReason),
    /// Only the plan was made.
    DryRun,
    /// Called off before anything irreversible was done.
    CalledOff,
    /// Read back from the kernel for every device.
    Proven,
    /// At least one device fell short. Nothing was released.
    NotProven,
}

/// What became of the locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocksOutcome {
    /// Not there yet.
    #[default]
    Pending,
    /// Seen released in sanlock and wdmd.
    Released,
    /// Kept: the order says so, or proof is missing, or nothing was touched.
    Kept,
    /// The drop was sent (or could not be), and the lock manager was not seen to let go.
    NotConfirmed,
}

/// Everything about one fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// Name of the request.
    pub request: String,
    /// UID of the request.
    pub uid: String,
    /// Generation of the request's spec.
    pub generation: i64,
    /// Boot ID of the kernel that all this is about.
    pub boot_id: String,
    /// When the fence began.
    pub started: Monotonic,
    /// When it ended. None: it goes on.
    pub finished_after: Option<Duration>,
    /// Volume groups.
    pub volume_groups: Vec<VolumeGroupReport>,
    /// Steps in order.
    pub steps: Vec<StepReport>,
    /// Watchdog.
    pub watchdog: WatchdogReport,
    /// What became of it.
    pub outcome: Outcome,
    /// What happened, to what, and what to do next.
    pub message: String,
    /// What became of the locks.
    pub locks: LocksOutcome,
    /// The same for the locks.
    pub locks_message: String,
    /// Shortcomings of the fence that change neither its course nor its proof, such as a journal that cannot be written.
    pub notes: Vec<String>,
}
