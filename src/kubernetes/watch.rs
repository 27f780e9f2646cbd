//! Watches that never end and never fail.

use std::fmt::Debug;

use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
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
    watcher(api, config.timeout(seconds))
        .backoff(backoff)
        .map(|event| match event {
            Ok(watcher::Event::Init) => Seen::Listing,
            Ok(watcher::Event::InitDone) => Seen::Listed,
            Ok(watcher::Event::InitApply(DeserializeGuard(object))) => is(object, true),
            Ok(watcher::Event::Apply(DeserializeGuard(object))) => is(object, false),
            Ok(watcher::Event::Delete(DeserializeGuard(Ok(object)))) => {
                Seen::Gone(Box::new(object))
            }
            Ok(watcher::Event::Delete(DeserializeGuard(Err(invalid)))) => {
                Seen::Unreadable(invalid.metadata.name.unwrap_or_default(), invalid.error)
            }
            Err(error) => Seen::Broken(in_words(&error)),
        })
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
