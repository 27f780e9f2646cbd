//! What is noted of volume groups that stand fenced from now on, for whoever watches them and gives them back.

use super::Fence;
use super::stands::carried_on;
use crate::agent::journal::Standing;
use crate::fence::order::ReleaseLocks;
use crate::fence::report::{DeviceReport, VolumeGroupReport};

impl Fence<'_> {
    /// Notes that the volume groups stand fenced, and how far the locks got.
    pub(super) fn stand(&mut self) {
        let now = self.host.system.monotonic();
        let standings = self.journal.standings();
        let newest: Vec<_> = self
            .report
            .volume_groups
            .iter()
            .map(|g| self.newest(g))
            .collect();
        // Asked after the numbers were read: what is above them came into use later, and what was joined before has none of the fence's any more.
        self.hand_on_now();
        // By then another process may have had all of it released and given back: these are the numbers of what came into use.
        if self.journal.taken_away() {
            return;
        }
        let all = Standing::of(&self.report, &self.groups, now);
        for (at, (standing, newest)) in all.into_iter().zip(newest).enumerate() {
            if self.handed_on.contains(&at) {
                continue;
            }
            let before = standings.of(&standing.group.uuid).ok().flatten();
            let mut standing = carried_on(standing, before);
            standing.keep_locks = self.order.release_locks == ReleaseLocks::Never;
            // Whoever finds this may find the volume group joined again, and has to tell what was left there from what came into use.
            standing.newest = newest;
            if let Err(e) = standings.put(&standing) {
                let name = &standing.group.name;
                self.note(format!(
                    "{e}. Volume group {name} is fenced, but nobody will watch that it stays so"
                ));
            }
        }
    }

    /// The highest number that a device of the volume group was made with.
    fn newest(&self, told: &VolumeGroupReport) -> Option<u64> {
        let signs = self.journal.signs();
        let made = |d: &DeviceReport| {
            signs.give();
            self.host.system.sequence(d.dev)
        };
        told.devices.iter().filter_map(made).max()
    }

    pub(super) fn stand_released(&mut self) {
        // Whoever has it now notes what becomes of them, or whoever completes this one after that.
        if self.journal.taken_away() {
            return;
        }
        let standings = self.journal.standings();
        let locks = self.report.locks;
        for group in &self.groups {
            // The proof's note was written or complained about; this only completes it. Not its number: one of the fence's may be another life's by now.
            let _ = standings.update(&group.uuid, |s| s.locks = locks);
        }
    }
}
