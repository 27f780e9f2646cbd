//! How the parts of the simulated node behave, well and badly.

use std::time::Duration;

/// I/O of a device that was issued and has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InFlight {
    /// None, or it ends at once.
    #[default]
    None,
    /// Until that time.
    Until(Duration),
    /// It never ends.
    Forever,
}

/// How a daemon behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Daemon {
    /// It answers.
    #[default]
    Alive,
    /// Its socket is gone.
    Dead,
    /// It takes requests and never answers.
    Hangs,
}

/// How a drop goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dropping {
    /// Two seconds, the watchdog's client after one.
    #[default]
    Works,
    /// The lockspace goes, the answer never comes.
    NeverAnswers,
    /// It is answered at once, and nothing happens.
    Ignored,
    /// It is answered with an error, and nothing happens.
    Refused,
}

/// How a start of a lockspace goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Starting {
    /// Twenty-one seconds.
    #[default]
    Works,
    /// LVM says that it failed, and nothing happens.
    Fails,
    /// LVM says that it failed, but it did not.
    WorksAndFails,
    /// LVM hangs until it is killed, and nothing happens.
    Hangs,
}

/// How a declaration of death goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declaring {
    /// At once.
    #[default]
    Works,
    /// The leases' format has no place for it.
    OldLeases,
    /// It is never answered.
    Hangs,
    /// It is answered with success, and nothing happens.
    Lies,
}
