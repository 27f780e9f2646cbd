//! What a person sees while it goes on: lines with the seconds since the run began.

use std::sync::LazyLock;
use std::time::Instant;

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Seconds since the run began (since the first call).
pub fn seconds() -> f64 {
    BEGIN.elapsed().as_secs_f64()
}

/// One line of progress.
pub fn say(line: impl AsRef<str>) {
    println!("[{:7.1}s] {}", seconds(), line.as_ref());
}
