//! What people are told: events on the request and on the Node.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;

use super::Desk;
use crate::agent::guard::News;
use crate::agent::hook;
use crate::agent::node_storage::{OPEN_WITHOUT_LOCK, in_words};
use crate::agent::report::Happened;
use crate::api::StorageFenceRequest;
use crate::fence::Inventory;
use crate::kubernetes::events::Happening;

impl Desk {
    /// What the guard has seen concerns the node, and no request any more.
    pub(super) fn noticed(&mut self, news: &News) {
        tracing::warn!(reason = news.reason, news.note, "guard");
        self.tools.observer.look();
        if let Some(events) = &self.events {
            events.tell(
                self.node(),
                &Happening {
                    warning: news.warning,
                    reason: news.reason,
                    action: "Guard",
                    note: &news.note,
                },
            );
        }
    }

    pub(super) fn tell(&self, name: &str, uid: &str, action: &str, happened: &Happened) {
        let Some(events) = &self.events else { return };
        let happening = Happening {
            action,
            ..happening(happened.warning, happened.reason, &happened.note)
        };
        events.tell(self.node(), &happening);
        if hook::is_ours(uid) || !Self::recorded(uid) {
            return;
        }
        let request = ObjectReference {
            api_version: Some(StorageFenceRequest::api_version(&()).into_owned()),
            kind: Some(StorageFenceRequest::kind(&()).into_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        events.tell(request, &happening);
    }

    /// What set a policy off. Its words say for how many seconds, so that an agent that is started meanwhile would use others.
    pub(super) fn triggered(&self, note: &str, occasion: &str) {
        tracing::warn!(note, occasion, "a policy's trigger");
        if let Some(events) = &self.events {
            let happening = happening(true, "PolicyTriggered", note);
            events.tell_once(self.node(), &happening, occasion);
        }
    }

    /// Volume groups that reach the SAN without a lock, when they are others than at the last look.
    pub(super) fn tell_unlocked(&mut self, inventory: Option<&Inventory>) {
        let Some(inventory) = inventory else { return };
        let without = inventory.volume_groups.iter().filter(|g| g.unlocked);
        let names: Vec<&str> = without.map(|g| g.name.as_str()).collect();
        if self.unlocked == names {
            return;
        }
        self.tools.metrics.unlocked(names.len());
        self.unlocked = names.iter().map(|&n| n.to_owned()).collect();
        if names.is_empty() {
            tracing::info!("every volume group that reaches the SAN has its lock again");
            return;
        }
        let note = in_words(&names);
        tracing::error!(note, "volume groups without a lock");
        if let Some(events) = &self.events {
            events.tell(self.node(), &happening(true, OPEN_WITHOUT_LOCK, &note));
        }
    }

    /// As the kubelet does it: with the name for a UID, which `kubectl describe node` looks for as well.
    pub(super) fn node(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.tools.node_name.clone()),
            uid: Some(self.tools.node_name.clone()),
            ..ObjectReference::default()
        }
    }
}

fn happening<'a>(warning: bool, reason: &'a str, note: &'a str) -> Happening<'a> {
    Happening {
        warning,
        reason,
        action: "Fence",
        note,
    }
}
