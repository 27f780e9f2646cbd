//! Listens in a daemon's place, and answers whoever connects with bytes that no daemon sends.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use crate::harness::{Context, Result};

/// More than a first read takes, and no end of a message in it.
const ANSWER: usize = 5000;

/// Serves for ever.
pub fn serve(socket: &str) -> Result {
    let listener = UnixListener::bind(socket).context(format!("listening on {socket}"))?;
    // Different bytes in no order that means anything.
    let answer: Vec<u8> = (1..=u32::try_from(ANSWER)?)
        .map(|n| n.wrapping_mul(2_654_435_761).to_ne_bytes()[1])
        .collect();
    for connection in listener.incoming() {
        let mut connection = connection.context("a connection")?;
        // One that has gone meanwhile is no reason to stop.
        let _ = connection.read(&mut [0; 4096]);
        let _ = connection.write_all(&answer);
    }
    Ok(())
}
