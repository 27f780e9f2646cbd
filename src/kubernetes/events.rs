//! Events, for `kubectl describe`: sent on the side, so that nobody waits for them.
//!
//! kube's own recorder counts repetitions by their reason, and loses what the later ones say. Here an event's name is made from what it says
//! about what, or from the occasion that it is told once of: the API server itself refuses to hear the same twice, also from the successor of a
//! killed process.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::apply::call;
use super::backoff::Backoff;

/// An API server that starts says Forbidden until it has read its roles: that is not its last word for so long.
const STARTING: Duration = Duration::from_secs(60);
/// How many events may wait to be sent; what comes on top is dropped. They are a courtesy, the status is the record.
const WAITING: usize = 256;
/// Longest note that the API server takes.
const NOTE_LIMIT: usize = 1024;
/// Longest name of a reporting instance that the API server takes.
const INSTANCE_LIMIT: usize = 128;
/// Where events on cluster-scoped objects live: the API server takes them in no other than this one and `kube-system`.
const NAMESPACE: &str = "default";

/// Takes events and returns at once.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<v1::Event>, Reporter);

#[derive(Clone, Debug)]
struct Reporter {
    controller: String,
    instance: String,
}

/// What happened, as an event tells it.
#[derive(Clone, Debug)]
pub struct Happening<'a> {
    /// Whether a person should look.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'a str,
    /// What the reporter was doing, one CamelCase word.
    pub action: &'a str,
    /// For people.
    pub note: &'a str,
}

impl Events {
    /// Starts the task that sends. It ends, with everything sent that can be, when the last `Events` is dropped.
    #[must_use]
    pub fn start(client: Client, controller: &str, instance: &str) -> (Self, JoinHandle<()>) {
        let reporter = Reporter {
            controller: controller.to_owned(),
            instance: bounded(instance, INSTANCE_LIMIT),
        };
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                send(&client, &event, || receiver.is_closed()).await;
            }
        });
        (Self(sender, reporter), task)
    }

    /// Sends an event about an object, unless too many wait already.
    pub fn tell(&self, regarding: ObjectReference, happening: &Happening<'_>) {
        self.tell_once(regarding, happening, happening.note);
    }

    /// The same of an occasion that is told once, whatever the words are each time. The same words of another are another event.
    pub fn tell_once(&self, regarding: ObjectReference, happening: &Happening<'_>, occasion: &str) {
        let event = self.1.event(regarding, happening, occasion);
        if self.0.try_send(event).is_err() {
            tracing::warn!(
                reason = happening.reason,
                "event dropped: too many wait to be sent"
            );
        }
    }
}

/// Tries until the API server has it, or refuses it for good, or nobody is left who could wait for it.
async fn send(client: &Client, event: &v1::Event, closing: impl Fn() -> bool) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or(NAMESPACE);
    let api: Api<v1::Event> = Api::namespaced(client.clone(), namespace);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut forbidden_since: Option<Instant> = None;
    loop {
        match call("send an event", api.create(&PostParams::default(), event)).await {
            Ok(_) => return,
            Err(error) if error.is_conflict() => return,
            Err(error) => {
                // An outage's last events come first when the API server is back.
                let starting = error.is_forbidden()
                    && forbidden_since.get_or_insert_with(Instant::now).elapsed() <= STARTING;
                if closing() || (error.is_refused() && !starting) {
                    tracing::warn!(%error, reason = event.reason, "event not sent");
                    return;
                }
                tracing::debug!(%error, reason = event.reason, "event not sent yet");
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

impl Reporter {
    fn event(
        &self,
        regarding: ObjectReference,
        happening: &Happening<'_>,
        occasion: &str,
    ) -> v1::Event {
        let namespace = regarding.namespace.clone();
        v1::Event {
            metadata: ObjectMeta {
                name: Some(name(&regarding, happening.reason, occasion)),
                namespace: Some(namespace.unwrap_or_else(|| NAMESPACE.to_owned())),
                ..ObjectMeta::default()
            },
            type_: Some(
                if happening.warning {
                    "Warning"
                } else {
                    "Normal"
                }
                .to_owned(),
            ),
            reason: Some(happening.reason.to_owned()),
            action: Some(happening.action.to_owned()),
            note: Some(bounded(happening.note, NOTE_LIMIT)),
            event_time: Some(MicroTime(jiff::Timestamp::now())),
            regarding: Some(regarding),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..v1::Event::default()
        }
    }
}

/// OBJECT.DIGEST, within the API server's limit of 253.
fn name(regarding: &ObjectReference, reason: &str, occasion: &str) -> String {
    let object = regarding.name.as_deref().unwrap_or("unnamed");
    let uid = regarding.uid.as_deref().unwrap_or_default();
    // FNV-1a: all that is asked of it is that it differs where the event does.
    let said = [uid, reason, occasion];
    let bytes = said.iter().flat_map(|s| s.bytes().chain([0]));
    let digest = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Names of objects are ASCII, so every place is a border.
    let object = object.get(..230).unwrap_or(object);
    format!("{}.{digest:016x}", object.trim_end_matches(['.', '-']))
}

/// A text of at most that many bytes.
fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(bounded("short", NOTE_LIMIT), "short");
        for start in ["", "a", "ab"] {
            let long = format!("{start}{}", "ü€".repeat(1000));
            let cut = bounded(&long, NOTE_LIMIT);
            assert!(cut.len() <= NOTE_LIMIT && cut.len() > NOTE_LIMIT - 8);
            assert!(cut.ends_with('…') && long.starts_with(cut.trim_end_matches('…')));
        }
    }

    fn named(object: &str, uid: &str, occasion: &str) -> String {
        let regarding = ObjectReference {
            name: Some(object.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        name(&regarding, "Fenced", occasion)
    }

    #[test]
    fn the_same_event_has_the_same_name_and_another_has_another() {
        assert_eq!(named("a", "1", "x"), named("a", "1", "x"));
        assert_ne!(named("a", "1", "x"), named("a", "1", "y"));
        assert_ne!(named("a", "1", "x"), named("a", "2", "x"));
        assert!(named(&"a".repeat(253), "1", "x").len() <= 253);
    }

    #[test]
    fn an_occasion_is_told_once_in_whatever_words_and_another_in_the_same_words_too() {
        let reporter = Reporter {
            controller: "c".into(),
            instance: "i".into(),
        };
        let told = |note, occasion| {
            let happening = Happening {
                warning: true,
                reason: "PolicyTriggered",
                action: "Fence",
                note,
            };
            let event = reporter.event(ObjectReference::default(), &happening, occasion);
            (event.metadata.name, event.note)
        };
        let (first, again) = (told("for 10 s", "outage 1"), told("for 13 s", "outage 1"));
        assert_eq!(first.0, again.0);
        assert_eq!(again.1.as_deref(), Some("for 13 s"));
        assert_ne!(first.0, told("for 10 s", "outage 2").0);
    }
}
