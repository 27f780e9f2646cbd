//! What the harness and the guest agent say to each other: frames of a length (4 bytes, big-endian) and that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A shell command for the guest.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u64,
    /// Run by bash.
    pub command: String,
    /// After this long it is killed.
    pub limit_ms: u64,
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Of the request.
    pub id: u64,
    /// Exit code; 128 + n when signal n ended it; -1 when it did not end in time.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How long it took.
    pub ms: u64,
}

/// What the guest says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The agent takes commands from now on.
    Hello,
    /// A command has ended.
    Answer(Answer),
}

/// More than any command here prints; a length above it means that the two ends lost step.
const LONGEST: usize = 64 << 20;

/// Reads one frame.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one frame, in one piece.
pub fn write_frame(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    to.write_all(&frame)?;
    to.flush()
}
