//! The codec against a kernel written down from its header file: every answer that it may give, and any bytes at all.

use proptest::prelude::*;

use super::codec::*;
use crate::fence::{DevNo, Target};

/// An answer of the kernel: header fields and payload as `drivers/md/dm-ioctl.c` lays them out.
struct Answer {
    buffer: Vec<u8>,
}

impl Answer {
    fn new(payload: &[u8]) -> Self {
        let mut buffer = vec![0xee; HEADER + payload.len() + 64];
        encode(
            &mut buffer,
            Request {
                dev: Some(DevNo {
                    major: 253,
                    minor: 300,
                }),
                ..Request::default()
            },
            payload,
        )
        .unwrap();
        let mut answer = Self { buffer };
        answer.u32(
            offset::DATA_SIZE,
            u32::try_from(HEADER + payload.len()).unwrap(),
        );
        answer
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.buffer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn text(&mut self, at: usize, value: &str) -> &mut Self {
        self.buffer[at..at + value.len()].copy_from_slice(value.as_bytes());
        self
    }
}

/// `retrieve_status` of the kernel: specs with `next` counted from the first one.
pub(super) fn targets_payload(targets: &[Target]) -> Vec<u8> {
    let mut out = Vec::new();
    for t in targets {
        let at = out.len();
        out.extend(t.start.to_ne_bytes());
        out.extend(t.length.to_ne_bytes());
        out.extend([0; 8]);
        out.extend(t.kind.bytes().chain(std::iter::repeat(0)).take(16));
        out.extend(t.params.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(8), 0);
        let next = u32::try_from(out.len()).unwrap();
        out[at + 20..at + 24].copy_from_slice(&next.to_ne_bytes());
    }
    out
}

/// `list_devices` of the kernel, with the event number that newer ones put after the name.
pub(super) fn names_payload(names: &[(DevNo, String)]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut previous: Option<usize> = None;
    for (dev, name) in names {
        let at = out.len();
        if let Some(p) = previous {
            let next = u32::try_from(at - p).unwrap();
            out[p + 8..p + 12].copy_from_slice(&next.to_ne_bytes());
        }
        out.extend(encode_dev(*dev).to_ne_bytes());
        out.extend([0; 4]);
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(7u32.to_ne_bytes());
        out.extend(2u32.to_ne_bytes());
        previous = Some(at);
    }
    if out.is_empty() { vec![0; 16] } else { out }
}

fn target(start: u64, length: u64, kind: &str, params: &str) -> Target {
    Target {
        start,
        length,
        kind: kind.into(),
        params: params.into(),
    }
}

#[test]
fn a_request_tells_its_true_size_and_asks_for_interface_4() {
    let mut buffer = vec![0xff; 512];
    let request = Request {
        dev: Some(DevNo {
            major: 253,
            minor: 5,
        }),
        flags: flag::NOFLUSH,
        targets: 1,
        event_nr: 0x0140_0000,
        ..Request::default()
    };
    encode(&mut buffer, request, &[1, 2, 3]).unwrap();
    assert_eq!(buffer[..4], 4u32.to_ne_bytes());
    assert_eq!(buffer[12..16], 512u32.to_ne_bytes());
    assert_eq!(buffer[16..20], 312u32.to_ne_bytes());
    assert_eq!(buffer[28..32], 0x800u32.to_ne_bytes());
    assert_eq!(buffer[32..36], 0x0140_0000u32.to_ne_bytes());
    assert_eq!(buffer[40..48], 0xfd05u64.to_ne_bytes());
    // Neither name nor UUID: the kernel refuses a request that names a device twice.
    assert!(buffer[48..312].iter().all(|b| *b == 0));
    assert_eq!(buffer[312..316], [1, 2, 3, 0]);
}

#[test]
fn a_request_by_uuid_names_no_number() {
    let uuid = "LVM-abc";
    let request = Request {
        uuid: Some(uuid),
        ..Request::default()
    };
    let mut buffer = vec![0xff; HEADER];
    encode(&mut buffer, request, &[]).unwrap();
    // The kernel refuses a request that names a device twice.
    assert_eq!(buffer[40..48], [0; 8]);
    assert_eq!(&buffer[176..183], uuid.as_bytes());
    assert!(buffer[183..].iter().all(|b| *b == 0));
    for bad in ["x".repeat(129), "a\0b".to_owned()] {
        let request = Request {
            uuid: Some(&bad),
            ..Request::default()
        };
        assert!(encode(&mut buffer, request, &[]).is_err(), "{bad}");
    }
}

#[test]
fn a_request_that_does_not_fit_is_refused() {
    assert!(encode(&mut [0; HEADER], Request::default(), &[0]).is_err());
    assert!(encode(&mut [0; 8], Request::default(), &[]).is_err());
    assert!(encode(&mut [0; HEADER], Request::default(), &[]).is_ok());
}

#[test]
fn a_header_is_read_back() {
    let mut answer = Answer::new(&[]);
    answer
        .u32(offset::FLAGS, flag::SUSPEND | flag::ACTIVE_PRESENT)
        .u32(offset::OPEN_COUNT, 3);
    answer
        .text(offset::NAME, "vg--a-lv")
        .text(offset::UUID, "LVM-x");
    let header = decode_header(&answer.buffer).unwrap();
    assert_eq!(
        (header.name.as_str(), header.uuid.as_str()),
        ("vg--a-lv", "LVM-x")
    );
    assert_eq!((header.open_count, header.version), (3, (4, 0, 0)));
    assert_eq!(
        header.dev,
        DevNo {
            major: 253,
            minor: 300
        }
    );
    assert!(header.has(flag::SUSPEND) && !header.has(flag::INACTIVE_PRESENT));
}

#[test]
fn a_name_without_an_end_is_malformed() {
    let mut answer = Answer::new(&[]);
    answer.text(offset::NAME, &"x".repeat(NAME_LEN));
    assert!(decode_header(&answer.buffer).is_err());
}

#[test]
fn a_payload_that_claims_more_than_there_is_is_malformed() {
    let mut answer = Answer::new(&[1; 16]);
    answer.u32(offset::DATA_SIZE, 1_000_000);
    let header = decode_header(&answer.buffer).unwrap();
    assert!(header.payload(&answer.buffer).is_err());
    // A payload that begins within the header would show us our own request.
    answer
        .u32(offset::DATA_SIZE, 320)
        .u32(offset::DATA_START, 8);
    let header = decode_header(&answer.buffer).unwrap();
    assert!(header.payload(&answer.buffer).is_err());
    // Commands that answer nothing leave data_size below data_start.
    answer
        .u32(offset::DATA_SIZE, 305)
        .u32(offset::DATA_START, 312);
    assert_eq!(
        decode_header(&answer.buffer)
            .unwrap()
            .payload(&answer.buffer),
        Ok(&[][..])
    );
}

#[test]
fn no_devices_is_an_empty_list() {
    assert_eq!(decode_names(&[]), Ok(vec![]));
    assert_eq!(decode_names(&[0; 16]), Ok(vec![]));
}

#[test]
fn a_name_list_that_loops_ends_as_malformed() {
    let names = [
        (
            DevNo {
                major: 253,
                minor: 0,
            },
            "a".to_owned(),
        ),
        (
            DevNo {
                major: 253,
                minor: 1,
            },
            "b".to_owned(),
        ),
    ];
    let mut payload = names_payload(&names);
    payload[8..12].copy_from_slice(&1u32.to_ne_bytes());
    assert!(decode_names(&payload).is_err());
    payload[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(decode_names(&payload).is_err());
}

#[test]
fn targets_that_lead_backwards_are_malformed() {
    let mut payload = targets_payload(&[
        target(0, 8, "linear", "8:0 0"),
        target(8, 8, "linear", "8:0 8"),
    ]);
    payload[20..24].copy_from_slice(&0u32.to_ne_bytes());
    assert!(decode_targets(&payload, 2).is_err());
}

#[test]
fn more_targets_than_the_payload_holds_are_malformed() {
    let payload = targets_payload(&[target(0, 8, "error", "")]);
    assert_eq!(
        decode_targets(&payload, 1).unwrap()[..],
        [target(0, 8, "error", "")]
    );
    assert!(decode_targets(&payload, 2).is_err());
    assert!(decode_targets(&payload, u32::MAX).is_err());
}

#[test]
fn a_target_type_of_16_bytes_has_no_nul() {
    let payload = targets_payload(&[target(0, 8, "abcdefghijklmnop", "x")]);
    assert_eq!(
        decode_targets(&payload, 1).unwrap()[0].kind,
        "abcdefghijklmnop"
    );
}

#[test]
fn deps_are_read_and_counted() {
    let mut payload = 2u32.to_ne_bytes().to_vec();
    payload.extend([0; 4]);
    payload.extend(
        encode_dev(DevNo {
            major: 8,
            minor: 16,
        })
        .to_ne_bytes(),
    );
    payload.extend(
        encode_dev(DevNo {
            major: 253,
            minor: 4000,
        })
        .to_ne_bytes(),
    );
    assert_eq!(
        decode_deps(&payload).unwrap()[..],
        [
            DevNo {
                major: 8,
                minor: 16
            },
            DevNo {
                major: 253,
                minor: 4000
            }
        ]
    );
    assert_eq!(decode_deps(&[]).unwrap()[..], []);
    payload[..4].copy_from_slice(&3u32.to_ne_bytes());
    assert!(decode_deps(&payload).is_err());
    payload[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(decode_deps(&payload).is_err());
}

#[test]
fn an_error_target_is_what_the_kernel_expects() {
    let spec = encode_target("error", 0x1234_5678_9abc).unwrap();
    assert_eq!(spec[..8], [0; 8]);
    assert_eq!(spec[8..16], 0x1234_5678_9abcu64.to_ne_bytes());
    assert_eq!(&spec[24..32], b"error\0\0\0");
    // Parameters: an empty string right behind the spec.
    assert_eq!(spec[TARGET_SPEC], 0);
    assert!(encode_target("sixteen-bytes-xx", 1).is_err());
}

#[test]
fn a_message_ends_at_its_nul() {
    assert_eq!(
        encode_message("fail_if_no_path"),
        [&[0; 8][..], b"fail_if_no_path\0"].concat()
    );
    assert_eq!(encode_message("a\0b"), [&[0; 8][..], b"a\0"].concat());
}

fn any_dev() -> impl Strategy<Value = DevNo> {
    (1u32..0x1000, 0u32..0x10_0000).prop_map(|(major, minor)| DevNo { major, minor })
}

proptest! {
    #[test]
    fn device_numbers_survive(dev in any_dev()) {
        prop_assert_eq!(decode_dev(encode_dev(dev)), dev);
        // The same as glibc's and the kernel's encoding within 32 bits.
        prop_assert!(u32::try_from(encode_dev(dev)).is_ok());
    }

    #[test]
    fn names_survive(names in prop::collection::vec((any_dev(), "[a-zA-Z0-9+_.:#-]{1,127}"), 0..40)) {
        let payload = names_payload(&names);
        let numbers: Vec<DevNo> = names.iter().map(|(dev, _)| *dev).collect();
        prop_assert_eq!(decode_names(&payload).unwrap(), names);
        prop_assert_eq!(decode_numbers(&payload).unwrap(), numbers);
    }

    #[test]
    fn targets_survive(raw in prop::collection::vec((any::<u64>(), any::<u64>(), "[a-z-]{1,15}", "[0-9a-z:]([ 0-9a-z:]{0,200}[0-9a-z:])?|"), 0..20)) {
        let targets: Vec<Target> = raw.iter().map(|(s, l, k, p)| target(*s, *l, k, p)).collect();
        let count = u32::try_from(targets.len()).unwrap();
        prop_assert_eq!(&decode_targets(&targets_payload(&targets), count).unwrap()[..], targets);
    }

    #[test]
    fn any_bytes_are_read_or_refused(buffer in prop::collection::vec(any::<u8>(), 0..900), count in any::<u32>()) {
        if let Ok(header) = decode_header(&buffer) {
            let _ = header.payload(&buffer);
        }
        let _ = decode_names(&buffer);
        let _ = decode_targets(&buffer, count);
        let _ = decode_deps(&buffer);
    }

    #[test]
    fn a_flipped_byte_is_read_or_refused(at in 0usize..400, to in any::<u8>(), cut in 0usize..400) {
        let names = [(DevNo { major: 253, minor: 0 }, "san-a".to_owned()), (DevNo { major: 253, minor: 1 }, "san-b".to_owned())];
        let mut payload = names_payload(&names);
        let i = at % payload.len();
        payload[i] = to;
        let _ = decode_names(&payload);
        let _ = decode_names(&payload[..cut.min(payload.len())]);
        let mut payload = targets_payload(&[target(0, 8, "linear", "8:0 0"), target(8, 8, "linear", "8:0 8")]);
        let i = at % payload.len();
        payload[i] = to;
        let _ = decode_targets(&payload, 2);
        let _ = decode_targets(&payload[..cut.min(payload.len())], 2);
    }
}
