//! The hook itself: hands over, or fences; and looks for itself before it says that it is proven.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::client::{Asked, ask};
use super::protocol::is_name;
use super::{SOCKET, keeping, kept, order};
use crate::agent::executor::limited;
use crate::agent::executor::{self, open_devices};
use crate::agent::journal::{DEFAULT_DIRECTORY, GroupRecord, Journal, Record, Signs, Turn};
use crate::agent::observe::observe;
use crate::fence::budget::ResetWindow;
use crate::fence::order::ReleaseLocks;
use crate::fence::report::{FenceReport, Outcome, StepKind, StepResult};
use crate::fence::selection::RefusalReason;
use crate::fence::{Inventory, LockManager, Lockspace, LockspaceState, Monotonic, VolumeGroup};
use crate::host::{Bell, Host};

/// One look at the node, or one list of its devices.
const LOOK: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_secs(1);
/// When nobody tells how long the watchdog leaves.
const UNKNOWN: Duration = Duration::from_mins(10);

/// Options of `storage-fence kill-hook`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Name of the volume group whose locks are lost.
    #[arg(value_parser = name)]
    pub vg: String,
    /// Folder of the journal and of the agent's socket.
    #[arg(long, env = "STATE_DIRECTORY", default_value = DEFAULT_DIRECTORY)]
    pub state_directory: PathBuf,
}

fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("no volume group can have that name".into())
    }
}

/// What lvmlockctl is told, by the exit code, and people in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 0: every device of the volume group was read back from the kernel, by this process.
    Proven(String),
    /// Anything else.
    Unproven(String),
}

/// How one attempt of our own ended.
enum Own {
    Verdict(Verdict),
    /// What was missing may come.
    TryAgain(String),
}

/// Fences the volume group, by the agent or without it. Ends when it is proven, or at the latest when the watchdog must have reset the host.
///
/// `tell` is told what is going on, a line at a time.
pub fn run(host: &Host, options: &Options, tell: &mut dyn FnMut(&str)) -> Verdict {
    let began = host.system.monotonic();
    let mut until = began + UNKNOWN;
    loop {
        let problem = match look(host, Signs::default()) {
            Err(why) => why,
            Ok(inventory) => {
                let own = if let Some(group) = find(&inventory, &options.vg) {
                    let reset = ResetWindow::of(group.lockspace.as_ref(), &inventory.watchdog);
                    until = reset.map_or(until, |r| r.latest);
                    // Before and after: it may be such a fence that was going on.
                    let kept = || {
                        let journal = Journal::open(&options.state_directory, &inventory.boot_id);
                        kept::verdict(&journal.ok()?.0, group)
                    };
                    if let Some(verdict) = kept() {
                        return verdict;
                    }
                    match once(host, options, group, reset, tell) {
                        Own::Verdict(Verdict::Proven(message)) => {
                            Own::Verdict(kept().unwrap_or(Verdict::Proven(message)))
                        }
                        own => own,
                    }
                } else {
                    without_lockspace(host, options, &inventory)
                };
                match own {
                    Own::Verdict(verdict) => return verdict,
                    Own::TryAgain(why) => why,
                }
            }
        };
        let now = host.system.monotonic();
        if now >= until {
            let vg = &options.vg;
            let why = format!("{vg} was not fenced: {problem}. Nothing was released");
            return Verdict::Unproven(why);
        }
        tell(&format!("{problem}; trying again"));
        host.system.wait(&Bell::default(), 0, now + PAUSE);
    }
}

fn look(host: &Host, signs: Signs) -> Result<Inventory, String> {
    let look = move |h: &Host| observe(&executor::telling(h, &signs));
    limited::call(host, "looking at the node", LOOK, look).map_err(|e| e.to_string())
}

fn find<'a>(inventory: &'a Inventory, vg: &str) -> Option<&'a VolumeGroup> {
    let named = |g: &&VolumeGroup| g.name == vg && g.shared();
    inventory.volume_groups.iter().find(named)
}

/// A volume group whose lockspace lvmlockd does not have: either the lock manager does not answer, or it stands fenced and released.
fn without_lockspace(host: &Host, options: &Options, inventory: &Inventory) -> Own {
    let vg = &options.vg;
    let standings = Journal::open(&options.state_directory, &inventory.boot_id)
        .ok()
        .and_then(|(journal, _)| journal.standings().all().ok())
        .unwrap_or_default();
    if let LockManager::LvmlockdUnavailable(why, _) = &inventory.lock_manager {
        // What it does not say it may still have, even another volume group that is called so by now: lvmlockctl would have it dropped for a 0.
        // Somebody may start it again, and nobody calls the hook a second time.
        return Own::TryAgain(why.clone());
    }
    if let Some(standing) = standings.iter().find(|s| s.group.vg() == vg)
        && let Ok(message) = proven(host, &standing.group)
    {
        if standing.keep_locks {
            return Own::Verdict(kept::of(standing));
        }
        let verdict = Verdict::Proven(format!("{message}; it had been fenced by {}", standing.by));
        return Own::Verdict(
            anew(&standing.group, inventory.lock_manager.lockspaces()).unwrap_or(verdict),
        );
    }
    Own::Verdict(Verdict::Unproven(format!(
        "{vg} is no volume group that can be fenced here: no lockspace of it is running that has an active device. Nothing was touched"
    )))
}

/// By the agent, or without it.
fn once(
    host: &Host,
    options: &Options,
    group: &VolumeGroup,
    reset: Option<ResetWindow>,
    tell: &mut dyn FnMut(&str),
) -> Own {
    let budget = reset.map(|r| r.budget(host.system.monotonic()));
    let patience = budget.map_or(Duration::from_secs(20), |b| {
        (b / 2).clamp(Duration::from_secs(5), Duration::from_mins(1))
    });
    let socket = options.state_directory.join(SOCKET);
    match ask(&socket, &options.vg, patience) {
        Asked::Proven => {
            let record = executor::record(host, group);
            match proven(host, &record) {
                Ok(message) => {
                    let anew = joined_anew(host, &record);
                    return Own::Verdict(anew.unwrap_or(Verdict::Proven(message)));
                }
                Err(why) => tell(&format!(
                    "the agent says that it is fenced, but {why}: fencing without it"
                )),
            }
        }
        Asked::Unproven(why) => tell(&format!(
            "the agent did not fence it ({why}): fencing without it"
        )),
        Asked::NoAgent(why) => tell(&format!("no agent ({why}): fencing without it")),
    }
    alone(host, options, group, budget, tell)
}

/// By this process, with the agent's own executor and journal.
fn alone(
    host: &Host,
    options: &Options,
    group: &VolumeGroup,
    budget: Option<Duration>,
    tell: &mut dyn FnMut(&str),
) -> Own {
    let boot_id = match host.system.boot_id() {
        Ok(id) => id,
        Err(e) => return Own::TryAgain(e.to_string()),
    };
    let limit = budget.map_or(Duration::from_secs(5), |b| {
        (b / 8).clamp(Duration::from_secs(1), Duration::from_secs(8))
    });
    // Somebody else's fence has its own lease and its own hook: this volume group's lease has run out, and does not wait for it.
    let covers = |r: &Record| r.begun.groups.iter().any(|g| g.uuid == group.uuid);
    let (mut journal, left) = open(options, &boot_id, limit, &covers, tell);
    let record = executor::record(host, group);
    let mut progress = |_: &FenceReport| ();
    let (mine, others) = match left.filter(Record::unfinished) {
        Some(record) if covers(&record) => (Some(record), None),
        // It may have given way to the one that stands in the journal.
        others => (
            journal
                .set_aside()
                .ok()
                .and_then(|all| all.into_iter().find(covers)),
            others,
        ),
    };
    if let Some(left) = mine {
        tell(&format!(
            "completing the fence of {} first, whose agent was killed",
            left.begun.order.name
        ));
        // Asked now: since the hook looked, the agent may have begun to fence this very life.
        let now = lockspaces(host);
        let of_another_life = now.is_some_and(|known| of_another_life(&left, &group.uuid, &known));
        let report = executor::resume(host, &mut journal, left, &|| false, &mut progress);
        if journal.taken_away() {
            return Own::TryAgain("the agent has come back and goes on with it".into());
        }
        // One that was proven is no proof for the life that the volume group has had since.
        if report.outcome == Outcome::Proven && !of_another_life {
            put_back(&mut journal, others, tell);
            return conclude(host, &record, &report);
        }
    }
    let inventory = match look(host, journal.signs()) {
        Ok(inventory) => inventory,
        Err(why) => return Own::TryAgain(why),
    };
    let order = order(&options.vg, millis(host.system.monotonic()));
    let order = keeping(&order, &inventory, &journal.standings());
    let report = executor::run(
        host,
        &mut journal,
        &order,
        inventory,
        &|| false,
        &mut progress,
    );
    if journal.taken_away() {
        return Own::TryAgain("the agent has come back and goes on with it".into());
    }
    put_back(&mut journal, others, tell);
    match &report.outcome {
        Outcome::Proven => conclude(host, &record, &report),
        Outcome::Refused(
            RefusalReason::LvmlockdUnavailable
            | RefusalReason::SanlockUnavailable
            | RefusalReason::DeviceMapperUnavailable,
        ) => Own::TryAgain(report.message),
        _ => Own::Verdict(Verdict::Unproven(report.message)),
    }
}

/// The journal holds one record, and this one was put aside: it is put back for the next agent to complete. What the hook's fence did stands in a
/// file of its own.
fn put_back(journal: &mut Journal, others: Option<Record>, tell: &mut dyn FnMut(&str)) {
    if let Some(others) = others
        && let Err(e) = journal.resume(&others)
    {
        tell(&e.to_string());
    }
}

/// Whether a fence that was left had frozen or released the volume group's locks, and they are granted again: it was joined anew since. Whoever came
/// right after the lockspace was gone had nothing to complete, so such a fence may be left for as long as no agent comes.
pub(super) fn of_another_life(left: &Record, uuid: &str, known: &[Lockspace]) -> bool {
    // By its place: it may have had another name then.
    let place = left.begun.groups.iter().position(|g| g.uuid == uuid);
    let result = |kind| {
        let mut steps = left.steps.iter().filter(|s| s.kind == kind);
        Some(steps.nth(place?)?.result)
    };
    let frozen = result(StepKind::FreezeLocks) == Some(StepResult::Done);
    let released = left.begun.order.release_locks == ReleaseLocks::AfterProof
        && matches!(
            result(StepKind::Release),
            Some(StepResult::Done | StepResult::Skipped)
        );
    let granted = known.iter().any(|l| l.vg_uuid == uuid && !l.frozen);
    granted && (frozen || released)
}

/// The journal in our turn. What cannot be had is done without: a fence that is not written down is better than none.
fn open(
    options: &Options,
    boot_id: &str,
    limit: Duration,
    covers: &dyn Fn(&Record) -> bool,
    tell: &mut dyn FnMut(&str),
) -> (Journal, Option<Record>) {
    let directory = &options.state_directory;
    // One that fences this volume group, or is not known to fence another one, has its time as long as it gets something done.
    let others = |left: &Option<Record>| {
        let going_on = left.as_ref().filter(|r| r.unfinished());
        going_on.is_some_and(|r| !covers(r))
    };
    let came = Instant::now();
    // One of another that was given up may still stand there while its holder begins something else: that has a moment more, and no longer.
    let begins = |left: &Option<Record>| {
        left.as_ref().is_some_and(Record::given_up) && came.elapsed() < limit * 2
    };
    let worth = || {
        let left = Journal::open(directory, boot_id);
        left.is_ok_and(|(_, left)| !others(&left) || begins(&left))
    };
    let turn = Turn::take_where(directory, "kill-hook", limit, &worth)
        .map_err(|e| tell(&e.to_string()))
        .ok();
    let (mut journal, left) = Journal::open(directory, boot_id).unwrap_or_else(|e| {
        tell(&e.to_string());
        (Journal::silent(), None)
    });
    if let Some(from) = turn.as_ref().and_then(|t| t.taken_from.as_ref()) {
        tell(&if others(&left) {
            format!(
                "process {from} fences another volume group: this one, whose lease has run out, goes before it"
            )
        } else {
            format!(
                "process {from} has begun a fence and got nothing done for {limit:.1?}: going on in its place"
            )
        });
    }
    if let Some(turn) = turn {
        journal.hold(turn);
    }
    (journal, left)
}

/// The executor's proof, looked at once more by the one who vouches for it.
fn conclude(host: &Host, group: &GroupRecord, report: &FenceReport) -> Own {
    if let Some(verdict) = joined_anew(host, group) {
        return Own::Verdict(verdict);
    }
    match proven(host, group) {
        Ok(message) => Own::Verdict(Verdict::Proven(format!(
            "{message}. {}",
            report.locks_message
        ))),
        Err(why) => Own::TryAgain(why),
    }
}

/// Whether every device of the volume group is cut off now, read back from the kernel.
fn proven(host: &Host, group: &GroupRecord) -> Result<String, String> {
    let list = |h: &Host| h.device_mapper.devices();
    let list = limited::call(host, "listing the devices", LOOK, list)
        .map_err(|e| format!("the devices cannot be read back: {e}"))?;
    let open = open_devices(host, &list, group);
    if !open.is_empty() {
        return Err(format!("{} may still reach the SAN", open.join(", ")));
    }
    Ok(format!(
        "volume group {} is cut off from its storage: every device was read back",
        group.name
    ))
}

/// Whoever is told 0 has lvmlockd drop the lockspace of that name, whichever it is by then: why it must not, if the volume group was joined to
/// it again. An lvmlockd that does not answer drops nothing.
fn joined_anew(host: &Host, group: &GroupRecord) -> Option<Verdict> {
    anew(group, &lockspaces(host)?)
}

/// Those that lvmlockd tells; None when it does not answer.
fn lockspaces(host: &Host) -> Option<Vec<Lockspace>> {
    let ask = |h: &Host| h.lvmlockd.lockspaces();
    limited::call(host, "asking lvmlockd for its lockspaces", LOOK, ask).ok()
}

fn anew(group: &GroupRecord, known: &[Lockspace]) -> Option<Verdict> {
    let vg = group.vg();
    let why = known.iter().find_map(|l| {
        let others = !l.vg_uuid.is_empty() && l.state != LockspaceState::Removing;
        match (l.vg_uuid == group.uuid, l.vg_name == vg) {
            (true, _) if !l.frozen => Some("grants locks again, so it was joined anew since"),
            (false, true) if others => Some("is another volume group's, which is called so by now"),
            _ => None,
        }
    })?;
    Some(Verdict::Unproven(format!(
        "the lockspace of {vg} {why}, and is not to be dropped"
    )))
}

fn millis(at: Monotonic) -> u64 {
    at.0.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lockspace_that_is_not_the_fenced_one_is_not_dropped_for_it() {
        let fenced = GroupRecord {
            name: "vg1".into(),
            uuid: "1".into(),
            ..GroupRecord::default()
        };
        let renamed = GroupRecord {
            called: Some("new".into()),
            ..fenced.clone()
        };
        let lockspace = |vg: &str, uuid: &str, frozen| Lockspace {
            vg_name: vg.into(),
            vg_uuid: uuid.into(),
            frozen,
            ..Lockspace::default()
        };
        let removing = Lockspace {
            state: LockspaceState::Removing,
            ..lockspace("vg1", "2", false)
        };
        for (group, known, says) in [
            (&fenced, vec![], None),
            (&fenced, vec![lockspace("vg1", "1", true)], None),
            (&fenced, vec![lockspace("vg2", "2", false)], None),
            (
                &fenced,
                vec![lockspace("vg1", "1", false)],
                Some("grants locks again"),
            ),
            // Under whatever name.
            (
                &fenced,
                vec![lockspace("new", "1", false)],
                Some("grants locks again"),
            ),
            (
                &fenced,
                vec![lockspace("vg1", "2", true)],
                Some("another volume group's"),
            ),
            (&renamed, vec![lockspace("vg1", "2", false)], None),
            (
                &renamed,
                vec![lockspace("new", "2", false)],
                Some("another volume group's"),
            ),
            // On its way out, or of sanlock alone: what a drop leaves for a moment.
            (&fenced, vec![removing], None),
            (&fenced, vec![lockspace("vg1", "", false)], None),
        ] {
            let verdict = anew(group, &known);
            let Some(says) = says else {
                assert_eq!(verdict, None, "{known:?}");
                continue;
            };
            let said = matches!(&verdict, Some(Verdict::Unproven(m)) if m.contains(says));
            assert!(said, "{known:?}: {verdict:?}");
        }
    }
}
