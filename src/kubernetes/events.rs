//! Events, for `kubectl describe`: sent on the side, so that nobody waits for them.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How many events may wait to be sent; what comes on top is dropped. They are a courtesy, the status is the record.
const WAITING: usize = 256;
/// Longest note that the API server takes.
const NOTE_LIMIT: usize = 1024;

/// Takes events and returns at once.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<(Event, ObjectReference)>);

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
            instance: Some(instance.to_owned()),
        };
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            let recorder = Recorder::new(client, reporter);
            while let Some((event, regarding)) = receiver.recv().await {
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    tracing::warn!(%error, reason = event.reason, object = regarding.name, "event not sent");
                }
            }
        });
        (Self(sender), task)
    }

    /// Sends an event about an object, unless too many wait already.
    pub fn tell(&self, regarding: ObjectReference, happening: &Happening<'_>) {
        let event = Event {
            type_: if happening.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: happening.reason.to_owned(),
            note: Some(bounded(happening.note)),
            action: happening.action.to_owned(),
            secondary: None,
        };
        if self.0.try_send((event, regarding)).is_err() {
            tracing::warn!(
                reason = happening.reason,
                "event dropped: too many wait to be sent"
            );
        }
    }
}

/// A note of at most the length that the API server takes, in bytes.
fn bounded(note: &str) -> String {
    if note.len() <= NOTE_LIMIT {
        return note.to_owned();
    }
    let mut end = NOTE_LIMIT - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(bounded("short"), "short");
        for start in ["", "a", "ab"] {
            let long = format!("{start}{}", "ü€".repeat(1000));
            let cut = bounded(&long);
            assert!(cut.len() <= NOTE_LIMIT && cut.len() > NOTE_LIMIT - 8);
            assert!(cut.ends_with('…') && long.starts_with(cut.trim_end_matches('…')));
        }
    }
}
