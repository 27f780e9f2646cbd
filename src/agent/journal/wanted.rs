//! Whether somebody of the same process waits for the turn of a fence that hangs.

use std::sync::atomic::{AtomicU8, Ordering};

/// Who waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waits {
    /// Nobody.
    #[default]
    Nobody,
    /// A fence that hangs as well, and has had its turn before.
    Another,
    /// An order that has not had a turn.
    First,
}

/// Told by one thread, heard by the fence's.
#[derive(Debug, Default)]
pub struct Wanted(AtomicU8);

impl Wanted {
    /// It is so from now on.
    pub fn tell(&self, waits: Waits) {
        let number = match waits {
            Waits::Nobody => 0,
            Waits::Another => 1,
            Waits::First => 2,
        };
        self.0.store(number, Ordering::Release);
    }

    /// Who waits.
    #[must_use]
    pub fn waits(&self) -> Waits {
        match self.0.load(Ordering::Acquire) {
            0 => Waits::Nobody,
            1 => Waits::Another,
            _ => Waits::First,
        }
    }
}
