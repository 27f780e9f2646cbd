//! What hook and agent say to each other.

use crate::agent::hook::protocol::{Answer, LINE, decode_question, encode_question, is_name};

/// One line.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    let answer = Answer::decode(data);
    assert_eq!(answer == Some(Answer::Proven), data == b"proven");
    if let Some(answer) = answer {
        told(&answer);
    }
    let why = String::from_utf8_lossy(data);
    told(&Answer::Unproven(why.to_string()));
    // Longer than what the other side reads.
    told(&Answer::Unproven(why.repeat(1 + LINE / why.len().max(1))));
    if let Some(vg) = decode_question(data) {
        assert!(is_name(vg) && vg.len() <= 127);
        let question = encode_question(vg);
        assert_eq!(question.strip_suffix('\n').map(str::as_bytes), Some(data));
    }
}

/// One line of a bounded length, which is understood.
fn told(answer: &Answer) {
    let line = answer.encode();
    assert!(line.len() <= LINE && line.find('\n') == Some(line.len() - 1));
    let heard = Answer::decode(line.trim_end_matches('\n').as_bytes());
    let heard = heard.expect("an answer of our own");
    match (answer, &heard) {
        (Answer::Unproven(_), Answer::Unproven(_)) => {}
        (said, heard) => assert_eq!(said, heard),
    }
    assert_eq!(heard.encode(), line);
}
