//! A simulated node that stands fenced, and what to ask of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::agent::executor::run;
use crate::agent::journal::{Journal, Record};
use crate::agent::observe::observe_to_fence;
use crate::agent::restore::attempt;
use crate::fence::order::{ReleaseLocks, Selection, WhenPathsRemain};
use crate::fence::report::{LocksOutcome, Outcome};
use crate::fence::unfence::{UnfenceOrder, UnfenceOutcome, UnfenceReport};
use crate::fence::{DevNo, Order};
use crate::host::Bell;
use crate::host::simulated::{Group, Layout, Simulation, uuid_of};

pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Of a request of its own, to give back that volume group.
pub(super) fn order(vg: &str) -> UnfenceOrder {
    UnfenceOrder {
        name: format!("request-{vg}"),
        uid: format!("uid-{vg}"),
        generation: 2,
        volume_groups: Selection::Named(vec![vg.into()]),
        healthy_for: seconds(10),
    }
}

pub(super) struct Bench {
    pub(super) node: Simulation,
    directory: tempfile::TempDir,
    fence: Order,
    pub(super) order: UnfenceOrder,
    /// What the desk would hold: the last report.
    pub(super) last: Option<UnfenceReport>,
}

impl Bench {
    pub(super) fn layout() -> Layout {
        Layout {
            groups: vec![
                Group::bystander("other", true),
                Group {
                    linear: 2,
                    thin: 1,
                    ..Group::target("vg1")
                },
                Group::bystander("local", false),
            ],
        }
    }

    /// Not fenced yet.
    pub(super) fn new(layout: &Layout) -> Self {
        let targets = layout.groups.iter().filter(|g| g.target);
        let names = targets.map(|g| g.name.clone()).collect();
        Self {
            node: Simulation::new(layout),
            directory: tempfile::tempdir().expect("a directory"),
            fence: Order {
                name: "request".into(),
                uid: "uid".into(),
                generation: 1,
                volume_groups: Selection::Named(names),
                when_paths_remain: WhenPathsRemain::Fence,
                drain_timeout: Duration::from_mins(1),
                ..Order::default()
            },
            order: UnfenceOrder {
                name: "request".into(),
                uid: "uid".into(),
                generation: 2,
                healthy_for: seconds(10),
                ..UnfenceOrder::default()
            },
            last: None,
        }
    }

    /// Fenced, released, and nobody has anything open any more; the SAN is still away.
    pub(super) fn fenced(layout: &Layout) -> Self {
        let bench = Self::new(layout);
        bench.fence();
        bench.close_all();
        // sanlock has let go, lvmlockd takes a little longer.
        bench.wait(3);
        bench
    }

    /// The same with the SAN back.
    pub(super) fn ready(layout: &Layout) -> Self {
        let bench = Self::fenced(layout);
        bench.paths(2);
        bench
    }

    pub(super) fn fence(&self) {
        self.fence_with(&self.fence, LocksOutcome::Released);
    }

    /// Another request has a volume group fenced.
    pub(super) fn fence_for(&self, uid: &str, vg: &str) {
        let order = Order {
            name: uid.into(),
            uid: uid.into(),
            volume_groups: Selection::Named(vec![vg.into()]),
            ..self.fence.clone()
        };
        self.fence_with(&order, LocksOutcome::Released);
    }

    /// A fence that keeps the locks.
    pub(super) fn fence_keeping_locks(&self) {
        let order = Order {
            release_locks: ReleaseLocks::Never,
            ..self.fence.clone()
        };
        self.fence_with(&order, LocksOutcome::Kept);
    }

    fn fence_with(&self, order: &Order, locks: LocksOutcome) {
        let (mut journal, _) = self.journal();
        let report = run(
            &self.node.host(),
            &mut journal,
            order,
            observe_to_fence(&self.node.host()).expect("a look"),
            &|| false,
            &mut |_| (),
        );
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, locks),
            "{report:#?}"
        );
    }

    pub(super) fn journal(&self) -> (Journal, Option<Record>) {
        let boot_id = self.node.host().system.boot_id().expect("boot ID");
        Journal::open(self.directory.path(), &boot_id).expect("a journal")
    }

    /// Whether the guard watches over a volume group.
    pub(super) fn guarded(&self, vg: &str) -> bool {
        let standings = self.journal().0.standings();
        standings.of(&uuid_of(vg)).expect("read").is_some()
    }

    /// Loses what the journal knows.
    pub(super) fn forget(&self) {
        // It may be forgotten twice.
        let _ = std::fs::remove_file(self.directory.path().join("journal"));
        let _ = std::fs::remove_file(self.directory.path().join("unfence"));
        let _ = std::fs::remove_dir_all(self.directory.path().join("fenced"));
    }

    /// No process has anything open any more. What stands on a device still does.
    pub(super) fn close_all(&self) {
        self.node.state(|s| {
            let held: Vec<DevNo> = s.devices.values().flat_map(|d| d.dm.deps.clone()).collect();
            for d in s.devices.values_mut() {
                let holders = held.iter().filter(|dev| **dev == d.dm.dev).count();
                d.dm.open_count = holders.try_into().unwrap_or(u32::MAX);
            }
        });
    }

    /// What others have in volumes: encrypted disks, partitions, volume groups.
    pub(super) fn upper(&self) -> Vec<String> {
        let names = self.node.state(|s| {
            let all = s.devices.values().map(|d| d.dm.name.to_string());
            all.collect::<Vec<_>>()
        });
        names
            .into_iter()
            .filter(|n| n.ends_with("-upper"))
            .collect()
    }

    /// Their owners close them.
    pub(super) fn close_upper(&self) {
        for name in self.upper() {
            self.node.state(|s| s.deactivate(&name));
        }
        self.close_all();
    }

    /// So many paths of every map work.
    pub(super) fn paths(&self, active: u32) {
        self.node.state(|s| {
            for d in s.devices.values_mut() {
                if d.dm.uuid.starts_with("mpath-") {
                    d.active_paths = active;
                }
            }
        });
    }

    pub(super) fn number(&self, device: &str) -> DevNo {
        self.node
            .state(|s| s.device(device).map(|d| d.dm.dev))
            .expect("a device")
    }

    pub(super) fn wait(&self, n: u64) {
        let host = self.node.host();
        // The kill may hit a thread that an attempt has left behind.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let until = host.system.monotonic() + seconds(n);
            host.system.wait(&Bell::default(), 0, until);
        }));
    }

    /// One attempt; None when its agent was killed.
    pub(super) fn try_once(&mut self, interrupt: &dyn Fn() -> bool) -> Option<UnfenceReport> {
        let host = self.node.host();
        let report = catch_unwind(AssertUnwindSafe(|| {
            let (journal, _) = self.journal();
            attempt(
                &host,
                &journal,
                &self.order,
                self.last.as_ref(),
                interrupt,
                &mut |_| (),
            )
        }));
        // A killed agent's memory is gone; the next one has what is in the files.
        self.last = report.ok();
        self.last.clone()
    }

    pub(super) fn once(&mut self) -> UnfenceReport {
        let report = self.try_once(&|| false).expect("nobody killed it");
        self.check();
        report
    }

    /// Attempts as the desk makes them, until it is done or has waited for so many seconds.
    pub(super) fn until_done(&mut self, limit: u64) -> UnfenceReport {
        let end = self.node.now() + seconds(limit);
        loop {
            let report = self.once();
            let Some(again) = report.again_at() else {
                return report;
            };
            if self.node.now() >= end {
                return report;
            }
            let host = self.node.host();
            host.system.wait(&Bell::default(), 0, again);
        }
    }

    pub(super) fn check(&self) {
        assert_eq!(self.node.violations(), Vec::<String>::new());
        let early = self.node.state(|s| s.restored_early.clone());
        assert_eq!(early, Vec::<String>::new(), "queue again too early");
    }

    /// Devices of a volume group that are there, the leases' volume aside.
    pub(super) fn devices(&self, vg: &str) -> Vec<String> {
        let prefix = format!("LVM-{}", uuid_of(vg));
        self.node.state(|s| {
            let ours = s
                .devices
                .values()
                .filter(|d| d.dm.uuid.starts_with(&prefix));
            ours.map(|d| d.dm.name.to_string())
                .filter(|n| !n.ends_with("-lvmlock"))
                .collect()
        })
    }

    pub(super) fn log_of(&self, what: &str) -> Vec<String> {
        let mut log = self.node.log();
        log.retain(|l| l.starts_with(what));
        log
    }

    pub(super) fn assert_done(&self, report: &UnfenceReport, when: &str) {
        self.check();
        assert_eq!(report.outcome, UnfenceOutcome::Done, "{when}: {report:#?}");
        for group in self.node.state(|s| s.targets.clone()) {
            assert!(self.node.state(|s| s.held(&group)), "{when}: {report:#?}");
            let name = group.trim_end_matches('x');
            assert_eq!(self.devices(name), Vec::<String>::new(), "{when}");
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node.end();
    }
}
