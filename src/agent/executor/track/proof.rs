//! What a release wants to see.

use std::collections::BTreeSet;
use std::time::Duration;

use super::closed;
use crate::agent::journal::GroupRecord;
use crate::fence::remembered::ReadMark;
use crate::fence::{DmDevice, Monotonic};

/// That every device was read back on the error target (S1). Only a listing can make one, and nothing is released without.
#[derive(Debug)]
pub(in crate::agent::executor) struct Proof {
    /// When the listing was begun: what has come since is not in it.
    as_of: Monotonic,
    /// Whether it was tried to have it anew.
    tried: bool,
}

impl Proof {
    /// By a listing that was begun then.
    pub(super) const fn of(begun: Monotonic) -> Self {
        Self {
            as_of: begun,
            tried: false,
        }
    }

    /// How old it is.
    pub(in crate::agent::executor) fn age(&self, now: Monotonic) -> Duration {
        now.since(self.as_of)
    }

    /// Whether it is the first time that it is tried to have it anew.
    pub(in crate::agent::executor) fn first_look(&mut self) -> bool {
        !std::mem::replace(&mut self.tried, true)
    }

    /// The same proof, had once more from a listing that was begun then; or the [`open_groups`].
    pub(in crate::agent::executor) fn again(
        &self,
        groups: &[GroupRecord],
        left_out: &BTreeSet<usize>,
        list: &[DmDevice],
        mark: ReadMark<'_>,
        begun: Monotonic,
    ) -> Result<Self, BTreeSet<usize>> {
        let open = open_groups(groups, left_out, list, mark);
        if open.is_empty() {
            Ok(Self {
                as_of: begun.max(self.as_of),
                tried: self.tried,
            })
        } else {
            Err(open)
        }
    }
}

/// The places of the volume groups of which something is open by that list. But for those that are `left_out`.
pub(in crate::agent::executor) fn open_groups(
    groups: &[GroupRecord],
    left_out: &BTreeSet<usize>,
    list: &[DmDevice],
    mark: ReadMark<'_>,
) -> BTreeSet<usize> {
    let all = groups.iter().enumerate();
    all.filter(|(at, g)| !left_out.contains(at) && !closed(g, list, mark))
        .map(|(at, _)| at)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::DiskMark;

    /// A release that has it anew time and again gets nothing done by that.
    #[test]
    fn only_the_first_look_for_a_newer_one_counts_as_one() {
        let at = |seconds| Monotonic::default() + Duration::from_secs(seconds);
        let mut proof = Proof::of(at(1));
        assert!(proof.first_look() && !proof.first_look());
        let again = proof.again(&[], &BTreeSet::new(), &[], &|_| DiskMark::default(), at(5));
        let mut again = again.expect("nothing is open");
        assert_eq!(again.age(at(6)), Duration::from_secs(1));
        assert!(!again.first_look());
    }
}
