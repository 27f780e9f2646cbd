//! What the kernel prints in procfs and sysfs, taken apart. Pure, no I/O.

use crate::fence::{DevNo, IoCount};

/// A line of mountinfo (proc_pid_mountinfo(5)), as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system.
    pub dev: DevNo,
    /// Where it is mounted.
    pub point: String,
    /// Type of the file system.
    pub kind: String,
    /// What was mounted: a device's path, for file systems on one.
    pub source: String,
}

impl Mount {
    /// Reads a line; None when it is none of mountinfo's.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let number = fields.nth(2)?;
        let point = fields.nth(1)?;
        let mut fields = file_system.split(' ');
        let kind = fields.next()?;
        let source = fields.next().unwrap_or_default();
        let (major, minor) = number.split_once(':')?;
        Some(Self {
            dev: DevNo {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            },
            point: unescape(point),
            kind: unescape(kind),
            source: unescape(source),
        })
    }
}

/// mountinfo writes a space, tab, line feed, backslash or number sign as a backslash and three octal digits (Linux `fs/proc_namespace.c`).
#[must_use]
pub fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        text.push_str(before);
        let code = escape
            .get(1..4)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code.filter(u8::is_ascii) {
            text.push(char::from(code));
            rest = escape.get(4..).unwrap_or_default();
        } else {
            text.push('\\');
            rest = escape.get(1..).unwrap_or_default();
        }
    }
    text + rest
}

/// The pod's UID in a process's cgroup: `.../pod0f1e...` with the cgroupfs driver, `...-pod0f1e_....slice` with systemd's, which writes `_` for `-`.
#[must_use]
pub fn pod_uid(cgroup: &str) -> Option<String> {
    let mut parts = cgroup.split(['/', '\n']);
    parts.find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = match part.rsplit_once("-pod") {
            Some((_, uid)) => uid,
            None => part.strip_prefix("pod")?,
        };
        let uid = uid.replace('_', "-");
        is_pod_uid(&uid).then_some(uid)
    })
}

/// Whose mount it is, by where the kubelet makes it: the pod of `.../pods/UID/volumes/...`. None: it does not say so.
#[must_use]
pub fn pod_uid_of_mount(point: &str) -> Option<String> {
    let (_, rest) = point.rsplit_once("/pods/")?;
    let (uid, rest) = rest.split_once('/')?;
    is_pod_uid(uid)
        .then(|| uid.to_owned())
        .filter(|_| rest.starts_with("volume"))
}

/// Whether a mount is the kubelet's own: of a volume that is there for whatever pods use it, as everybody sees it who sees the host's mounts.
#[must_use]
pub fn is_kubelets_mount(point: &str) -> bool {
    point.contains("/plugins/kubernetes.io/")
}

fn is_pod_uid(uid: &str) -> bool {
    let hex = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    // Those of static pods are hashes, without dashes.
    hex && matches!(uid.len(), 32 | 36)
}

/// Reads a disk's `stat` (Linux `Documentation/block/stat.rst`): of reads, writes, discards and flushes how many have ended, and how many
/// commands are under way. Old kernels know neither discards nor flushes.
#[must_use]
pub fn io_count(stat: &str) -> Option<IoCount> {
    const ENDED: [usize; 4] = [0, 4, 11, 15];
    const IN_FLIGHT: usize = 8;
    let fields: Vec<u64> = stat
        .split_whitespace()
        .map(|f| f.parse().ok())
        .collect::<Option<_>>()?;
    Some(IoCount {
        in_flight: *fields.get(IN_FLIGHT)?,
        // Counters wrap, and so does their sum.
        completed: ENDED
            .iter()
            .filter_map(|at| fields.get(*at))
            .fold(0, |sum, n| sum.wrapping_add(*n)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_counted_on_old_kernels_too_and_nonsense_is_not() {
        let count = |in_flight, completed| {
            Some(IoCount {
                in_flight,
                completed,
            })
        };
        assert_eq!(io_count("1 0 0 0 2 0 0 0 3 0 0\n"), count(3, 3));
        assert_eq!(io_count("1 0 0 0 2 0 0 0 3 0 0 4 0 0 0"), count(3, 7));
        for bad in ["", "1 0 0 0 2 0 0 0", "1 0 0 0 2 0 0 0 x"] {
            assert_eq!(io_count(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn counters_that_wrap_are_counted_on() {
        let largest = u64::MAX;
        let stat = format!("{largest} 0 0 0 2 0 0 0 3 0 0");
        assert_eq!(io_count(&stat).map(|c| c.completed), Some(1));
    }

    #[test]
    fn what_the_kernel_escapes_is_told_apart_from_what_is_written_so() {
        for (field, text) in [
            (r"/a\040b\011c\012d\134e\043f", "/a b\tc\nd\\e#f"),
            // A folder whose name reads like an escape.
            (r"/a\134040b", r"/a\040b"),
            (r"\", r"\"),
            (r"\04", r"\04"),
            (r"\048", r"\048"),
            (r"\\040", r"\ "),
            (r"\377\+40", r"\377\+40"),
        ] {
            assert_eq!(unescape(field), text, "{field}");
        }
        let line = r"36 35 253:3 / /mnt\0431 rw - fuse.a\040b /dev/mapper/a\043b rw";
        let mount = Mount::decode(line).expect("a mount");
        assert_eq!(
            [mount.point, mount.kind, mount.source],
            ["/mnt#1", "fuse.a b", "/dev/mapper/a#b"]
        );
    }
}
