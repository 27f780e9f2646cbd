//! Answers of device mapper's ioctls: a header, then a payload whose shape depends on the command.

use super::{MANGLED, Values, cuts};
use crate::fence::{DevNo, Target};
use crate::host::device_mapper::codec::{
    HEADER, NAME_LEN, Request, TARGET_SPEC, UUID_LEN, decode_deps, decode_dev, decode_header,
    decode_names, decode_targets, encode, encode_dev, encode_message, encode_target, offset,
};

/// What a byte beyond the answer may be: nothing of it may be read.
const BEYOND: [u8; 64] = [0x5a; 64];

/// One answer.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    made(&mut Values(data));
    let count = header(data);
    // Whatever the header says: a size that was changed by a byte must not keep the records from being tried.
    let rest = data.get(HEADER..).unwrap_or_default();
    names(rest);
    targets(rest, count);
    deps(rest);
    requests(data);
}

/// What a kernel may answer is read as it was meant: with event numbers behind the names, and of an old kernel without, to the last byte.
fn made(values: &mut Values<'_>) {
    let names: Vec<(DevNo, String)> = (0..values.few(4))
        .map(|_| (values.dev(), values.word(127)))
        .collect();
    let payload = names_payload(&names);
    assert_eq!(decode_names(&payload).as_ref(), Ok(&names));
    let behind = payload.iter().rev().take_while(|b| **b == 0).count();
    let last = payload.len() - behind.saturating_sub(1);
    assert_eq!(decode_names(&payload[..last]).as_ref(), Ok(&names));
    let target = |values: &mut Values<'_>| Target {
        start: values.number(),
        length: values.number(),
        kind: values.word(16).into(),
        params: values.word(60).into(),
    };
    let targets: Vec<Target> = (0..values.few(4)).map(|_| target(values)).collect();
    let count = u32::try_from(targets.len()).unwrap_or_default();
    let payload = targets_payload(&targets);
    assert_eq!(decode_targets(&payload, count).as_deref(), Ok(&targets[..]));
    let devices: Vec<DevNo> = (0..values.few(4)).map(|_| values.dev()).collect();
    let count = u64::try_from(devices.len()).unwrap_or_default();
    let numbers = devices.iter().map(|d| encode_dev(*d));
    let payload: Vec<u8> = [count]
        .into_iter()
        .chain(numbers)
        .flat_map(u64::to_ne_bytes)
        .collect();
    assert_eq!(decode_deps(&payload).as_deref(), Ok(&devices[..]));
}

/// Gives the number of targets to look for.
fn header(data: &[u8]) -> u32 {
    let terminated = |at: usize, len: usize| {
        let field = data.get(at..(at + len).min(data.len()));
        field.is_some_and(|f| f.contains(&0))
    };
    let readable = data.len() >= offset::NAME
        && terminated(offset::NAME, NAME_LEN)
        && terminated(offset::UUID, UUID_LEN);
    let decoded = decode_header(data);
    assert_eq!(decoded.is_ok(), readable, "{decoded:?}");
    let Ok(header) = decoded else { return 1 };
    assert!(!header.name.contains('\0') && !header.uuid.contains('\0'));

    // What was read and is asked for again is the same.
    let request = Request {
        dev: Some(header.dev),
        uuid: Some(&header.uuid),
        flags: header.flags,
        targets: header.target_count,
        event_nr: 0,
    };
    let mut buffer = vec![0xff; data.len()];
    if encode(&mut buffer, request, &[]).is_ok() {
        let again = decode_header(&buffer).expect("a header of our own");
        assert_eq!((again.dev, &again.uuid), (header.dev, &header.uuid));
        assert_eq!(
            (again.flags, again.target_count),
            (header.flags, header.target_count)
        );
        assert_eq!(again.data_size, data.len());
    } else {
        assert!(data.len() < HEADER || header.uuid.contains(MANGLED));
    }

    let beyond = [data, &BEYOND].concat();
    match header.payload(data) {
        Ok(payload) => {
            let claimed = header.data_size.saturating_sub(header.data_start);
            assert_eq!(payload.len(), claimed);
            if !payload.is_empty() {
                assert!(header.data_start >= HEADER && header.data_size <= data.len());
                assert_eq!(payload, &data[header.data_start..header.data_size]);
            }
            // A header of its own, of a longer buffer: the same payload.
            let longer = decode_header(&beyond).expect("a header with more behind it");
            assert_eq!(longer.payload(&beyond), Ok(payload));
            names(payload);
            targets(payload, header.target_count);
            deps(payload);
        }
        Err(_) => assert!(header.data_size > data.len() || header.data_start < HEADER),
    }
    header.target_count
}

fn names(payload: &[u8]) {
    let Ok(names) = decode_names(payload) else {
        return;
    };
    // Number, link, and at least the end of a name.
    assert!(names.len() <= payload.len() / 13);
    let whole = names.iter().all(|(_, name)| !name.contains(MANGLED));
    if whole && names.first().is_some_and(|(dev, _)| encode_dev(*dev) != 0) {
        assert_eq!(decode_names(&names_payload(&names)).as_ref(), Ok(&names));
    }
    for cut in cuts(payload, payload.len()) {
        // What is cut short must never read like fewer devices.
        if let Ok(short) = decode_names(&payload[..cut]) {
            assert!(cut == 0 || short == names, "{cut}: {short:?}, {names:?}");
        }
    }
}

fn targets(payload: &[u8], count: u32) {
    let Ok(targets) = decode_targets(payload, count) else {
        return;
    };
    assert_eq!(u32::try_from(targets.len()), Ok(count));
    assert!(targets.len() <= payload.len() / (TARGET_SPEC + 1));
    let whole = |t: &Target| !t.kind.contains(MANGLED) && !t.params.contains(MANGLED);
    if targets.iter().all(whole) {
        assert_eq!(
            decode_targets(&targets_payload(&targets), count).as_ref(),
            Ok(&targets)
        );
    }
    if let Some(fewer) = count.checked_sub(1) {
        let first = decode_targets(payload, fewer);
        assert_eq!(first.as_deref(), Ok(&targets[..targets.len() - 1]));
    }
    let beyond = [payload, &BEYOND].concat();
    assert_eq!(decode_targets(&beyond, count).as_ref(), Ok(&targets));
    for cut in cuts(payload, payload.len()) {
        if let Ok(short) = decode_targets(&payload[..cut], count) {
            assert_eq!(short, targets, "{cut}");
        }
    }
}

fn deps(payload: &[u8]) {
    let Ok(devices) = decode_deps(payload) else {
        return;
    };
    if payload.is_empty() {
        assert!(devices.is_empty());
        return;
    }
    assert!(devices.is_empty() || 8 + 8 * devices.len() <= payload.len());
    let numbers = payload.get(8..).unwrap_or_default().chunks_exact(8);
    let told: Vec<DevNo> = numbers
        .take(devices.len())
        .filter_map(|n| n.try_into().ok().map(u64::from_ne_bytes).map(decode_dev))
        .collect();
    assert_eq!(devices[..], told);
    let told = u32::from_ne_bytes(payload[..4].try_into().expect("four bytes"));
    assert_eq!(u32::try_from(devices.len()), Ok(told));
    for cut in cuts(payload, payload.len()).filter(|cut| *cut > 0) {
        if let Ok(short) = decode_deps(&payload[..cut]) {
            assert_eq!(short, devices, "{cut}");
        }
    }
}

/// The payloads that we send: what the kernel reads of them is what was meant.
fn requests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let sectors = u64::try_from(data.len()).unwrap_or_default();
    if let Ok(spec) = encode_target(text, sectors)
        && !text.contains('\0')
    {
        let read = decode_targets(&spec, 1).expect("a table of our own");
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].length, read[0].kind.as_str()), (sectors, text));
        assert_eq!(read[0].params, "");
    } else {
        assert!(text.len() > 15 || text.contains('\0'));
    }
    let message = encode_message(text);
    let (sector, line) = message.split_at(8);
    assert_eq!(sector, [0; 8]);
    let end = line.iter().position(|b| *b == 0);
    assert_eq!(end, Some(line.len() - 1), "one NUL, at the end");
    assert!(data.starts_with(&line[..line.len() - 1]));
}

/// As the kernel's `list_devices` lays it out.
fn names_payload(names: &[(DevNo, String)]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for (i, (dev, name)) in names.iter().enumerate() {
        let size = (12 + name.len() + 1).next_multiple_of(8) + 8;
        let next = if i + 1 < names.len() { size } else { 0 };
        out.extend(encode_dev(*dev).to_ne_bytes());
        out.extend(u32::try_from(next).expect("small").to_ne_bytes());
        out.extend(name.bytes());
        let begin = out.len() - 12 - name.len();
        // Padding, and the event number and flags of newer kernels.
        out.resize(begin + size, 0);
    }
    out
}

/// As the kernel's `retrieve_status` lays it out.
fn targets_payload(targets: &[Target]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for t in targets {
        let next = (out.len() + TARGET_SPEC + t.params.len() + 1).next_multiple_of(8);
        out.extend(t.start.to_ne_bytes());
        out.extend(t.length.to_ne_bytes());
        out.extend([0; 4]);
        out.extend(u32::try_from(next).expect("small").to_ne_bytes());
        out.extend(t.kind.bytes().chain(std::iter::repeat(0)).take(16));
        out.extend(t.params.bytes());
        out.resize(next, 0);
    }
    out
}
