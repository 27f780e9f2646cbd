//! What must hold of any bytes, one module a target. A check panics where it does not.

pub mod device_mapper;
pub mod hook;
pub mod journal;
pub mod lvm_conf;
pub mod lvmlockd;
pub mod multipath;
pub mod procfs;
pub mod sanlock;
pub mod uevent;
pub mod wdmd;

/// What stands for bytes that are no text. A name with it in it is shown, but not the name any more.
const MANGLED: char = '\u{fffd}';

/// Places to cut `len` bytes off at: the last byte, and some that the input itself chooses, so that an input always fails in the same way.
fn cuts(data: &[u8], len: usize) -> impl Iterator<Item = usize> {
    /// Of FNV-1a.
    const PRIME: u64 = 0x0100_0000_01b3;
    let seed = data.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    });
    let chosen = (0..6_u64).map(move |i| {
        let hash = (seed ^ i)
            .wrapping_mul(PRIME)
            .rotate_left(31)
            .wrapping_mul(PRIME);
        usize::try_from(hash >> 16).unwrap_or_default() % len.max(1)
    });
    chosen.chain(len.checked_sub(1)).filter(move |at| *at < len)
}

/// Values made of an input, for what has to be read as it was written: a decoder that refuses everything breaks no other rule.
struct Values<'a>(&'a [u8]);

impl Values<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// At most `most`.
    fn few(&mut self, most: usize) -> usize {
        usize::from(self.byte()) % (most + 1)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Small ones and large ones.
    fn number(&mut self) -> u64 {
        let bytes = self.few(8);
        (0..bytes).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).unwrap_or_default()
    }

    /// Of what names consist of: at least one character.
    fn word(&mut self, longest: usize) -> String {
        const LETTERS: &[u8] = b"abcxyzABC019+_.:-";
        let length = 1 + self.few(longest - 1);
        let letters = (0..length).map(|_| char::from(LETTERS[self.few(LETTERS.len() - 1)]));
        letters.collect()
    }

    fn dev(&mut self) -> crate::fence::DevNo {
        crate::fence::DevNo {
            major: 1 + self.small() % 0xfff,
            minor: self.small() % 0x10_0000,
        }
    }
}
