use std::os::unix::fs::symlink;

use super::*;

const VM: DevNo = DevNo {
    major: 253,
    minor: 4,
};

fn device() -> DmDevice {
    DmDevice {
        dev: VM,
        name: "san-my--vm".into(),
        ..DmDevice::default()
    }
}

struct Node {
    root: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["proc", "sys/block"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root }
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: impl AsRef<Path>) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A process in a mount namespace of that name.
    fn process(&self, pid: u32, name: &str, namespace: &str, cgroup: &str) {
        self.file(&format!("proc/{pid}/comm"), &format!("{name}\n"));
        self.file(&format!("proc/{pid}/cgroup"), cgroup);
        self.link(&format!("proc/{pid}/ns/mnt"), namespace);
    }

    fn openers(&self, devices: &[DmDevice]) -> Vec<(String, Option<String>)> {
        let mut all = Vec::new();
        let procfs = Procfs::new(&Paths::under(self.root.path()));
        procfs.of(devices, &mut |o| all.push((o.who, o.pod_uid)));
        all
    }
}

const UID: &str = "0f1e2d3c-1111-2222-3333-444455556666";

#[test]
fn the_pod_is_read_from_the_cgroup_of_either_driver() {
    for (cgroup, uid) in [
        (
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f1e2d3c_1111_2222_3333_444455556666.slice/cri-containerd-ab.scope\n",
            Some(UID),
        ),
        (
            "0::/kubepods/besteffort/pod0f1e2d3c-1111-2222-3333-444455556666/ab",
            Some(UID),
        ),
        (
            "12:memory:/kubepods/pod0f1e2d3c-1111-2222-3333-444455556666/ab\n0::/\n",
            Some(UID),
        ),
        (
            "0::/kubepods.slice/kubepods-pod5f9d7c4be1e24d3a8d0c2b7f6a1e9d38.slice/crio-x.scope",
            Some("5f9d7c4be1e24d3a8d0c2b7f6a1e9d38"),
        ),
        ("0::/system.slice/podman.service", None),
        ("0::/user.slice/user-0.slice/session-1.scope", None),
        ("", None),
    ] {
        assert_eq!(pod_uid(cgroup).as_deref(), uid, "{cgroup}");
    }
}

#[test]
fn mounts_are_told_once_for_each_mount_namespace() {
    let node = Node::new();
    let mount = "36 35 253:4 / /mnt/my\\040data rw,noatime shared:1 - ext4 /dev/mapper/san-my--vm rw\n\
                 37 35 253:9 / /other rw - ext4 /dev/dm-9 rw\n";
    let btrfs = "40 35 0:52 / /data rw - btrfs /dev/san/my-vm rw,subvol=/\n";
    node.process(1, "systemd", "mnt:[1]", "0::/init.scope");
    node.file("proc/1/mountinfo", mount);
    node.process(7, "sshd", "mnt:[1]", "0::/system.slice/ssh.service");
    node.file("proc/7/mountinfo", mount);
    node.process(
        812,
        "postgres",
        "mnt:[2]",
        &format!("0::/kubepods/pod{UID}/x"),
    );
    node.file("proc/812/mountinfo", btrfs);
    assert_eq!(
        node.openers(&[device()]),
        [
            ("mount /mnt/my data (ext4)".to_owned(), None),
            (
                "mount /data (btrfs) as seen by process 812 (postgres)".to_owned(),
                Some(UID.to_owned())
            ),
        ]
    );
    assert!(node.openers(&[]).is_empty());
}

/// The kubelet mounts a volume for its pod. A driver sees that too, and is not the pod that uses it.
#[test]
fn a_mount_of_the_kubelets_belongs_to_its_pod_whoever_sees_it() {
    const DRIVER: &str = "99999999-1111-2222-3333-444455556666";
    let node = Node::new();
    let volume = format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pvc-1/mount");
    let staged = "/var/lib/kubelet/plugins/kubernetes.io/csi/lvm/abc/globalmount";
    let mounts = |root: &str| {
        let line = |at: &str| {
            format!("36 35 253:4 / {root}{at} rw shared:1 - ext4 /dev/mapper/san-my--vm rw\n")
        };
        format!("{}{}", line(&volume), line(staged))
    };
    node.process(1, "systemd", "mnt:[1]", "0::/init.scope");
    node.file("proc/1/mountinfo", &mounts(""));
    node.process(
        7,
        "driver",
        "mnt:[2]",
        &format!("0::/kubepods/pod{DRIVER}/x"),
    );
    node.file("proc/7/mountinfo", &mounts("/host"));
    let pods: Vec<Option<String>> = node.openers(&[device()]).into_iter().map(|o| o.1).collect();
    let of_it = || Some(UID.to_owned());
    assert_eq!(pods, [of_it(), None, of_it(), None]);
}

#[test]
fn devices_loops_and_swap_are_openers_too() {
    let node = Node::new();
    node.file("sys/dev/block/253:4/holders/dm-7/x", "");
    node.file("sys/block/dm-7/dm/name", "luks-data\n");
    node.file(
        "sys/block/loop3/loop/backing_file",
        "/dev/mapper/san-my--vm\n",
    );
    node.file("sys/block/loop4/loop/backing_file", "/var/images/a\n");
    node.file(
        "proc/swaps",
        "Filename\tType\tSize\tUsed\tPriority\n/dev/dm-4 partition 100 0 -2\n/dev/dm-5 partition 100 0 -2\n",
    );
    let who: Vec<String> = node.openers(&[device()]).into_iter().map(|o| o.0).collect();
    assert_eq!(
        who,
        [
            "device dm-7 (luks-data)",
            "loop device loop3",
            "swap (swapoff takes it away)"
        ]
    );
}

/// Device nodes cannot be made by everybody, but every machine has files, and they lie on devices.
#[test]
fn a_file_on_the_device_and_a_working_folder_are_told_with_their_paths() {
    let node = Node::new();
    let file = node.root.path().join("data");
    fs::write(&file, "x").unwrap();
    let below = fs::metadata(&file).unwrap().dev();
    let device = DmDevice {
        dev: DevNo {
            major: major(below).try_into().unwrap(),
            minor: minor(below).try_into().unwrap(),
        },
        ..device()
    };
    node.process(9, "cat", "mnt:[1]", "0::/");
    node.link("proc/9/fd/3", &file);
    node.link("proc/9/fd/4", "socket:[17]");
    node.link("proc/9/fd/5", "/gone/for/ever");
    node.link("proc/9/cwd", node.root.path());
    let who: Vec<String> = node.openers(&[device]).into_iter().map(|o| o.0).collect();
    assert_eq!(
        who,
        [
            format!("process 9 (cat) with {}", file.display()),
            format!("process 9 (cat) with {}", node.root.path().display()),
        ]
    );
}

#[test]
fn what_is_not_there_is_no_opener() {
    let empty = tempfile::tempdir().unwrap();
    let procfs = Procfs::new(&Paths::under(empty.path()));
    procfs.of(&[device()], &mut |o| panic!("{o:?}"));
}
