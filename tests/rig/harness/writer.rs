//! Writers: processes in a node that stamp blocks of a device or a file, by direct I/O, and say how they fared.

use std::time::{Duration, Instant};

use super::node::Node;
use super::wait::until;
use super::{Context, Result, ensure, say};
pub use crate::guest::writer::State;

/// A writer in a node.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Its name, unique in the node.
    pub name: String,
}

impl Writer {
    /// Starts one that writes to `target` (a block device or a file) and waits until its first write is done.
    pub fn start(node: &Node, name: &str, target: &str) -> Result<Self> {
        let owner = node.name();
        node.sh(&format!(
            "mkdir -p /run/writers; rm -f '/run/writers/{name}.'*; setsid /payload/bin/rig guest-writer '{name}' '{target}' '{owner}' >/run/writers/{name}.log 2>&1 </dev/null &"
        ))?;
        let writer = Self {
            name: name.to_owned(),
        };
        until(
            &format!("writer {name} on {owner} writes"),
            Duration::from_secs(30),
            || Ok(writer.state(node).ok().filter(|state| state.writes > 0)),
        )?;
        Ok(writer)
    }

    /// How it fares. It keeps this on tmpfs, so asking needs no disk.
    pub fn state(&self, node: &Node) -> Result<State> {
        let text = node.sh(&format!("cat /run/writers/{}.json", self.name))?;
        serde_json::from_str(&text).context(format!(
            "writer {} on {}: {text}",
            self.name,
            node.name()
        ))
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&self, node: &Node, limit: Duration) -> Result<State> {
        until(&format!("writer {} ends", self.name), limit, || {
            Ok(Some(self.state(node)?).filter(|state| state.ended))
        })
    }

    /// Ends it.
    pub fn stop(&self, node: &Node) -> Result {
        node.sh(&format!(
            "touch /run/writers/{0}.stop; for i in $(seq 50); do grep -q '\"ended\":true' /run/writers/{0}.json && exit 0; sleep 0.1; done; exit 1",
            self.name
        ))?;
        Ok(())
    }

    /// Starts counting pauses from now on.
    pub fn forget_pauses(&self, node: &Node) -> Result {
        node.sh(&format!(
            "touch /run/writers/{0}.forget; for i in $(seq 100); do test -e /run/writers/{0}.forget || exit 0; sleep 0.1; done; exit 1",
            self.name
        ))?;
        Ok(())
    }
}

/// Writers that a fence is none of the business of: what they pause without one, and with one.
pub struct Bystanders {
    writers: Vec<Writer>,
    span: Duration,
    without: Vec<u64>,
    began: Instant,
}

/// On top of three times what a writer pauses without a fence: an emulated node on a machine under load has moments of its own.
const GIVE_OR_TAKE: u64 = 250;
/// A stall of a second is noticed, however restless the node is without a fence.
const STALL: u64 = 1000;

impl Bystanders {
    /// They run undisturbed for `span`.
    pub fn undisturbed(node: &Node, writers: Vec<Writer>, span: Duration) -> Result<Self> {
        let without = pauses(node, &writers, span)?;
        Ok(Self {
            writers,
            span,
            without,
            began: Instant::now(),
        })
    }

    /// Their pauses count from now on: what they must not notice begins.
    pub fn disturbed(&mut self, node: &Node) -> Result {
        for writer in &self.writers {
            writer.forget_pauses(node)?;
        }
        self.began = Instant::now();
        Ok(())
    }

    /// They went on, and paused hardly longer than in as long a time without: waits until that is over. If it was longer, they are watched
    /// undisturbed for the rest of it: the fence has to be over.
    pub fn never_noticed(&mut self, node: &Node) -> Result {
        std::thread::sleep(self.span.saturating_sub(self.began.elapsed()));
        let with = largest(node, &self.writers)?;
        let took = self.began.elapsed();
        if took > self.span {
            let more = pauses(node, &self.writers, took.saturating_sub(self.span))?;
            for (without, more) in self.without.iter_mut().zip(more) {
                *without = more.max(*without);
            }
            self.span = took;
        }
        for ((writer, with), without) in self.writers.iter().zip(with).zip(&self.without) {
            say(format!(
                "    {}: largest pause {with} ms with the fence, {without} ms without, {:.1} s each",
                writer.name,
                self.span.as_secs_f64()
            ));
            ensure(
                !writer.state(node)?.ended && with < STALL.min(GIVE_OR_TAKE + 3 * without),
                format!("{} never noticed", writer.name),
            )?;
        }
        Ok(())
    }

    /// They went on until now, whatever the node was busy with.
    pub fn went_on(&self, node: &Node) -> Result {
        for (writer, without) in self.writers.iter().zip(&self.without) {
            let state = writer.state(node)?;
            ensure(
                !state.ended && state.longest_pause_ms < 2 * STALL + 3 * without,
                format!(
                    "{} went on (largest pause {} ms)",
                    writer.name, state.longest_pause_ms
                ),
            )?;
        }
        Ok(())
    }
}

fn largest(node: &Node, writers: &[Writer]) -> Result<Vec<u64>> {
    let largest = |w: &Writer| Ok(w.state(node)?.longest_pause_ms);
    writers.iter().map(largest).collect()
}

/// The largest pause of each writer within a span.
fn pauses(node: &Node, writers: &[Writer], span: Duration) -> Result<Vec<u64>> {
    writers.iter().try_for_each(|w| w.forget_pauses(node))?;
    std::thread::sleep(span);
    largest(node, writers)
}
