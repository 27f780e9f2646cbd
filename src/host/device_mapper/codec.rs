//! The bytes of the device-mapper ioctls (Linux `include/uapi/linux/dm-ioctl.h`): pure, no I/O, no `unsafe`.
//!
//! Every ioctl takes one buffer: a header of [`HEADER`] bytes, then a payload whose shape depends on the command. Whatever the kernel put
//! there is read with bounds checked; bytes that make no sense are a [`Malformed`], never a panic and never a read beyond the buffer.

use std::borrow::Cow;
use std::ffi::CStr;

use smol_str::SmolStr;

use crate::fence::{DevNo, DevNos, Table, Target};

/// Size of `struct dm_ioctl`, and where our payloads begin.
pub const HEADER: usize = 312;
/// Size of `struct dm_target_spec`.
pub const TARGET_SPEC: usize = 40;
/// Alignment of every record in a payload.
pub const ALIGN: usize = 8;

/// Offsets of the header's fields; asserted against the C layout below.
pub mod offset {
    /// `version[3]`
    pub const VERSION: usize = 0;
    /// `data_size`
    pub const DATA_SIZE: usize = 12;
    /// `data_start`
    pub const DATA_START: usize = 16;
    /// `target_count`
    pub const TARGET_COUNT: usize = 20;
    /// `open_count`
    pub const OPEN_COUNT: usize = 24;
    /// `flags`
    pub const FLAGS: usize = 28;
    /// `event_nr`
    pub const EVENT_NR: usize = 32;
    /// `dev`
    pub const DEV: usize = 40;
    /// `name[128]`
    pub const NAME: usize = 48;
    /// `uuid[129]`
    pub const UUID: usize = 176;
}

/// `struct dm_ioctl`, for the compiler to check our offsets with.
#[repr(C)]
#[allow(dead_code, reason = "never filled in: only its layout is asked for")]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME_LEN],
    uuid: [u8; UUID_LEN],
    data: [u8; 7],
}

const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<DmIoctl>() == HEADER);
    assert!(offset_of!(DmIoctl, version) == offset::VERSION);
    assert!(offset_of!(DmIoctl, data_size) == offset::DATA_SIZE);
    assert!(offset_of!(DmIoctl, data_start) == offset::DATA_START);
    assert!(offset_of!(DmIoctl, target_count) == offset::TARGET_COUNT);
    assert!(offset_of!(DmIoctl, open_count) == offset::OPEN_COUNT);
    assert!(offset_of!(DmIoctl, flags) == offset::FLAGS);
    assert!(offset_of!(DmIoctl, event_nr) == offset::EVENT_NR);
    assert!(offset_of!(DmIoctl, dev) == offset::DEV);
    assert!(offset_of!(DmIoctl, name) == offset::NAME);
    assert!(offset_of!(DmIoctl, uuid) == offset::UUID);
    assert!(HEADER.is_multiple_of(ALIGN) && TARGET_SPEC.is_multiple_of(ALIGN));
};

/// Length of `name`, its NUL included.
pub const NAME_LEN: usize = 128;
/// Length of `uuid`, its NUL included.
pub const UUID_LEN: usize = 129;

/// Flags of the header (`DM_*_FLAG`).
pub mod flag {
    /// The device is suspended; in a request: suspend it.
    pub const SUSPEND: u32 = 1 << 1;
    /// `DM_TABLE_STATUS` is to return the table, not the status.
    pub const STATUS_TABLE: u32 = 1 << 4;
    /// A table is live.
    pub const ACTIVE_PRESENT: u32 = 1 << 5;
    /// A table waits in the inactive slot.
    pub const INACTIVE_PRESENT: u32 = 1 << 6;
    /// The buffer was too small.
    pub const BUFFER_FULL: u32 = 1 << 8;
    /// Do not freeze the file system before a suspension.
    pub const SKIP_LOCKFS: u32 = 1 << 10;
    /// Do not flush: neither queued I/O before a suspension nor a target's metadata before it tells its status.
    pub const NOFLUSH: u32 = 1 << 11;
    /// Another device's suspension holds this one up.
    pub const INTERNAL_SUSPEND: u32 = 1 << 18;
}

/// Bytes that are not what the kernel's header file promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of {len}")]
pub struct Malformed {
    /// What was expected or wrong.
    pub what: &'static str,
    /// Where.
    pub at: usize,
    /// How many bytes there are.
    pub len: usize,
}

/// Short form.
pub type Result<T> = std::result::Result<T, Malformed>;

fn bytes<const N: usize>(buffer: &[u8], at: usize) -> Result<[u8; N]> {
    let cut = at.checked_add(N).and_then(|end| buffer.get(at..end));
    cut.and_then(|b| b.try_into().ok()).ok_or(Malformed {
        what: "the buffer ends within a field",
        at,
        len: buffer.len(),
    })
}

fn u32_at(buffer: &[u8], at: usize) -> Result<u32> {
    bytes(buffer, at).map(u32::from_ne_bytes)
}

fn u64_at(buffer: &[u8], at: usize) -> Result<u64> {
    bytes(buffer, at).map(u64::from_ne_bytes)
}

/// A size or offset of the kernel's; all its own limits are far below `usize`.
fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Text up to its NUL, which has to come before `end`.
fn text(buffer: &[u8], at: usize, end: usize) -> Result<Cow<'_, str>> {
    let malformed = |what| Malformed {
        what,
        at,
        len: buffer.len(),
    };
    let field = buffer
        .get(at..end.min(buffer.len()))
        .ok_or(malformed("text begins beyond the buffer"))?;
    let text = CStr::from_bytes_until_nul(field).map_err(|_| malformed("text without an end"))?;
    // Names may hold any byte; what is not UTF-8 is shown mangled, and never used to find a device again.
    Ok(text.to_string_lossy())
}

/// Device number in the encoding of `dm_ioctl.dev` (the kernel's `huge_encode_dev`).
#[must_use]
pub fn encode_dev(dev: DevNo) -> u64 {
    let (major, minor) = (u64::from(dev.major), u64::from(dev.minor));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff_ff00) << 12)
}

/// The reverse of [`encode_dev`]; bits beyond 32 are not part of a device number.
#[must_use]
pub fn decode_dev(raw: u64) -> DevNo {
    let low = u32::try_from(raw & u64::from(u32::MAX)).unwrap_or_default();
    DevNo {
        major: (low >> 8) & 0xfff,
        minor: (low & 0xff) | ((low >> 12) & 0xf_ff00),
    }
}

/// What a request says in its header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The device, where the command is about one. Looked up by number: a name may be given to another device meanwhile.
    pub dev: Option<DevNo>,
    /// The device by its UUID, in place of the number: for what must not hit another device that has the number by now. The kernel takes one of
    /// the two only.
    pub uuid: Option<&'a str>,
    /// [`flag`]s.
    pub flags: u32,
    /// Targets in the payload.
    pub targets: u32,
    /// Event number; for a resume, what udev is told (the upper 16 bits of a cookie are flags).
    pub event_nr: u32,
}

/// Writes header and payload into the zeroed `buffer`, whose whole length is offered to the kernel.
///
/// # Errors
/// When they do not fit.
pub fn encode(buffer: &mut [u8], request: Request<'_>, payload: &[u8]) -> Result<()> {
    let len = buffer.len();
    let too_small = Malformed {
        what: "the request does not fit",
        at: HEADER,
        len,
    };
    let total = u32::try_from(len).map_err(|_| too_small.clone())?;
    if len < HEADER + payload.len() {
        return Err(too_small);
    }
    let uuid = request.uuid.unwrap_or_default();
    if uuid.len() >= UUID_LEN || uuid.bytes().any(|b| b == 0) {
        return Err(Malformed {
            what: "a UUID that does not fit",
            at: offset::UUID,
            len,
        });
    }
    buffer.fill(0);
    let mut put = |at: usize, value: &[u8]| buffer[at..at + value.len()].copy_from_slice(value);
    // 4.0.0 asks for the interface of every kernel since 2.6; it refuses only a newer minor than its own.
    put(offset::VERSION, &4u32.to_ne_bytes());
    put(offset::DATA_SIZE, &total.to_ne_bytes());
    put(
        offset::DATA_START,
        &u32::try_from(HEADER).unwrap_or_default().to_ne_bytes(),
    );
    put(offset::TARGET_COUNT, &request.targets.to_ne_bytes());
    put(offset::FLAGS, &request.flags.to_ne_bytes());
    put(offset::EVENT_NR, &request.event_nr.to_ne_bytes());
    put(
        offset::DEV,
        &request.dev.map_or(0, encode_dev).to_ne_bytes(),
    );
    put(offset::UUID, uuid.as_bytes());
    put(HEADER, payload);
    Ok(())
}

/// The header of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Version of the interface.
    pub version: (u32, u32, u32),
    /// Bytes that the kernel filled in.
    pub data_size: usize,
    /// Where the payload begins.
    pub data_start: usize,
    /// Targets of the table.
    pub target_count: u32,
    /// Openers.
    pub open_count: u32,
    /// [`flag`]s.
    pub flags: u32,
    /// Device number.
    pub dev: DevNo,
    /// Name.
    pub name: SmolStr,
    /// UUID, may be empty.
    pub uuid: SmolStr,
}

impl Header {
    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The payload: what the kernel filled in beyond the header. Empty where it filled in none.
    ///
    /// # Errors
    /// When it claims more than there is.
    pub fn payload<'a>(&self, buffer: &'a [u8]) -> Result<&'a [u8]> {
        let malformed = |what, at| Malformed {
            what,
            at,
            len: buffer.len(),
        };
        if self.data_size <= self.data_start {
            return Ok(&[]);
        }
        if self.data_start < HEADER {
            return Err(malformed(
                "the payload begins within the header",
                self.data_start,
            ));
        }
        buffer.get(self.data_start..self.data_size).ok_or(malformed(
            "the payload ends beyond the buffer",
            self.data_size,
        ))
    }
}

/// The [`flag`]s of an answer, of which no more is wanted.
///
/// # Errors
/// When it is cut short.
pub fn decode_flags(buffer: &[u8]) -> Result<u32> {
    u32_at(buffer, offset::FLAGS)
}

/// Reads the header of an answer.
///
/// # Errors
/// When it is cut short or a name has no end.
pub fn decode_header(buffer: &[u8]) -> Result<Header> {
    Ok(Header {
        version: (u32_at(buffer, 0)?, u32_at(buffer, 4)?, u32_at(buffer, 8)?),
        data_size: size(u32_at(buffer, offset::DATA_SIZE)?),
        data_start: size(u32_at(buffer, offset::DATA_START)?),
        target_count: u32_at(buffer, offset::TARGET_COUNT)?,
        open_count: u32_at(buffer, offset::OPEN_COUNT)?,
        flags: decode_flags(buffer)?,
        dev: decode_dev(u64_at(buffer, offset::DEV)?),
        name: text(buffer, offset::NAME, offset::NAME + NAME_LEN)?.into(),
        uuid: text(buffer, offset::UUID, offset::UUID + UUID_LEN)?.into(),
    })
}

/// The payload of `DM_LIST_DEVICES`: number and name of each device.
///
/// # Errors
/// When a record leads outside of the payload, or nowhere.
pub fn decode_names(payload: &[u8]) -> Result<Vec<(DevNo, String)>> {
    let mut names = Vec::new();
    each_name(payload, |dev, name| names.push((dev, name.into_owned())))?;
    Ok(names)
}

/// The same without the names: what thousands of devices are asked for by.
///
/// # Errors
/// When a record leads outside of the payload, or nowhere.
pub fn decode_numbers(payload: &[u8]) -> Result<Vec<DevNo>> {
    let mut numbers = Vec::new();
    each_name(payload, |dev, _| numbers.push(dev))?;
    Ok(numbers)
}

fn each_name(payload: &[u8], mut take: impl FnMut(DevNo, Cow<'_, str>)) -> Result<()> {
    /// Offset of the name in `struct dm_name_list`.
    const NAME_AT: usize = 12;
    let mut at = 0;
    // No device at all: one record with number 0, or no payload.
    if payload.is_empty() || u64_at(payload, 0)? == 0 {
        return Ok(());
    }
    loop {
        let dev = decode_dev(u64_at(payload, at)?);
        let next = size(u32_at(payload, at + 8)?);
        let end = if next == 0 {
            payload.len()
        } else {
            at.saturating_add(next)
        };
        take(dev, text(payload, at + NAME_AT, end)?);
        if next == 0 {
            return Ok(());
        }
        // Only forwards, by at least a record: a loop in the chain would never end.
        if next <= NAME_AT || end >= payload.len() {
            return Err(Malformed {
                what: "a name record leads nowhere",
                at,
                len: payload.len(),
            });
        }
        at = end;
    }
}

/// The payload of `DM_TABLE_STATUS`: `count` targets with their table or status line.
///
/// # Errors
/// When a record leads outside of the payload, or backwards.
pub fn decode_targets(payload: &[u8], count: u32) -> Result<Table> {
    // No more room than it takes, which is kept for each of thousands of devices; nor more than there can be.
    let most = payload.len() / TARGET_SPEC;
    let mut targets = Table::with_capacity(size(count).min(most));
    let mut at = 0;
    for _ in 0..count {
        let malformed = |what| Malformed {
            what,
            at,
            len: payload.len(),
        };
        // `next` counts from the first record, unlike in requests.
        let next = size(u32_at(payload, at + 20)?);
        let end = next.min(payload.len());
        if next < at + TARGET_SPEC {
            return Err(malformed("a target record leads backwards"));
        }
        // The type's 16 bytes are full when it is as long as that.
        let kind: [u8; 16] = bytes(payload, at + 24)?;
        let kind = kind.split(|b| *b == 0).next().unwrap_or_default();
        targets.push(Target {
            start: u64_at(payload, at)?,
            length: u64_at(payload, at + 8)?,
            kind: String::from_utf8_lossy(kind).into(),
            params: text(payload, at + TARGET_SPEC, end)?.trim().into(),
        });
        at = next;
    }
    Ok(targets)
}

/// The payload of `DM_TABLE_DEPS`: the devices that the live table uses.
///
/// # Errors
/// When it holds fewer than it says.
pub fn decode_deps(payload: &[u8]) -> Result<DevNos> {
    if payload.is_empty() {
        return Ok(DevNos::new());
    }
    let count = size(u32_at(payload, 0)?);
    if count > payload.len() / 8 {
        return Err(Malformed {
            what: "more devices than the payload can hold",
            at: 0,
            len: payload.len(),
        });
    }
    (0..count)
        .map(|i| u64_at(payload, 8 + i * 8).map(decode_dev))
        .collect()
}

/// The payload of `DM_TABLE_LOAD` for one target without parameters over `sectors` sectors.
///
/// # Errors
/// When the type is longer than its field.
pub fn encode_target(kind: &str, sectors: u64) -> Result<[u8; TARGET_SPEC + ALIGN]> {
    let mut spec = [0; TARGET_SPEC + ALIGN];
    // One byte less than the field: the kernel reads it as text.
    if kind.len() > 15 {
        return Err(Malformed {
            what: "a target type of more than 15 bytes",
            at: 24,
            len: kind.len(),
        });
    }
    let next = u32::try_from(spec.len()).unwrap_or_default();
    spec[8..16].copy_from_slice(&sectors.to_ne_bytes());
    spec[20..24].copy_from_slice(&next.to_ne_bytes());
    spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
    Ok(spec)
}

/// The payload of `DM_TARGET_MSG` to the target at sector 0.
#[must_use]
pub fn encode_message(message: &str) -> Vec<u8> {
    let mut payload = vec![0; 8];
    // The kernel reads up to the NUL; one in the middle would cut the message, so it ends there here too.
    payload.extend(message.bytes().take_while(|b| *b != 0));
    payload.push(0);
    payload
}
