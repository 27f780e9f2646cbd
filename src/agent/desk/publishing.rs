//! What each request's status is to say.

use jiff::Timestamp;
use tokio::sync::watch;

use super::{Desk, stored};
use crate::agent::affected::Subject;
use crate::agent::decide::{Stand, Uid};
use crate::agent::outlived::{governed, restarted, still_stands};
use crate::agent::report::{AgentPart, Context, from_report};
use crate::agent::restore::report::nothing_fenced;
use crate::api::StorageFenceRequest;
use crate::fence::report::Outcome;

impl Desk {
    /// The requests of this node, for whoever tells which pods they affect.
    #[must_use]
    pub fn subjects(&self) -> watch::Receiver<Vec<Subject>> {
        self.subjects.subscribe()
    }

    pub(super) fn tell_subjects(&self) {
        let subject = |(uid, request): (&Uid, &StorageFenceRequest)| {
            let wanted = self.tools.board.wanted(uid);
            let part = wanted.unwrap_or_else(|| stored(request));
            Subject::of(uid, request, &part, &self.tools.boot_id)
        };
        let all: Vec<Subject> = self.requests.iter().map(subject).collect();
        self.subjects.send_if_modified(|before| {
            let modified = *before != all;
            if modified {
                *before = all;
            }
            modified
        });
    }

    /// What is known of a fence, where a status that is to tell of its un-fence has nothing of it yet: a record that is late.
    fn evidence(&mut self, uid: &str, before: &AgentPart, now: Timestamp) -> Option<AgentPart> {
        let known = self.known.get(uid).filter(|_| before.node.is_none())?;
        let known = known.clone();
        self.begun(&known);
        let (_, started) = self.started.get(uid)?;
        let context = Context {
            generation: known.report.generation,
            current_generation: known.report.generation,
            started: *started,
            now,
            before,
        };
        Some(from_report(&known.report, context))
    }

    pub(super) fn publish(&mut self, uid: &str, stand: &Stand) {
        let Some(request) = self.requests.get(uid) else {
            return;
        };
        let name = request.metadata.name.clone().unwrap_or_default();
        let current_generation = request.metadata.generation.unwrap_or_default();
        let before = self
            .tools
            .board
            .wanted(uid)
            .unwrap_or_else(|| stored(request));
        let now = Timestamp::now();
        let part = match stand {
            Stand::Settled | Stand::Next => return,
            Stand::Governed(other) => {
                let why = format!("request {other} is older and governs this node");
                still_stands(&self.tools.boot_id, &why, current_generation, now, &before)
                    .unwrap_or_else(|| governed(other, current_generation, now, &before))
            }
            Stand::Restarted => restarted(&self.tools.boot_id, current_generation, now, &before),
            Stand::NothingFenced => {
                nothing_fenced(&self.tools.boot_id, current_generation, now, &before)
            }
            Stand::Unfence => match self.lifts.get(uid).cloned() {
                Some(report) => {
                    let before = self.evidence(uid, &before, now).unwrap_or(before);
                    self.unfence_part(uid, &report, now, &before)
                }
                None => return,
            },
            Stand::Report(generation) => {
                let Some(known) = self.known.get(uid).cloned() else {
                    return;
                };
                self.begun(&known);
                let started = self.started.get(uid).map_or(now, |(_, started)| *started);
                let refused = matches!(known.report.outcome, Outcome::Refused(_))
                    .then(|| {
                        let why = &known.report.message;
                        still_stands(&self.tools.boot_id, why, *generation, now, &before)
                    })
                    .flatten();
                refused.unwrap_or_else(|| {
                    from_report(
                        &known.report,
                        Context {
                            generation: *generation,
                            current_generation,
                            started,
                            now,
                            before: &before,
                        },
                    )
                })
            }
        };
        let Some(request) = self.requests.get(uid) else {
            return;
        };
        self.tools.board.want(uid, &name, part, || stored(request));
    }
}
