//! Waiting for something to become true, and saying what was not so.

use std::time::{Duration, Instant};

use crate::support::Result;

/// How long anything may take here. A busy machine is slow, and nothing is proven by being quick: a case that fails waits this long.
pub const LIMIT: Duration = Duration::from_secs(150);

/// Asks until the answer is `Ok`, for at most `limit`. An `Err` says what is there instead, for the failure's text.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        let instead = match ask().await? {
            Ok(answer) => return Ok(answer),
            Err(instead) => instead,
        };
        if began.elapsed() > limit {
            return Err(format!(
                "{what}: not so within {} s. Instead: {instead}",
                limit.as_secs()
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An error saying `what` is not so.
pub fn ensure(holds: bool, what: impl std::fmt::Display) -> Result {
    if holds {
        return Ok(());
    }
    Err(format!("not so: {what}").into())
}

/// An error saying what is there instead.
#[expect(clippy::needless_pass_by_value, reason = "mostly literals")]
pub fn ensure_eq<T: PartialEq + std::fmt::Debug>(what: &str, is: T, wanted: T) -> Result {
    if is == wanted {
        return Ok(());
    }
    Err(format!("{what}: {is:?} instead of {wanted:?}").into())
}
