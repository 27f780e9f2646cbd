use super::*;

fn line(disk: &str, tag: u32, says: Says) -> Logged {
    let disk = disk.to_owned();
    Logged { disk, tag, says }
}

/// As Debian 13's kernel (6.12) logs a command to a LUN that was unmapped.
#[test]
fn a_command_that_its_target_refuses() {
    let own = "\n SUBSYSTEM=scsi\n DEVICE=+scsi:0:0:0:1\n";
    let parse = |text: &str| parse(format!("6,1017,83123456,-;{text}{own}").as_bytes());
    assert_eq!(
        parse(
            "sd 0:0:0:1: [sdb] tag#77 FAILED Result: hostbyte=DID_OK driverbyte=DRIVER_OK cmd_age=0s"
        ),
        Some(line("sdb", 77, Says::Failed))
    );
    let illegal_request = true;
    assert_eq!(
        parse("sd 0:0:0:1: [sdb] tag#77 Sense Key : Illegal Request [current] "),
        Some(line("sdb", 77, Says::Key { illegal_request }))
    );
    let no_such_unit = true;
    assert_eq!(
        parse("sd 0:0:0:1: [sdb] tag#77 Add. Sense: Logical unit not supported"),
        Some(line("sdb", 77, Says::Sense { no_such_unit }))
    );
    assert_eq!(
        parse("sd 0:0:0:1: [sdb] tag#77 CDB: Read(10) 28 00 00 00 00 00 00 00 08 00"),
        None
    );
}

#[test]
fn what_says_something_else_is_told_apart() {
    let says = |text: &str| {
        let record = format!("6,1,1,-;sd 3:0:1:12: [sdaa] tag#0 {text}");
        parse(record.as_bytes()).map(|l| l.says)
    };
    let key = |illegal_request| Some(Says::Key { illegal_request });
    let sense = |no_such_unit| Some(Says::Sense { no_such_unit });
    for (text, expected) in [
        (
            "UNKNOWN(0x2003) Result: hostbyte=0x07 driverbyte=DRIVER_OK cmd_age=2s",
            Some(Says::Failed),
        ),
        ("Sense Key : 0x5 [current] ", key(true)),
        (
            "Sense Key : Illegal Request [current] [descriptor] ",
            key(true),
        ),
        // Of a command before this one.
        ("Sense Key : Illegal Request [deferred] ", key(false)),
        ("Sense Key : Not Ready [current] ", key(false)),
        ("Sense Key : 0x50 [current] ", key(false)),
        ("ASC=0x25 ASCQ=0x0 ", sense(true)),
        ("ASC=0x25 ASCQ=0x1 ", sense(false)),
        ("<<vendor>>ASC=0x80 ASCQ=0x0 ", sense(false)),
        ("Add. Sense: Invalid field in cdb", sense(false)),
        (
            "Add. Sense: Logical unit not supported by anybody",
            sense(false),
        ),
        ("Synchronizing SCSI cache", None),
    ] {
        assert_eq!(says(text), expected, "{text}");
    }
}

#[test]
fn nobody_but_the_kernel_is_believed() {
    let text = "sd 0:0:0:1: [sdb] tag#77 Add. Sense: Logical unit not supported";
    for (prefix, believed) in [
        ("0,1,1,-", true),
        ("7,1,1,c,caller=T1", true),
        // A program that writes to /dev/kmsg: LOG_USER, 1 << 3.
        ("12,1,1,-", false),
        ("30,1,1,-", false),
        ("-1,1,1,-", false),
        ("", false),
    ] {
        let record = format!("{prefix};{text}");
        assert_eq!(parse(record.as_bytes()).is_some(), believed, "{prefix}");
    }
}

#[test]
fn any_part_of_a_record_is_read_or_left() {
    let record = b"6,1,1,-;sd 0:0:0:1: [sdb] tag#77 Sense Key : Illegal Request [current] \n DEVICE=+scsi:0:0:0:1\n";
    for end in 0..record.len() {
        let _ = parse(&record[..end]);
        let _ = parse(&record[end..]);
    }
    for other in [
        &b"6,1,1,-;sd 0:0:0:1: [] tag#1 ASC=0x25 ASCQ=0x0"[..],
        b"6,1,1,-;sd 0:0:0:1: [sd\\x0a] tag#1 ASC=0x25 ASCQ=0x0",
        b"6,1,1,-;sd 0:0:0:1: [sdb] tag#4294967296 ASC=0x25 ASCQ=0x0",
        b"6,1,1,-;sd 0:0:0:1: [sdb] Add. Sense: Logical unit not supported",
        b"\xff\xfe;",
    ] {
        assert_eq!(parse(other), None);
    }
}

/// The real one, where the tests may read it: it has what the kernel has logged since, and waits for nobody.
#[test]
fn the_kernels_own_log_is_read_without_waiting() {
    let Ok(mut log) = Kmsg::open(&Paths::default()) else {
        return;
    };
    let began = std::time::Instant::now();
    let _ = log.read(&mut |_| {});
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
}

/// A folder in place of the node's /dev: only what comes after the opening is handed out.
#[test]
fn what_was_logged_before_is_left() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    assert!(Kmsg::open(&paths).is_err());
    std::fs::create_dir_all(&paths.dev).unwrap();
    let kmsg = paths.dev.join("kmsg");
    std::fs::write(&kmsg, "6,1,1,-;sd 0:0:0:1: [sda] tag#1 ASC=0x25 ASCQ=0x0\n").unwrap();
    let mut log = Kmsg::open(&paths).unwrap();
    let read = |log: &mut Kmsg| {
        let mut disks = Vec::new();
        assert!(log.read(&mut |l| disks.push(l.disk.clone())).unwrap());
        disks
    };
    assert!(read(&mut log).is_empty());
    let mut file = OpenOptions::new().append(true).open(&kmsg).unwrap();
    std::io::Write::write_all(
        &mut file,
        b"6,2,2,-;sd 0:0:0:1: [sdb] tag#1 ASC=0x25 ASCQ=0x0\n",
    )
    .unwrap();
    assert_eq!(read(&mut log), ["sdb"]);
    assert!(read(&mut log).is_empty());
}
