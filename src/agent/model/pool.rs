//! Threads that are used again: a life takes a hundred of them, and there are thousands of lives.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// Runs `job` on a thread that has nothing to do, or on a new one.
pub(super) fn run(job: Job) {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let free = idle().pop();
    let worker = free.unwrap_or_else(|| {
        let (give, take) = channel::<Job>();
        let back = give.clone();
        std::thread::spawn(move || {
            while let Ok(job) = take.recv() {
                job();
                idle().push(back.clone());
            }
        });
        give
    });
    worker
        .send(job)
        .expect("a worker lives as long as the program");
}
