//! A simulated node, a journal, and what to ask of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::agent::executor::{resume, run};
use crate::agent::journal::{Journal, Record};
use crate::fence::order::{Selection, WhenPathsRemain};
use crate::fence::report::{FenceReport, StepKind, StepReport};
use crate::fence::{Inventory, Order};
use crate::host::simulated::{Layout, Simulation, uuid_of};

pub(in crate::agent::executor) struct Bench {
    pub(super) node: Simulation,
    pub(super) directory: tempfile::TempDir,
    pub(super) order: Order,
}

impl Bench {
    pub(super) fn new(layout: &Layout) -> Self {
        let names = layout
            .groups
            .iter()
            .filter(|g| g.target)
            .map(|g| g.name.clone())
            .collect();
        Self {
            node: Simulation::new(layout),
            directory: tempfile::tempdir().expect("a directory"),
            order: Order {
                name: "request".into(),
                uid: "uid".into(),
                generation: 1,
                volume_groups: Selection::Named(names),
                drain_timeout: Duration::from_mins(1),
                ..Order::default()
            },
        }
    }

    /// A fence of what was seen, whatever has changed since.
    pub(super) fn fence_as_seen(&self, inventory: Inventory) -> FenceReport {
        self.fence_anew(&mut self.journal().0, inventory)
    }

    /// The same; None when its agent was killed.
    pub(super) fn try_fence_as_seen(&self, inventory: Inventory) -> Option<FenceReport> {
        catch_unwind(AssertUnwindSafe(|| self.fence_as_seen(inventory))).ok()
    }

    fn fence_anew(&self, journal: &mut Journal, inventory: Inventory) -> FenceReport {
        let host = self.node.host();
        run(
            &host,
            journal,
            &self.order,
            inventory,
            &|| false,
            &mut |_| (),
        )
    }

    pub(super) fn journal(&self) -> (Journal, Option<Record>) {
        let boot_id = self.node.host().system.boot_id().expect("boot ID");
        Journal::open(self.directory.path(), &boot_id).expect("a journal")
    }

    /// A fence with all that is watched on the way; None when its agent was killed.
    pub(super) fn try_fence(&self) -> Option<FenceReport> {
        self.try_fence_telling(&mut |_| ())
    }

    fn try_fence_telling(&self, tell: &mut dyn FnMut(&FenceReport)) -> Option<FenceReport> {
        let host = self.node.host();
        catch_unwind(AssertUnwindSafe(|| {
            let (mut journal, left) = self.journal();
            if let Some(record) = left.filter(Record::unfinished) {
                resume(&host, &mut journal, record, &|| false, tell)
            } else {
                self.fence_anew(&mut journal, self.node.inventory())
            }
        }))
        .ok()
    }

    pub(super) fn fence(&self) -> FenceReport {
        self.fence_telling(&mut |_| ())
    }

    /// The same; what is told on the way is told.
    pub(super) fn fence_telling(&self, tell: &mut dyn FnMut(&FenceReport)) -> FenceReport {
        let report = self.try_fence_telling(tell).expect("nobody killed it");
        self.check();
        self.given_back();
        report
    }

    /// What holds after every fence, however it went.
    pub(super) fn check(&self) {
        assert_eq!(self.node.violations(), Vec::<String>::new());
        let suspended = self.node.state(|s| s.suspended());
        assert_eq!(suspended, Vec::<String>::new(), "left suspended");
    }

    /// What a fence changes of the kernel for a while is as it was.
    pub(super) fn given_back(&self) {
        assert_eq!(self.node.state(|s| s.rcu_expedited), 0);
        let left = self.journal().0.expedited().map(|n| n.left());
        assert!(matches!(left, Some(Ok(None))), "{left:?}");
    }

    /// Devices of a volume group that may reach the SAN.
    pub(super) fn open(&self, vg: &str) -> Vec<String> {
        self.node.state(|s| s.not_fenced(&uuid_of(vg)))
    }

    pub(super) fn held(&self, vg: &str) -> bool {
        self.node.state(|s| s.held(&uuid_of(vg)))
    }

    /// How often something was done.
    pub(super) fn count(&self, what: &str) -> usize {
        self.node.log().iter().filter(|l| *l == what).count()
    }

    /// A fresh bench of the same layout, whatever the paths.
    pub(super) fn whatever_paths(layout: &Layout) -> Self {
        let mut bench = Self::new(layout);
        bench.order.when_paths_remain = WhenPathsRemain::Fence;
        bench
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node.end();
    }
}

pub(super) fn step<'a>(report: &'a FenceReport, kind: StepKind, vg: &str) -> &'a StepReport {
    let is = |s: &&StepReport| s.kind == kind && s.volume_group == vg;
    report
        .steps
        .iter()
        .find(is)
        .expect("every volume group has every step")
}

pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
