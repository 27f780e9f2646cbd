//! A request's status as it moves, told line by line: what `kubectl get sfr -w` shows, and the steps of the node below it.

use std::fmt::Write;
use std::io::{BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::control_plane::ControlPlane;
use super::{Result, lock, say, until};

/// What was seen, and when.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it arrived here.
    pub at: Instant,
    /// What a person reads.
    pub line: String,
}

/// Watches one request in the background.
pub struct Timeline {
    kubectl: Child,
    reader: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Timeline {
    /// Begins to watch the request of that name, which need not be there yet; each change is told.
    pub fn start(control_plane: &ControlPlane, name: &str) -> Result<Self> {
        Self::watch(control_plane, name, true)
    }

    /// The same without a word.
    pub fn quiet(control_plane: &ControlPlane, name: &str) -> Result<Self> {
        Self::watch(control_plane, name, false)
    }

    fn watch(control_plane: &ControlPlane, name: &str, aloud: bool) -> Result<Self> {
        let field = format!("metadata.name={name}");
        let mut kubectl = control_plane
            .kubectl_command(&[
                "get",
                "storagefencerequests",
                "--field-selector",
                &field,
                "--watch",
                "--output-watch-events",
                "-o",
                "json",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&seen);
        let reader = kubectl
            .stdout
            .take()
            .map(|out| std::thread::spawn(move || follow(out, &tell, aloud)));
        // The watch is there before the request: what comes first is not to be missed.
        std::thread::sleep(Duration::from_millis(1500));
        Ok(Self {
            kubectl,
            reader,
            seen,
        })
    }

    /// When a line with `part` in it arrived.
    pub fn wait_for(&self, part: &str, limit: Duration) -> Result<Instant> {
        until(&format!("the timeline shows {part:?}"), limit, || {
            Ok(self.first(part))
        })
    }

    /// When the first line with `part` in it arrived, if any did.
    pub fn first(&self, part: &str) -> Option<Instant> {
        lock(&self.seen)
            .iter()
            .find(|seen| seen.line.contains(part))
            .map(|seen| seen.at)
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn follow(out: impl Read, seen: &Mutex<Vec<Seen>>, aloud: bool) {
    let events = serde_json::Deserializer::from_reader(BufReader::new(out)).into_iter::<Value>();
    let mut told: Vec<String> = Vec::new();
    for event in events {
        // The watch ended, or was cut in the middle of an event.
        let Ok(event) = event else { return };
        for line in lines(&event["object"]["status"]) {
            if !told.contains(&line) {
                if aloud {
                    say(format!("    status: {line}"));
                }
                lock(seen).push(Seen {
                    at: Instant::now(),
                    line: line.clone(),
                });
                told.push(line);
            }
        }
    }
}

/// What a status says, in the order in which it comes about.
fn lines(status: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = Vec::new();
    for step in status["node"]["steps"].as_array().into_iter().flatten() {
        let result = text(&step["result"]);
        if result == "Planned" {
            continue;
        }
        let mut line = format!("{:<15}{:<9}", text(&step["step"]), result);
        if let Some(took) = step["tookMilliseconds"].as_i64() {
            let _ = write!(line, "{took:>6} ms  ");
        }
        line.push_str(&text(&step["message"]));
        lines.push(line);
    }
    for condition in status["conditions"].as_array().into_iter().flatten() {
        lines.push(format!(
            "{}={} ({})",
            text(&condition["type"]),
            text(&condition["status"]),
            text(&condition["reason"])
        ));
    }
    if let Some(phase) = status["phase"].as_str() {
        lines.push(format!("phase {phase}"));
    }
    lines
}
