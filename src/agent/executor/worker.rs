//! The threads of a swap: each takes one device after the other, loads the error table and swaps, until the kernel has done it. One that hangs in
//! the kernel holds up nothing but itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smol_str::SmolStr;

use crate::agent::journal::Signs;
use crate::fence::{DevNo, DevNos, Monotonic};
use crate::host::underway::{At, Underway};
use crate::host::{Bell, Error, Host, Result};

const PAUSE: Duration = Duration::from_millis(10);

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The swap returned 0 after so long: nothing was in flight when the error table went live.
    Swapped(Duration),
    /// It is no longer suspended, and has the table that whoever suspended it meant it to have.
    Resumed,
    /// There is no such device any more.
    Gone,
    /// It did not work, for this reason.
    Failed(String),
    /// A thread of an earlier fence is still at it, since then.
    Elsewhere(Monotonic),
}

/// What is to be done about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// An error table of so many sectors takes the place of its table.
    Swap(u64),
    /// Somebody left it suspended, and it is not its turn yet.
    Resume,
}

/// A device that waits for a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Its place in the book.
    pub(super) at: usize,
    /// What it is known by to the kernel: a number may be another device's by now.
    pub(super) uuid: SmolStr,
    pub(super) work: Work,
    /// Devices of the book below it: they wait for this one to be settled, and for all others that stand on them.
    pub(super) below: DevNos,
}

/// What the threads tell, of the device at that place in the book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Letter {
    Began(usize, Monotonic),
    Ended(usize, Attempt),
}

#[derive(Default)]
struct Table {
    jobs: VecDeque<Job>,
    letters: Vec<Letter>,
    threads: usize,
    /// Devices that others stand on: how many of these are queued, or have a thread.
    held: BTreeMap<DevNo, usize>,
    /// Devices that a thread is at, by their place in the book: UUID, and since when.
    at: BTreeMap<usize, (SmolStr, Monotonic)>,
    /// The same once nobody waits for these threads any more.
    left: BTreeMap<usize, At>,
}

impl Table {
    fn hold(&mut self, job: &Job) {
        for dev in &job.below {
            *self.held.entry(*dev).or_default() += 1;
        }
    }

    /// Whether nobody is at what stands on some device any more, that of this job having been the last.
    fn let_go(&mut self, job: &Job) -> bool {
        let mut free = false;
        for dev in &job.below {
            if let Some(count) = self.held.get_mut(dev) {
                *count -= 1;
                free |= *count == 0;
            }
        }
        self.held.retain(|_, count| *count > 0);
        free
    }
}

/// The threads, and the table where jobs and letters lie. The table is locked only to put down or to take up: never by a thread that may hang.
#[derive(Clone, Default)]
pub(super) struct Crew {
    table: Arc<Mutex<Table>>,
    stop: Arc<AtomicBool>,
    underway: Underway,
    /// Given for every device that is settled.
    pub(super) signs: Signs,
    pub(super) bell: Bell,
}

impl Crew {
    pub(super) fn new(host: &Host, signs: Signs) -> Self {
        Self {
            underway: host.underway.clone(),
            signs,
            ..Self::default()
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread that comes back to nobody shall not begin anything new. Until then whoever comes after this crew knows that it is there.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut table = self.table();
        table.jobs.clear();
        for (place, (uuid, since)) in std::mem::take(&mut table.at) {
            let at = self.underway.enter(&uuid, since);
            table.left.extend(at.map(|at| (place, at)));
        }
    }

    pub(super) fn add(&self, jobs: Vec<Job>) {
        let mut table = self.table();
        for job in &jobs {
            table.hold(job);
        }
        for job in jobs {
            match job.work {
                Work::Swap(_) => table.jobs.push_back(job),
                // Those that are queued may hang as well, until it is done.
                Work::Resume => table.jobs.push_front(job),
            }
        }
    }

    /// Whether jobs wait for a thread.
    pub(super) fn has_jobs(&self) -> bool {
        !self.table().jobs.is_empty()
    }

    pub(super) fn letters(&self) -> Vec<Letter> {
        std::mem::take(&mut self.table().letters)
    }

    /// Starts threads while jobs wait, until there are `most`. Jobs that nobody is there for come back, with the reason.
    pub(super) fn work(&self, host: &Host, most: usize) {
        loop {
            {
                let mut table = self.table();
                if table.jobs.is_empty() || table.threads >= most {
                    return;
                }
                table.threads += 1;
            }
            let (me, with) = (self.clone(), host.clone());
            let Err(e) = host.system.spawn("swap", Box::new(move || me.serve(&with))) else {
                // One thread is enough for few jobs: it may have taken them all by now.
                continue;
            };
            let mut table = self.table();
            table.threads -= 1;
            if table.threads == 0 {
                let unserved = std::mem::take(&mut table.jobs);
                let told = |job: Job| {
                    let why = format!("no thread for it: {e}");
                    Letter::Ended(job.at, Attempt::Failed(why))
                };
                table.letters.extend(unserved.into_iter().map(told));
                self.bell.ring();
            }
            return;
        }
    }

    /// Takes one job after the other while there are any.
    fn serve(&self, host: &Host) {
        let mut ended = None;
        while let Some(job) = self.next(host, ended.take()) {
            let attempt = attempt(host, &job, &self.stop);
            ended = Some((job, attempt));
        }
    }

    /// Puts down what became of the last job and takes the next one up, at one go: a thousand devices on many threads meet at this table.
    fn next(&self, host: &Host, ended: Option<(Job, Attempt)>) -> Option<Job> {
        let mut table = self.table();
        let (mut rings, mut settled) = (false, false);
        if let Some((job, attempt)) = ended {
            table.at.remove(&job.at);
            table.left.remove(&job.at);
            settled = matches!(attempt, Attempt::Swapped(_) | Attempt::Gone);
            // Nothing has to be decided while all goes well and others are at it: each ring costs a switch of threads.
            let last = table.jobs.is_empty() && table.at.is_empty();
            rings = table.let_go(&job) || last || !settled;
            table.letters.push(Letter::Ended(job.at, attempt));
        }
        let mut job = table.jobs.pop_front();
        // Left to the thread that an earlier fence has there: it may hang for good, and so would this one, behind it.
        while let Some(taken) = &job
            && let Some(since) = self.underway.since(&taken.uuid)
        {
            let elsewhere = Letter::Ended(taken.at, Attempt::Elsewhere(since));
            table.letters.push(elsewhere);
            table.let_go(taken);
            rings = true;
            job = table.jobs.pop_front();
        }
        if let Some(job) = &job {
            let now = host.system.monotonic();
            table.at.insert(job.at, (job.uuid.clone(), now));
            table.letters.push(Letter::Began(job.at, now));
        } else {
            table.threads -= 1;
        }
        drop(table);
        if rings {
            self.bell.ring();
        }
        // Not at the table, where all others would wait for the file.
        if settled {
            self.underway.note_swapped();
            self.signs.give();
        }
        job
    }
}

/// Tries until the kernel has done it, or says something that trying again at once does not help, or `stop` is set.
///
/// A swap that hangs keeps its error table in the inactive slot, and so does one that was interrupted. It is left there: whoever resumes the
/// device next only completes the fence, while clearing it would race with the swap that still waits.
fn attempt(host: &Host, job: &Job, stop: &AtomicBool) -> Attempt {
    while !stop.load(Ordering::Relaxed) {
        match once(host, job) {
            Ok(attempt) => return attempt,
            Err(Error::NoSuchDevice { .. }) => return Attempt::Gone,
            Err(Error::Interrupted { .. } | Error::Busy { .. }) => {
                let until = host.system.monotonic() + PAUSE;
                host.system.wait(&Bell::default(), 0, until);
            }
            Err(e) => return Attempt::Failed(e.to_string()),
        }
    }
    Attempt::Failed("the fence ended before it could be tried again".into())
}

fn once(host: &Host, job: &Job) -> Result<Attempt> {
    let Work::Swap(sectors) = job.work else {
        // Where a table waits in its inactive slot the kernel takes that one, as it would have for whoever left it.
        host.device_mapper.swap(&job.uuid)?;
        return Ok(Attempt::Resumed);
    };
    // A device without a table has no size yet; the least that can be loaded denies it one.
    host.device_mapper.load_error(&job.uuid, sectors.max(1))?;
    let started = host.system.monotonic();
    host.device_mapper.swap(&job.uuid)?;
    let took = host.system.monotonic().since(started);
    Ok(Attempt::Swapped(took))
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
