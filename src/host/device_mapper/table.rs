//! What a table says of the devices that it uses, where it says all: pure.
//!
//! `DM_TABLE_DEPS` is another ioctl for each of thousands of devices, and speaks of another moment than the table. The targets below open exactly
//! the devices that they print (Linux `drivers/md/dm-linear.c`, `dm-stripe.c`), by number, since that is how the kernel names them
//! (`format_dev_t`). Of any other target, and of anything that does not read as these print it, nothing is concluded: the kernel is asked.

use smallvec::smallvec;

use crate::fence::{DevNo, DevNos, Target};

/// The devices that a table uses, each once, in the order in which `DM_TABLE_DEPS` gives them; None where the table does not say.
#[must_use]
pub fn devices_used(targets: &[Target]) -> Option<DevNos> {
    let mut used = DevNos::new();
    for target in targets {
        for dev in of_target(target)? {
            if !used.contains(&dev) {
                used.push(dev);
            }
        }
    }
    // The kernel puts what it opens in front of what it has.
    used.reverse();
    Some(used)
}

fn of_target(target: &Target) -> Option<DevNos> {
    let words: Vec<&str> = target.params.split(' ').collect();
    match (target.kind.as_str(), words.as_slice()) {
        ("linear", [dev, offset]) => {
            number::<u64>(offset)?;
            Some(smallvec![device(dev)?])
        }
        ("striped", [stripes, chunk, places @ ..]) => {
            number::<u64>(chunk)?;
            let (places, []) = places.as_chunks::<2>() else {
                return None;
            };
            if number::<usize>(stripes)? != places.len() || places.is_empty() {
                return None;
            }
            places
                .iter()
                .map(|[dev, offset]| number::<u64>(offset).and(device(dev)))
                .collect()
        }
        // They lead nowhere. Asking would tell nothing, and a fence that is read back consists of them.
        ("error" | "zero", _) => Some(DevNos::new()),
        _ => None,
    }
}

/// `MAJOR:MINOR`.
fn device(word: &str) -> Option<DevNo> {
    let (major, minor) = word.split_once(':')?;
    Some(DevNo {
        major: number(major)?,
        minor: number(minor)?,
    })
}

/// Digits and nothing else: the standard library would take a sign too.
fn number<T: std::str::FromStr>(word: &str) -> Option<T> {
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| word.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: &str, params: &str) -> Target {
        Target {
            start: 0,
            length: 8,
            kind: kind.into(),
            params: params.into(),
        }
    }

    fn used(table: &[(&str, &str)]) -> Option<Vec<String>> {
        let targets: Vec<Target> = table.iter().map(|(k, p)| target(k, p)).collect();
        let used = devices_used(&targets)?;
        Some(used.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_linear_table_says_what_it_uses() {
        assert_eq!(
            used(&[("linear", "253:1048575 0")]).unwrap(),
            ["253:1048575"]
        );
        let far = format!("8:0 {}", u64::MAX);
        assert_eq!(used(&[("linear", &far)]).unwrap(), ["8:0"]);
    }

    #[test]
    fn a_striped_table_says_what_it_uses() {
        let three = "3 128 253:1 2048 253:2 2048 8:16 0";
        assert_eq!(
            used(&[("striped", three)]).unwrap(),
            ["8:16", "253:2", "253:1"]
        );
        assert_eq!(used(&[("striped", "1 8 8:0 0")]).unwrap(), ["8:0"]);
    }

    #[test]
    fn each_device_is_named_once_and_the_latest_first() {
        let segments = [
            ("linear", "8:0 0"),
            ("error", ""),
            ("striped", "2 128 8:16 0 8:0 4096"),
            ("zero", ""),
            ("linear", "8:32 0"),
        ];
        assert_eq!(used(&segments).unwrap(), ["8:32", "8:16", "8:0"]);
    }

    #[test]
    fn what_leads_nowhere_uses_nothing() {
        assert!(used(&[]).unwrap().is_empty());
        assert!(used(&[("error", ""), ("zero", "")]).unwrap().is_empty());
    }

    #[test]
    fn one_other_target_has_the_kernel_asked() {
        for kind in [
            "thin-pool",
            "crypt",
            "multipath",
            "snapshot",
            "linear2",
            "Linear",
            "",
        ] {
            assert_eq!(used(&[("linear", "8:0 0"), (kind, "8:16 0")]), None);
        }
    }

    #[test]
    fn what_does_not_read_exactly_has_the_kernel_asked() {
        for params in [
            "",
            "8:0",
            "8:0 ",
            " 8:0 0",
            "8:0  0",
            "8:0 0 1",
            "8 0",
            "8:0:1 0",
            "8:-1 0",
            "+8:0 0",
            "8:0 +1",
            ":0 0",
            "8: 0",
            "sda 0",
            "/dev/sda 0",
            "4294967296:0 0",
            "8:0 18446744073709551616",
            "8:0\t0",
            "٨:0 0",
        ] {
            assert_eq!(used(&[("linear", params)]), None, "{params:?}");
        }
        for params in [
            "",
            "0 128",
            "1 128",
            "1 128 8:0",
            "2 128 8:0 0",
            "1 128 8:0 0 8:16 0",
            "1 128 8:0 0 8:16",
            "-1 128 8:0 0",
            "1 x 8:0 0",
            "1 128 sda 0",
            "1 128 8:0 x",
        ] {
            assert_eq!(used(&[("striped", params)]), None, "{params:?}");
        }
    }
}
