//! How a desk ends that did not mean to.

/// Why the process has to be started anew: the journal knows how to go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ends {
    /// A fence's thread died.
    #[error(
        "a fence's thread died: this is a bug. The process ends, and the next one completes the fence from the journal"
    )]
    Died,
    /// Another process has taken the turn to fence away, and the journal with it.
    #[error("{0}. The process ends, and the next one goes on from what the journal says by then")]
    TakenOver(String),
}
