//! mountinfo, cgroups and disks' statistics.

use super::Values;
use crate::host::procfs::{Mount, io_count, pod_uid, unescape};

/// One file.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert_eq!(unescape(&escape(&text)), text);
    assert!(unescape(&text).len() <= text.len());
    let values = &mut Values(data);
    let made = Mount {
        dev: values.dev(),
        point: format!("/{}#\t{text}", values.word(20)),
        kind: values.word(10),
        source: format!("/dev/{}", values.word(20)),
    };
    assert_eq!(Mount::decode(&printed(&made)), Some(made));
    for mount in text.lines().filter_map(Mount::decode) {
        let again = printed(&mount);
        assert_eq!(Mount::decode(&again).as_ref(), Some(&mount), "{again}");
    }
    pod(&text);
    stat(&text);
}

/// As the kernel's `mangle` does.
fn escape(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", u32::from(c)),
        other => other.to_string(),
    });
    escaped.collect()
}

/// As the kernel's `show_mountinfo` does, with a field that only some mounts have.
fn printed(mount: &Mount) -> String {
    let [point, kind, source] = [&mount.point, &mount.kind, &mount.source].map(|f| escape(f));
    let number = mount.dev;
    format!("36 35 {number} /root {point} rw,noatime master:1 - {kind} {source} rw,errors=continue")
}

fn pod(text: &str) {
    let Some(uid) = pod_uid(text) else {
        return;
    };
    assert!(matches!(uid.len(), 32 | 36));
    assert!(uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-'));
    assert!(text.replace('_', "-").contains(&uid));
    for line in [
        format!("0::/kubepods/besteffort/pod{uid}/c"),
        format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-c.scope",
            uid.replace('-', "_")
        ),
    ] {
        assert_eq!(pod_uid(&line).as_ref(), Some(&uid), "{line}");
    }
}

fn stat(text: &str) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let numbers: Vec<u64> = words.iter().filter_map(|w| w.parse().ok()).collect();
    let readable = numbers.len() == words.len() && numbers.len() > 8;
    let count = io_count(text);
    assert_eq!(count.is_some(), readable);
    if let Some(count) = count {
        assert_eq!(count.in_flight, numbers[8]);
        let sum = |upto: usize| {
            let ended = [0, 4, 11, 15].iter().filter(|at| **at < upto);
            ended
                .filter_map(|at| numbers.get(*at))
                .fold(0, |a: u64, b| a.wrapping_add(*b))
        };
        assert_eq!(count.completed, sum(usize::MAX));
        // A kernel that does not know of discards and flushes.
        let old = io_count(&words[..9].join(" ")).expect("nine numbers");
        assert_eq!(old.completed, sum(9));
    }
}
