//! sanlock's answer to `STATUS`: a header and records.

use super::{MANGLED, Values, cuts};
use crate::fence::{LockspaceState, Monotonic};
use crate::host::sanlock::{decode_status, encode_status};
use crate::host::{SanlockLockspace, SanlockStatus};

/// Sizes of `struct sm_header`, `struct sanlk_state` and `struct sanlk_lockspace`.
const HEADER: usize = 32;
const STATE: usize = 80;
const LOCKSPACE: usize = 1104;

/// One answer.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    let made = made(&mut Values(data));
    assert_eq!(decode_status(&printed(&made)).as_ref(), Ok(&made));
    let Ok(status) = decode_status(data) else {
        return;
    };
    let (ends, lockspaces) = records(data).expect("records from begin to end");
    assert_eq!(status.lockspaces.len(), lockspaces);
    let more = [data, &[0]].concat();
    assert!(decode_status(&more).is_err(), "a record that is cut short");
    for cut in cuts(data, data.len()).chain(ends.iter().copied()) {
        let Ok(short) = decode_status(&data[..cut]) else {
            continue;
        };
        // Where one record ends and no other place. What is left out cannot be seen there, but what is told is so.
        assert!(ends.contains(&cut), "{cut} of {}", data.len());
        assert!(status.lockspaces.starts_with(&short.lockspaces));
    }
    let fits = |l: &SanlockLockspace| l.name.len() <= 48 && !l.name.contains(MANGLED);
    if status.host_name.len() < 3000 && status.lockspaces.iter().all(fits) {
        assert_eq!(decode_status(&printed(&status)).as_ref(), Ok(&status));
    }
}

/// What a daemon may say.
fn made(values: &mut Values<'_>) -> SanlockStatus {
    SanlockStatus {
        version: values.flag().then(|| values.small()),
        host_name: values.word(40),
        fire_timeout: values.flag().then(|| values.small()),
        lockspaces: (0..values.few(3)).map(|_| lockspace(values)).collect(),
    }
}

fn lockspace(values: &mut Values<'_>) -> SanlockLockspace {
    const STATES: [LockspaceState; 5] = [
        LockspaceState::Adding,
        LockspaceState::Healthy,
        LockspaceState::RenewalFailing,
        LockspaceState::Expired,
        LockspaceState::Removing,
    ];
    SanlockLockspace {
        name: values.word(48),
        host_id: values.number(),
        generation: Some(values.number()).filter(|g| *g != 0),
        io_timeout: values.small(),
        last_renewal: Some(values.number())
            .filter(|t| *t != 0)
            .map(Monotonic::from_secs),
        last_result: 1,
        state: STATES[values.few(4)],
    }
}

/// Walks over the records: where each ends, and how many are lockspaces. None when the last is cut short.
fn records(data: &[u8]) -> Option<(Vec<usize>, usize)> {
    let word = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let mut at = HEADER;
    let (mut ends, mut lockspaces) = (Vec::new(), 0);
    while at < data.len() {
        let text = usize::try_from(word(at + 72)?).ok()?;
        let lockspace = word(at)? == 3;
        at += STATE + text + if lockspace { LOCKSPACE } else { 0 };
        lockspaces += usize::from(lockspace);
        ends.push(at);
    }
    (at == data.len()).then_some((ends, lockspaces))
}

/// As sanlock's `cmd.c` writes it.
fn printed(status: &SanlockStatus) -> Vec<u8> {
    let mut out = encode_status().to_vec();
    let mut text = String::from("use_watchdog=1");
    let version = status.version.map(|v| format!("version_hex={v:08x}"));
    let fire = status
        .fire_timeout
        .map(|t| format!("watchdog_fire_timeout={t}"));
    let name = Some(format!("our_host_name={}", status.host_name));
    for word in [name, fire, version].into_iter().flatten() {
        text = format!("{text} {word}");
    }
    out.extend(state(1, "", 0, &text));
    for l in &status.lockspaces {
        let (list, dead, failing) = match l.state {
            LockspaceState::Adding => ("add", 0, 0),
            LockspaceState::Removing => ("rem", 0, 0),
            LockspaceState::Expired => ("spaces", 1, 0),
            LockspaceState::RenewalFailing => ("spaces", 0, 1),
            LockspaceState::Healthy => ("spaces", 0, 0),
        };
        let text = format!(
            "list={list} io_timeout={} host_generation={} renew_fail={failing} space_dead={dead} killing_pids=0 renewal_last_result={} renewal_last_success={}",
            l.io_timeout,
            l.generation.unwrap_or_default(),
            l.last_result,
            l.last_renewal.unwrap_or_default().0.as_secs(),
        );
        out.extend(state(3, &l.name, l.host_id, &text));
        out.resize(out.len() + LOCKSPACE, 0xaa);
    }
    out
}

fn state(kind: u32, name: &str, host_id: u64, text: &str) -> Vec<u8> {
    let mut out = vec![0; STATE];
    out[..4].copy_from_slice(&kind.to_ne_bytes());
    out[16..24].copy_from_slice(&host_id.to_ne_bytes());
    out[24..24 + name.len()].copy_from_slice(name.as_bytes());
    let length = u32::try_from(text.len() + 1).expect("small");
    out[72..76].copy_from_slice(&length.to_ne_bytes());
    out.extend(text.bytes());
    out.push(0);
    out
}
