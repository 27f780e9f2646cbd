//! Reading many devices: the kernel is asked once for each, and where there are many, by more than one thread at a time. A fence waits for
//! nothing but this once its tables are swapped.

use std::io;
use std::num::NonZero;
use std::thread::{self, Builder};

use crate::fence::{DevNo, DmDevice};
use crate::host::{Error, Result};

/// So many are read before they are handed on: all of ten thousand at a time would take their memory twice.
const BATCH: usize = 1024;
/// Of fewer than that for each, another thread costs more than it saves.
const FEW: usize = 64;
/// More of them wait for the kernel's lock on its devices more than they read.
const MOST: usize = 4;
/// Bytes; nothing here needs more.
const STACK: usize = 256 * 1024;

/// How many threads may read at a time on this machine. To be looked up before it is needed: it takes reading files.
pub(super) fn readers() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MOST)
}

/// Has each device described and hands it on, in the order of `numbers`; those that are gone are left out. `describe` may use the buffer as
/// it likes.
pub(super) fn each(
    numbers: &[DevNo],
    readers: usize,
    describe: impl Fn(&mut Vec<u8>, DevNo) -> Result<DmDevice> + Sync,
    take: &mut dyn FnMut(DmDevice),
) -> Result<()> {
    let part = |numbers: &[DevNo]| -> Result<Vec<DmDevice>> {
        let mut buffer = Vec::new();
        let mut devices = Vec::with_capacity(numbers.len());
        for dev in numbers {
            match describe(&mut buffer, *dev) {
                Ok(device) => devices.push(device),
                Err(Error::NoSuchDevice { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(devices)
    };
    for batch in numbers.chunks(BATCH) {
        let readers = (batch.len() / FEW).clamp(1, readers.max(1));
        let devices = side_by_side(batch, batch.len().div_ceil(readers), &part)?;
        devices.into_iter().for_each(&mut *take);
    }
    Ok(())
}

/// Reads parts of that size at the same time, the first of them itself.
fn side_by_side(
    numbers: &[DevNo],
    size: usize,
    part: &(impl Fn(&[DevNo]) -> Result<Vec<DmDevice>> + Sync),
) -> Result<Vec<DmDevice>> {
    let mut parts = numbers.chunks(size.max(1));
    let mine = parts.next().unwrap_or_default();
    thread::scope(|scope| {
        let start = |numbers| {
            let reader = Builder::new().name("listing".into()).stack_size(STACK);
            (numbers, reader.spawn_scoped(scope, move || part(numbers)))
        };
        let others: Vec<_> = parts.map(start).collect();
        let mut all = part(mine)?;
        for (numbers, reader) in others {
            all.extend(match reader {
                Ok(reader) => reader.join().unwrap_or_else(|_| Err(died()))?,
                // No thread to be had: it takes longer, and nothing else.
                Err(_) => part(numbers)?,
            });
        }
        Ok(all)
    })
}

fn died() -> Error {
    Error::Unavailable {
        what: "reading the devices".into(),
        source: io::Error::other("a thread of it died"),
        hint: "This is a bug; the log says where",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::*;

    fn numbers(count: u32) -> Vec<DevNo> {
        let number = |minor| DevNo { major: 253, minor };
        (0..count).map(number).collect()
    }

    fn device(dev: DevNo) -> DmDevice {
        DmDevice {
            dev,
            ..DmDevice::default()
        }
    }

    #[test]
    fn many_are_read_by_more_than_one_and_handed_on_in_their_order() {
        for (count, readers, threads) in [
            (0, 4, 0),
            (1, 4, 1),
            (127, 4, 1),
            (128, 4, 2),
            (5000, 3, 3),
            (5000, 0, 1),
        ] {
            let at_once = Mutex::new(BTreeSet::new());
            let mut read = Vec::new();
            let describe = |buffer: &mut Vec<u8>, dev: DevNo| {
                buffer.push(0);
                let batch = dev.minor as usize / BATCH;
                at_once
                    .lock()
                    .unwrap()
                    .insert((batch, format!("{:?}", thread::current().id())));
                Ok(device(dev))
            };
            each(&numbers(count), readers, describe, &mut |d| {
                read.push(d.dev);
            })
            .unwrap();
            assert_eq!(read, numbers(count));
            let of_first = at_once
                .lock()
                .unwrap()
                .iter()
                .filter(|(batch, _)| *batch == 0)
                .count();
            assert_eq!(of_first, threads, "{count} by {readers}");
        }
    }

    #[test]
    fn what_is_gone_is_left_out_and_an_error_of_any_part_is_the_whole_ones() {
        let gone = |_: &mut Vec<u8>, dev: DevNo| match dev.minor {
            3 | 250 => Err(Error::NoSuchDevice {
                what: dev.to_string(),
            }),
            _ => Ok(device(dev)),
        };
        let mut read = Vec::new();
        each(&numbers(256), 4, gone, &mut |d| read.push(d.dev.minor)).unwrap();
        assert_eq!(read.len(), 254);
        assert!(!read.contains(&3) && !read.contains(&250));
        for at in [0, 255] {
            let fails = |_: &mut Vec<u8>, dev: DevNo| match dev.minor {
                minor if minor == at => Err(Error::Busy {
                    what: dev.to_string(),
                }),
                _ => Ok(device(dev)),
            };
            let read = each(&numbers(256), 4, fails, &mut |_| ());
            assert!(matches!(read, Err(Error::Busy { .. })), "{read:?}");
        }
    }
}
