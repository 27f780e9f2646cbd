//! QEMU's own word on what happened to a VM: its events, over its monitor socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::wait::until;
use super::{Context, Result, lock};

/// Something that QEMU said.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it reached us.
    pub at: Instant,
    /// WATCHDOG, SHUTDOWN, RESET, …
    pub name: String,
    /// Its details.
    pub data: Value,
}

/// How a VM went down by itself.
#[derive(Clone, Debug)]
pub struct Reset {
    /// When.
    pub at: Instant,
    /// By the hardware watchdog; otherwise by the guest itself (a panic, a reboot).
    pub by_watchdog: bool,
}

/// The monitor of one VM.
pub struct Monitor {
    events: Arc<Mutex<Vec<Event>>>,
    write: UnixStream,
}

impl Monitor {
    /// Connects, and listens from then on.
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut write = until("QEMU opens its monitor", Duration::from_secs(30), || {
            Ok(UnixStream::connect(socket).ok())
        })?;
        let read = write.try_clone()?;
        write.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in BufReader::new(read).lines() {
                let Ok(line) = line else { break };
                let Ok(value) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                if let Some(name) = value["event"].as_str() {
                    lock(&heard).push(Event {
                        at: Instant::now(),
                        name: name.to_owned(),
                        data: value["data"].clone(),
                    });
                }
            }
        });
        Ok(Self { events, write })
    }

    /// Everything that was said so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    /// Whether and how the VM went down. With `-no-reboot` a reset is a shutdown whose reason is guest-reset.
    pub fn reset(&self) -> Option<Reset> {
        let events = self.events();
        let watchdog = events.iter().find(|event| event.name == "WATCHDOG");
        let down = events
            .iter()
            .find(|event| matches!(event.name.as_str(), "SHUTDOWN" | "RESET"));
        watchdog.or(down).map(|event| Reset {
            at: event.at,
            by_watchdog: watchdog.is_some(),
        })
    }

    /// Gives QEMU an order without waiting for its answer, such as `system_reset`.
    pub fn execute(&mut self, command: &str) -> Result {
        self.execute_with(command, &serde_json::json!({}))
    }

    /// The same with arguments.
    pub fn execute_with(&mut self, command: &str, arguments: &Value) -> Result {
        let line = serde_json::json!({ "execute": command, "arguments": arguments });
        writeln!(self.write, "{line}").context(format!("telling QEMU to {command}"))
    }

    /// Whether the device of that id was taken out of the VM.
    pub fn unplugged(&self, device: &str) -> bool {
        let gone = |e: &Event| e.name == "DEVICE_DELETED" && e.data["device"] == device;
        self.events().iter().any(gone)
    }
}
