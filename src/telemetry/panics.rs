//! What a thread says that dies of a mistake in this program.
//!
//! By itself it says so to standard error, and waits there for whoever reads it; so does every thread that panics after it, and none comes to what is
//! done about a thread that died.

use std::panic::{PanicHookInfo, set_hook};
use std::thread;

/// From now on `tell` is given a line about each.
pub fn told_by(tell: impl Fn(&str) + Send + Sync + 'static) {
    set_hook(Box::new(move |panic| tell(&line(panic))));
}

fn line(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let why = panic.payload_as_str().unwrap_or("no reason given");
    let place = panic.location().map(ToString::to_string);
    let place = place.as_deref().unwrap_or("an unknown place");
    format!(
        "thread {name} panicked at {place}: {why}. This is a mistake in the program: please report it"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::Builder;

    use super::*;

    #[test]
    fn it_is_told_who_panicked_where_and_why() {
        let (told, lines) = mpsc::channel();
        told_by(move |line| {
            let _ = told.send(line.to_owned());
        });
        let dies = Builder::new().name("dies".into());
        let thread = dies.spawn(|| assert!(thread::panicking(), "for a reason"));
        assert!(thread.unwrap().join().is_err());
        drop(std::panic::take_hook());
        // Other tests panic, too.
        let all: Vec<String> = lines.iter().collect();
        let ours = all.iter().find(|l| l.contains("thread dies")).unwrap();
        assert!(ours.contains("src/telemetry/panics.rs:") && ours.contains(": for a reason."));
    }
}
