//! Watches that never end and never fail.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, utils, watcher};
use serde::de::DeserializeOwned;

use super::backoff::Backoff;

/// A watch is opened anew after this many seconds (the server ends it), so a peer that died without a word is noticed not much later.
const WATCH_SECONDS: u32 = 120;

/// What a watch saw.
#[derive(Clone, Debug)]
pub enum Seen<K> {
    /// A list begins: what is not named until [`Seen::Listed`] does not exist any more.
    Listing,
    /// The object is there, new or changed. `bool` is true while listing.
    Is(Box<K>, bool),
    /// The object is gone.
    Gone(Box<K>),
    /// The list is complete.
    Listed,
    /// An object of the cluster is not understood, for example because it was made by a newer version: its name and why.
    Unreadable(String, String),
    /// The watch is broken and will be made again by itself.
    Broken(String),
}

/// The longest that kube takes: for what is not urgent, so that many nodes cost their API server little.
pub const LONG_WATCH_SECONDS: u32 = 290;

/// Watches with a back-off of its own. One object that makes no sense does not blind it for the others.
pub fn watch<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    backoff: Backoff,
) -> impl Stream<Item = Seen<K>> + Send
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let seconds = config.timeout.unwrap_or(WATCH_SECONDS);
    patient(watcher(api, config.timeout(seconds)), backoff).map(|event| match event {
        Ok(watcher::Event::Init) => Seen::Listing,
        Ok(watcher::Event::InitDone) => Seen::Listed,
        Ok(watcher::Event::InitApply(DeserializeGuard(object))) => is(object, true),
        Ok(watcher::Event::Apply(DeserializeGuard(object))) => is(object, false),
        Ok(watcher::Event::Delete(DeserializeGuard(Ok(object)))) => Seen::Gone(Box::new(object)),
        Ok(watcher::Event::Delete(DeserializeGuard(Err(invalid)))) => {
            Seen::Unreadable(invalid.metadata.name.unwrap_or_default(), invalid.error)
        }
        Err(error) => Seen::Broken(in_words(&error)),
    })
}

/// A watcher that waits between its tries as `backoff` says, which begins anew once the server has answered.
pub fn patient<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
    backoff: Backoff,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send {
    let answered = Arc::new(AtomicBool::new(false));
    let until_answered = UntilAnswered {
        backoff,
        answered: Arc::clone(&answered),
    };
    events
        .inspect(move |event| {
            if event
                .as_ref()
                .is_ok_and(|e| !matches!(e, watcher::Event::Init))
            {
                answered.store(true, Ordering::Relaxed);
            }
        })
        .backoff(until_answered)
}

/// A back-off that begins anew once the server has answered. kube has every event begin it anew, and its watcher tells of a list that begins before
/// each try: a server that is away would be tried at the first wait for ever.
struct UntilAnswered {
    backoff: Backoff,
    answered: Arc<AtomicBool>,
}

impl Iterator for UntilAnswered {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(self.backoff.wait())
    }
}

impl utils::Backoff for UntilAnswered {
    fn reset(&mut self) {
        if self.answered.swap(false, Ordering::Relaxed) {
            self.backoff.reset();
        }
    }
}

fn is<K>(object: Result<K, kube::core::error_boundary::InvalidObject>, listing: bool) -> Seen<K> {
    match object {
        Ok(object) => Seen::Is(Box::new(object), listing),
        Err(invalid) => Seen::Unreadable(invalid.metadata.name.unwrap_or_default(), invalid.error),
    }
}

/// kube's own text leaves the cause out.
fn in_words(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::Config;

    use super::*;
    use crate::kubernetes::client::{Calls, Purpose, client};

    #[tokio::test]
    async fn a_server_that_is_away_is_tried_less_and_less_often() {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", nobody.local_addr().unwrap());
        drop(nobody);
        let config = Config::new(url.parse().unwrap());
        let api: Api<DeserializeGuard<Node>> =
            Api::all(client(&config, Purpose::Watch, &Calls::default()).unwrap());
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_mins(1));
        let watch = watch(api, watcher::Config::default(), backoff);
        let tries = watch.filter(|seen| std::future::ready(matches!(seen, Seen::Broken(_))));
        let tries = tries.take_until(tokio::time::sleep(Duration::from_secs(2)));
        // After 5, 10, 20... ms at least: the ninth wait is longer than all that is left.
        let tries = tries.count().await;
        assert!((2..=10).contains(&tries), "{tries} tries");
    }
}
