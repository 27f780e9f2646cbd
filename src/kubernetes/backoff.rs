//! How long to wait before the next try.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Doubles from `first` to `longest`, each wait shortened by up to a half at random, so that the agents of a cluster do not come back to
/// their API server all at once. Never ends.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// From the first wait to the longest.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// For watches and writes of an agent: quick, because the first thing that a person sees of an agent after an outage of the API server is
    /// how long its status takes.
    #[must_use]
    pub const fn agent() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(5))
    }

    /// For the controller's watches: its replicas are few, and what they miss meanwhile is not urgent.
    #[must_use]
    pub const fn controller() -> Self {
        Self::new(Duration::from_millis(800), Duration::from_secs(30))
    }

    /// It worked: begins anew.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        // The clock's low digits are random enough for this, and need no generator.
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |t| t.subsec_nanos());
        whole.saturating_sub(whole / 2 * (nanos % 1000) / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_longest_and_begins_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for whole in [100, 200, 400, 400] {
            let wait = backoff.wait();
            assert!(wait <= Duration::from_millis(whole), "{wait:?} for {whole}");
            assert!(
                wait >= Duration::from_millis(whole / 2),
                "{wait:?} for {whole}"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(100));
    }
}
