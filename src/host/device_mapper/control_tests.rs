//! The executor without a kernel that has device mapper: what it does with each answer, and with files that are no control device.

use std::os::unix::fs::symlink;

use super::*;

fn set_flag(buffer: &mut [u8], flag: u32) {
    buffer[28..32].copy_from_slice(&flag.to_ne_bytes());
}

#[test]
fn the_buffer_doubles_until_the_answer_fits() {
    let mut sizes = Vec::new();
    let mut buffer = Vec::new();
    let answer = exchange(&mut buffer, Request::default(), &[], |b| {
        sizes.push(b.len());
        if b.len() < 100_000 {
            set_flag(b, flag::BUFFER_FULL);
        }
        Ok(())
    });
    assert_eq!(answer, Ok(()));
    assert_eq!(sizes.first(), Some(&BUFFER));
    assert!(sizes.windows(2).all(|pair| pair[1] == 2 * pair[0]));
    assert_eq!(sizes.last(), Some(&131_072));
}

#[test]
fn a_buffer_that_is_never_large_enough_ends() {
    let mut calls = 0;
    let answer = exchange(&mut Vec::new(), Request::default(), &[], |b| {
        calls += 1;
        set_flag(b, flag::BUFFER_FULL);
        Ok(())
    });
    assert_eq!(answer, Err(Failure::TooLong));
    assert_eq!(calls, 14);
}

#[test]
fn each_errno_says_what_it_means() {
    let told = |errno| explain("DM_DEV_SUSPEND", "253:4", Failure::Errno(errno));
    assert!(matches!(told(Errno::ENXIO), Error::NoSuchDevice { .. }));
    assert!(matches!(told(Errno::EINTR), Error::Interrupted { .. }));
    assert!(matches!(told(Errno::EBUSY), Error::Busy { .. }));
    assert!(matches!(told(Errno::EPERM), Error::Unavailable { .. }));
    assert!(told(Errno::EINVAL).to_string().contains("253:4"));
    assert!(matches!(told(Errno::EINVAL), Error::Refused { .. }));
}

#[test]
fn no_control_device_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let control = Control::new(&Paths::under(root.path()));
    let error = control.version().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }));
    assert!(error.to_string().contains("modprobe dm_mod"), "{error}");
    assert!(error.to_string().contains("dev/mapper/control"), "{error}");
}

#[test]
fn a_file_that_is_no_control_device_says_so() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    fs::create_dir_all(paths.dev.join("mapper")).unwrap();
    symlink("/dev/null", paths.dev.join("mapper/control")).unwrap();
    let error = Control::new(&paths).devices().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("not device mapper's"), "{error}");
}

#[test]
fn a_control_device_that_appears_later_is_found() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    let control = Control::new(&paths);
    assert!(
        control
            .version()
            .unwrap_err()
            .to_string()
            .contains("modprobe")
    );
    fs::create_dir_all(paths.dev.join("mapper")).unwrap();
    symlink("/dev/null", paths.dev.join("mapper/control")).unwrap();
    assert!(
        control
            .version()
            .unwrap_err()
            .to_string()
            .contains("not device mapper's")
    );
}

#[test]
fn a_buffer_that_lies_about_its_size_never_reaches_the_kernel() {
    let mut buffer = vec![0; 400];
    codec::encode(&mut buffer, Request::default(), &[]).unwrap();
    buffer[12..16].copy_from_slice(&4096u32.to_ne_bytes());
    assert_eq!(Command::Version.invoke(-1, &mut buffer), Err(Errno::EINVAL));
    buffer[12..16].copy_from_slice(&400u32.to_ne_bytes());
    assert_eq!(Command::Version.invoke(-1, &mut buffer), Err(Errno::EBADF));
}

#[test]
fn without_a_control_device_there_are_no_events_but_an_error() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    let events = crate::host::device_mapper::Events::new(&paths);
    assert!(matches!(events.arm(), Err(Error::Unavailable { .. })));
    assert!(events.wait(std::time::Duration::ZERO).is_err());
    fs::create_dir_all(paths.dev.join("mapper")).unwrap();
    symlink("/dev/null", paths.dev.join("mapper/control")).unwrap();
    let error = events.arm().unwrap_err().to_string();
    assert!(error.contains("DM_DEV_ARM_POLL"), "{error}");
    assert!(error.contains("not device mapper's"), "{error}");
}
