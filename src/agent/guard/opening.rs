//! A fence that did not hold: what is noted of it and told.

use super::closing::Closing;
use super::sieve::Sieve;
use super::veil::veiled;
use super::{Guard, NAMED};
use crate::agent::journal::{Opening, Standing};
use crate::fence::Monotonic;

impl Guard {
    pub(super) fn is_open(&mut self, one: &Standing, open: &[String], sieve: &Sieve) {
        let uuid = &one.group.uuid;
        let noticed = self.host.system.monotonic();
        // One that was noticed by an earlier agent and not closed is the same one.
        let known = one
            .last_opening
            .as_ref()
            .is_some_and(|o| o.open_at_most.is_none());
        if !known {
            let doubtful = self.doubtful.remove(uuid).map(|d| d.0);
            let closed = doubtful.or_else(|| self.closed.remove(uuid));
            let closed = closed.unwrap_or(one.proven);
            let opening = Opening {
                noticed,
                closed_before: closed,
                devices: open.iter().take(NAMED).cloned().collect(),
                open_at_most: None,
            };
            // Told with its number: an event that says the same as one before is not sent again (kubernetes/events.rs).
            let number = one.openings + 1;
            let noted = self.standings.update(uuid, |s| {
                s.openings = number;
                s.last_opening = Some(opening.clone());
            });
            let note = noted.err().map(|e| format!(" ({e})")).unwrap_or_default();
            self.news(
                true,
                "FenceOpened",
                format!(
                    "Volume group {} no longer stands fenced: {} got a table that leads to the SAN, without any lock. It is being closed again. Was it \
                     an lvchange or vgchange --refresh? Do not run these on a fenced node. {}{note}",
                    one.group.name,
                    open.join(", "),
                    nth(number, one)
                ),
            );
        }
        let host = veiled(&self.host, sieve);
        let closing = Closing::start(&host, &one.group, &self.standings);
        match closing {
            Ok(closing) => {
                self.closing.insert(uuid.clone(), closing);
            }
            Err(e) => self.trouble(format!("no thread to close a fence again: {e}")),
        }
    }

    pub(super) fn is_closed(&mut self, one: &Standing, began: Monotonic) {
        let uuid = &one.group.uuid;
        self.closed.insert(uuid.clone(), began);
        let Some(opening) = one
            .last_opening
            .as_ref()
            .filter(|o| o.open_at_most.is_none())
        else {
            return;
        };
        // By this reading, which began only when it was closed.
        let open = self.host.system.monotonic().since(opening.closed_before);
        let noted = self.standings.update(uuid, |s| {
            if let Some(opening) = &mut s.last_opening {
                opening.open_at_most = Some(open);
            }
        });
        // What cannot be noted is told again at the next look, which is the lesser evil.
        let note = noted.err().map(|e| format!(" ({e})")).unwrap_or_default();
        self.news(
            true,
            "FenceClosedAgain",
            format!(
                "Volume group {} stands fenced again, read back for every device. {} could reach the SAN for at most {} ms without a lock: check \
                 what was written there meanwhile. {}{note}",
                one.group.name,
                opening.devices.join(", "),
                open.as_millis(),
                nth(one.openings, one)
            ),
        );
    }

    /// Devices were open that were made after the fence, while the lock manager did not tell under which locks; and they no longer are, before it did.
    pub(super) fn was_doubtful(&mut self, one: &Standing, devices: Vec<String>, closed: Monotonic) {
        let number = one.openings + 1;
        let open = self.host.system.monotonic().since(closed);
        let names = devices.join(", ");
        let opening = Opening {
            noticed: closed,
            closed_before: closed,
            devices,
            open_at_most: Some(open),
        };
        let noted = self.standings.update(&one.group.uuid, |s| {
            s.openings = number;
            s.last_opening = Some(opening.clone());
        });
        let note = noted.err().map(|e| format!(" ({e})")).unwrap_or_default();
        self.news(
            true,
            "FenceOpened",
            format!(
                "Volume group {} may not have stood fenced: {names} came up after the fence and could reach the SAN for at most {} ms. It ended by \
                 itself, before the lock manager answered whether that was under a lock: check what was written there meanwhile. {}{note}",
                one.group.name,
                open.as_millis(),
                nth(number, one)
            ),
        );
    }
}

/// Which opening of which fence: no two of a node are told in the same words.
fn nth(number: u32, of: &Standing) -> String {
    let proven = of.proven.0.as_secs();
    format!(
        "It is opening {number} of the fence by {}, proven at an uptime of {proven} s",
        of.by
    )
}
