//! What the kernel tells by itself: uevents, and the lines of its log about SCSI commands.

use super::Values;
use crate::fence::denials::{Logged, Says};
use crate::host::scsi_log;
use crate::host::uevent::{Uevent, parse};

/// One message.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    check_log(data);
    let values = &mut Values(data);
    let made = Uevent {
        action: values.word(10),
        subsystem: values.word(10),
        device: values.word(20),
        kind: values.word(10),
        dm_action: values.word(20),
    };
    assert_eq!(parse(&printed(&made)), Some(made));
    let Some(uevent) = parse(data) else {
        return;
    };
    assert!(!data.starts_with(b"libudev\0"), "udev's, not the kernel's");
    let fields = [
        &uevent.action,
        &uevent.subsystem,
        &uevent.device,
        &uevent.kind,
        &uevent.dm_action,
    ];
    assert!(fields.iter().all(|f| !f.contains('\0')));
    // A byte that is no text takes three.
    assert!(fields.iter().map(|f| f.len()).sum::<usize>() <= 3 * data.len());
    let again = printed(&uevent);
    assert_eq!(parse(&again).as_ref(), Some(&uevent));
    let known = ["block", "scsi", "nvme"].contains(&uevent.subsystem.as_str());
    assert!(known || !uevent.concerns_paths());
    // A path that failed is never passed over.
    let failed = Uevent {
        subsystem: "block".into(),
        dm_action: "PATH_FAILED".into(),
        ..uevent
    };
    assert!(failed.concerns_paths());
}

/// A record of the kernel's log.
fn check_log(data: &[u8]) {
    if let Some(line) = scsi_log::parse(data) {
        let level = data.split(|b| matches!(b, b',' | b';')).next();
        let level = level.and_then(|l| std::str::from_utf8(l).ok()?.parse::<u32>().ok());
        assert!(
            level.is_some_and(|l| l < 8),
            "somebody else's, not the kernel's"
        );
        assert!(!line.disk.is_empty() && line.disk.len() <= data.len());
    }
    // Whatever stands before it in the record, a refusal is told only by the kernel's own words.
    let refusal = b"6,1,1,-;sd 0:0:0:1: [sdb] tag#7 Add. Sense: Logical unit not supported";
    let mut record = refusal.to_vec();
    record.push(b'\n');
    record.extend(data);
    let no_such_unit = true;
    let expected = Logged {
        disk: "sdb".into(),
        tag: 7,
        says: Says::Sense { no_such_unit },
    };
    assert_eq!(scsi_log::parse(&record), Some(expected));
}

/// As the kernel's `kobject_uevent_env` writes it.
fn printed(uevent: &Uevent) -> Vec<u8> {
    let fields = [
        ("SUBSYSTEM", &uevent.subsystem),
        ("DEVNAME", &uevent.device),
        ("DEVTYPE", &uevent.kind),
        ("DM_ACTION", &uevent.dm_action),
    ];
    let fields = fields.map(|(key, value)| format!("{key}={value}\0"));
    format!("{}@/devices/x\0{}", uevent.action, fields.concat()).into_bytes()
}
