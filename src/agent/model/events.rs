//! What may happen to the world at any time, besides what the agent does.

use super::world::{Daemon, Table, World, activated};

/// How long nobody lives that fences.
const PAUSE: u32 = 3000;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// The last path fails.
    Cut,
    /// Paths come back.
    Return,
    /// What is sent is swallowed.
    Hole,
    /// What was swallowed comes back: late.
    HoleEnds,
    /// A process writes.
    Write,
    /// multipathd synchronises its maps: queueing is back, unless it was told otherwise.
    Requeue,
    /// `lvchange --refresh`, the three things that it does...
    LoadLinear,
    Suspend,
    Resume,
    /// ...and all of them at once.
    Refresh,
    /// A volume whose lock was got before the locks were frozen comes up.
    Activate,
    /// sanlock renews the lease.
    Renew,
    /// The node is given its storage back by hand.
    Rejoin,
    /// A daemon answers with errors only.
    Silence(Daemon),
    /// It answers again.
    Answers,
    /// The agent is held up; the kill hook takes its turn and fences; then the agent goes on where it was.
    HookTakesOver,
    /// Only while no agent lives: some seconds pass...
    Pause,
    /// ...the SAN is back, the node is given its storage back by hand, and time passes...
    RejoinAndPause,
    /// ...or the journal is lost (what stands fenced is noted in files of their own)...
    JournalLost,
    /// ...or torn in its last line.
    JournalTorn,
}

use Event as E;

impl Event {
    /// What may happen at any time.
    pub(super) const ANY: [Self; 18] = [
        E::Cut,
        E::Return,
        E::Hole,
        E::HoleEnds,
        E::Write,
        E::Requeue,
        E::LoadLinear,
        E::Suspend,
        E::Resume,
        E::Refresh,
        E::Activate,
        E::Renew,
        E::Rejoin,
        E::Silence(Daemon::Lvmlockd),
        E::Silence(Daemon::Sanlock),
        E::Silence(Daemon::Multipathd),
        E::Answers,
        E::HookTakesOver,
    ];
    /// What may happen only while no agent lives.
    pub(super) const ALONE: [Self; 4] =
        [E::Pause, E::RejoinAndPause, E::JournalLost, E::JournalTorn];

    /// Whether it can happen now.
    pub(super) fn possible(self, w: &World) -> bool {
        let volume = w.volumes[0];
        let free = volume.is_some_and(|v| v.swapping.is_none());
        match self {
            _ if w.reset => false,
            E::Cut => w.up,
            E::Return => !w.up,
            E::Hole => !w.hole,
            E::HoleEnds => w.hole,
            E::Write => {
                let runs = |v: super::world::Volume| v.table == Table::Linear && !v.suspended;
                free && volume.is_some_and(runs) && (w.up || w.queueing) && w.writes.len() < 2
            }
            E::Requeue => !w.told && !w.queueing,
            E::LoadLinear => volume.is_some_and(|v| v.inactive != Some(Table::Linear)),
            // The kernel lets one suspend at a time, and waits for I/O.
            E::Suspend => {
                free && volume.is_some_and(|v| !v.suspended)
                    && !w.writes.iter().any(|write| write.volume == 0)
            }
            E::Resume => free && volume.is_some_and(|v| v.suspended),
            E::Refresh => free && volume.is_some_and(|v| v.table == Table::Error),
            E::Activate => w.volumes.last().is_some_and(Option::is_none),
            E::Renew => w.renewable() && w.lock.is_some_and(|l| w.now >= l.renewed + 1000),
            E::Rejoin => w.lock.is_none() && w.up && w.writes.is_empty(),
            // Where everything is closed, an administrator may drop the lockspace himself.
            E::RejoinAndPause => {
                let closed = w.volumes.iter().flatten().all(|v| v.closed());
                w.writes.is_empty() && (w.lock.is_none() || closed)
            }
            E::Silence(_) => w.silent.is_none(),
            E::Answers => w.silent.is_some(),
            E::HookTakesOver | E::Pause | E::JournalLost | E::JournalTorn => true,
        }
    }

    /// Has it happen. What concerns files or processes is done elsewhere.
    pub(super) fn happen(self, w: &mut World) {
        // Whoever opens a volume after it was seen closed does so without a lock.
        let late = w.proof || !w.held();
        match self {
            E::Cut => {
                w.up = false;
                w.fail_queued();
            }
            E::Return => {
                w.up = true;
                w.send_queued();
            }
            E::Hole => w.hole = true,
            E::HoleEnds => {
                w.hole = false;
                w.come_back();
            }
            E::Write if w.up => w.send(0),
            E::Write => w.writes.push(super::world::Write {
                volume: 0,
                sent: false,
            }),
            E::Requeue => w.queueing = true,
            E::LoadLinear | E::Suspend | E::Resume | E::Refresh => self.refresh(w, late),
            E::Activate => {
                let made = w.generations;
                if let Some(v) = w.volumes.last_mut() {
                    *v = Some(activated(late, made));
                }
            }
            E::Renew => {
                if let Some(l) = &mut w.lock {
                    l.renewed = w.now;
                }
            }
            E::Rejoin => {
                w.hindered = true;
                w.rejoin();
            }
            E::Silence(daemon) => {
                w.hindered |= daemon != Daemon::Multipathd;
                w.silent = Some(daemon);
            }
            E::Answers => w.silent = None,
            E::RejoinAndPause => {
                w.hindered = true;
                w.up = true;
                w.rejoin();
                w.move_to(w.now + PAUSE);
            }
            E::Pause => {
                w.hindered = true;
                w.move_to(w.now + PAUSE);
            }
            E::HookTakesOver | E::JournalLost | E::JournalTorn => {}
        }
        w.follow();
    }

    fn refresh(self, w: &mut World, late: bool) {
        let Some(v) = &mut w.volumes[0] else { return };
        match self {
            E::LoadLinear => v.inactive = Some(Table::Linear),
            E::Suspend => v.suspended = true,
            E::Resume => {
                v.suspended = false;
                if let Some(table) = v.inactive.take() {
                    v.table = table;
                }
            }
            _ => {
                v.inactive = None;
                v.suspended = false;
                v.table = Table::Linear;
            }
        }
        // To load a real table is what opens it; who only resumes takes what he finds.
        if matches!(self, E::LoadLinear | E::Refresh) {
            v.late |= late;
        }
    }
}
