//! Lines for standard error that nobody waits for: whoever reads them may have stopped, as what collects a pod's output does when the disk that it
//! writes to hangs, and a pipe that is full holds up whoever writes to it.
//!
//! tracing-appender does the same, but panics where no thread is to be had.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// So many lines wait for being written; what comes then is lost.
const WAITING: usize = 2048;
/// How long the end of the process waits for lines that are not written yet.
const LIMIT: Duration = Duration::from_millis(500);
/// Bytes of the thread's stack.
const STACK: usize = 64 * 1024;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// One is being written.
    writing: bool,
    lost: u64,
}

/// Held to put a line down or to take one up, and never while one is written.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes lines, each in one write, and waits for nothing.
#[derive(Clone, Default)]
pub struct Lines(Arc<Shared>);

impl Lines {
    /// Has a thread of its own write them. Without a thread to be had they are lost, and nothing else.
    pub fn to(out: impl Write + Send + 'static) -> (Self, Written) {
        let lines = Self::default();
        let of_thread = lines.clone();
        let thread = Builder::new().name("log".into()).stack_size(STACK);
        let started = thread.spawn(move || of_thread.write_all_to(out));
        let written = Written(started.is_ok().then(|| lines.clone()));
        (lines, written)
    }

    /// The same to standard error.
    pub fn to_stderr() -> (Self, Written) {
        Self::to(io::stderr())
    }

    fn write_all_to(&self, mut out: impl Write) {
        loop {
            let mut queue = self.0.queue();
            queue.writing = false;
            self.0.changed.notify_all();
            let line = loop {
                if let Some(line) = queue.waiting.pop_front() {
                    break line;
                }
                queue = (self.0.changed.wait(queue)).unwrap_or_else(PoisonError::into_inner);
            };
            queue.writing = true;
            // There has to be room for the line that tells it.
            let lost = if queue.waiting.len() < WAITING / 2 {
                std::mem::take(&mut queue.lost)
            } else {
                0
            };
            drop(queue);
            // Where it cannot be written there is nobody to be told.
            let _ = out.write_all(&line);
            if lost > 0 {
                tracing::warn!(lost, "lines of this log are lost: nobody took them in time");
            }
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Memory is not waited for at the table where others put theirs.
        let copy = line.to_vec();
        let mut queue = self.0.queue();
        if queue.waiting.len() < WAITING {
            queue.waiting.push_back(copy);
        } else {
            queue.lost += 1;
        }
        drop(queue);
        self.0.changed.notify_all();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits, when it goes, for what is not written yet; for half a second at most.
#[must_use = "it waits when it goes"]
pub struct Written(Option<Lines>);

impl Drop for Written {
    fn drop(&mut self) {
        let Some(Lines(shared)) = &self.0 else { return };
        let left = |queue: &mut Queue| queue.writing || !queue.waiting.is_empty();
        drop(
            shared
                .changed
                .wait_timeout_while(shared.queue(), LIMIT, left),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_is_written_is_read_in_its_order_before_the_end() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut lines, written) = Lines::to(writer);
        let mut all = String::new();
        for n in 0..1000 {
            let line = format!("{n}\n");
            lines.write_all(line.as_bytes()).unwrap();
            all.push_str(&line);
        }
        drop(written);
        assert!(lines.0.queue().waiting.is_empty());
        let mut read = vec![0; all.len()];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), all);
    }

    #[test]
    fn a_reader_that_has_stopped_is_waited_for_at_the_end_only_and_not_for_long() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut lines, written) = Lines::to(writer);
        let line = [b'x'; 1023];
        let began = Instant::now();
        // More than the pipe and the queue take together.
        for _ in 0..2 * WAITING {
            lines.write_all(&[&line[..], b"\n"].concat()).unwrap();
        }
        let wrote = began.elapsed();
        assert!(wrote < LIMIT, "{wrote:?}");
        assert!(lines.0.queue().waiting.len() <= WAITING);
        assert!(lines.0.queue().lost > 0);
        drop(written);
        let took = began.elapsed();
        assert!(took >= LIMIT && took < wrote + LIMIT * 4, "{took:?}");
        // It goes on once somebody reads.
        let mut read = [0; 1024];
        for _ in 0..WAITING {
            reader.read_exact(&mut read).unwrap();
            assert_eq!(read[1023], b'\n');
        }
    }
}
