//! The kernel's uevents.

use super::Values;
use crate::host::uevent::{Uevent, parse};

/// One message.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
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
