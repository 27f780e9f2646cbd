//! Waiting for something to become true, with a limit and a word on what was waited for.

use std::time::{Duration, Instant};

use super::Result;

/// Asks every 200 ms until the answer is `Some`, for at most `limit`. `what` is what the error says was not so.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if begin.elapsed() > limit {
            return Err(format!("{what}: not so within {} s", limit.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
