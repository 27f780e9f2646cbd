//! The limit for what a policy has done beyond the fence: evicting workloads, and declaring the fenced host dead (S9).
//!
//! When an array is gone for all, there is nowhere to go: moving everything would only add to it. The fence itself is never limited: it costs what
//! is lost anyway, and a node that is held back is reset. No agent asks here.

use std::fmt;

/// How many of a policy's nodes may stand fenced at the same time before the rest waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many.
    Nodes(usize),
    /// So many of a hundred, rounded down.
    Percent(usize),
}

/// The limit makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither a number of nodes nor a percentage from 0% to 100%")]
pub struct Nonsense(String);

impl Limit {
    /// Reads a number, or a percentage such as `50%`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, Nonsense> {
        let nonsense = || Nonsense(text.to_owned());
        let (digits, percent) = match text.strip_suffix('%') {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(nonsense());
        }
        match (digits.parse().map_err(|_| nonsense())?, percent) {
            (n, false) => Ok(Self::Nodes(n)),
            (n @ 0..=100, true) => Ok(Self::Percent(n)),
            (_, true) => Err(nonsense()),
        }
    }

    /// How many of so many nodes.
    #[must_use]
    pub const fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(n) => n,
            Self::Percent(n) => nodes.saturating_mul(n) / 100,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(n) => write!(f, "{n}"),
            Self::Percent(n) => write!(f, "{n}%"),
        }
    }
}

/// How things stand with a policy's nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Nodes with a volume group that the policy means.
    pub nodes: usize,
    /// Of these, nodes where one stands fenced, or has lost all its paths and is about to be.
    pub lost: usize,
}

/// The limit is reached: what is gated waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// How things stand.
    pub count: Count,
    /// How many may be lost.
    pub allowed: usize,
    /// As the policy says it.
    pub limit: Limit,
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count: Count { nodes, lost },
            allowed,
            limit,
        } = self;
        write!(
            f,
            "{lost} of {nodes} nodes stand fenced or have lost all their paths, and maxFencedNodes {limit} allows {allowed}"
        )
    }
}

/// Whether what is gated has to wait.
#[must_use]
pub const fn reached(limit: Limit, count: Count) -> Option<Reached> {
    let allowed = limit.of(count.nodes);
    if count.lost <= allowed {
        return None;
    }
    Some(Reached {
        count,
        allowed,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_a_percentage_is_understood_and_nothing_else() {
        for (text, limit) in [
            ("0", Some(Limit::Nodes(0))),
            ("3", Some(Limit::Nodes(3))),
            ("0%", Some(Limit::Percent(0))),
            ("50%", Some(Limit::Percent(50))),
            ("100%", Some(Limit::Percent(100))),
            ("101%", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("50 %", None),
            ("%", None),
            ("", None),
            ("half", None),
            ("99999999999999999999999", None),
        ] {
            let read = Limit::parse(text);
            assert_eq!(read.clone().ok(), limit, "{text}");
            match read {
                Ok(read) => assert_eq!(read.to_string(), text),
                Err(error) => assert!(error.to_string().contains(text), "{error}"),
            }
        }
    }

    #[test]
    fn what_is_gated_waits_when_more_nodes_are_lost_than_the_limit_allows() {
        for (limit, nodes, lost, waits) in [
            ("50%", 10, 5, false),
            ("50%", 10, 6, true),
            // Rounded down: of one node or three, the half is none or one.
            ("50%", 1, 1, true),
            ("50%", 2, 1, false),
            ("50%", 3, 1, false),
            ("50%", 3, 2, true),
            ("1", 1, 1, false),
            ("1", 1000, 2, true),
            ("0", 5, 1, true),
            ("0%", 5, 1, true),
            ("100%", 5, 5, false),
            // A number that nobody reaches.
            ("1000", 5, 5, false),
            ("0", 5, 0, false),
        ] {
            let count = Count { nodes, lost };
            let reached = reached(Limit::parse(limit).unwrap(), count);
            assert_eq!(reached.is_some(), waits, "{limit} {nodes} {lost}");
        }
    }

    #[test]
    fn the_numbers_are_told() {
        let count = Count { nodes: 7, lost: 5 };
        let told = reached(Limit::Percent(50), count).unwrap().to_string();
        for part in ["5 of 7 nodes", "50%", "allows 3"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
