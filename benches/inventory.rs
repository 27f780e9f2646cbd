//! What the agent computes for thousands of devices, without a kernel: reading the answers of device mapper, the topology, a look at a node that
//! did not change, the plan. `cargo bench --bench inventory`, or the beginning of `make bench`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::LineWriter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_fence::agent::inspect::inspect;
use storage_fence::agent::observe::{Kept, observe_again};
use storage_fence::fence::plan::Plan;
use storage_fence::fence::preflight::Facts;
use storage_fence::fence::topology::{Disk, Look, MapState, Observed, build, swap_levels};
use storage_fence::fence::{
    DevNo, DmDevice, LockManager, Lockspace, Monotonic, Order, Target, Watchdog,
};
use storage_fence::host::device_mapper::codec;
use storage_fence::host::simulated::{Group, Layout, Simulation};

const VG: &str = "Vk7Qw21mVd0gXy9KqZbC3dE4fGh5iJ6k";
const PATHS: [DevNo; 2] = [
    DevNo { major: 8, minor: 0 },
    DevNo {
        major: 8,
        minor: 16,
    },
];
const MAP: DevNo = DevNo {
    major: 253,
    minor: 0,
};
/// So many times each; the median is told.
const TIMES: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    println!("median of {TIMES}, milliseconds");
    for n in [1_000, 10_000] {
        let answers = Answers::of(n);
        tell("decode a list, and the table of each", n, || {
            answers.decode()
        });
        let observed = observed(n);
        tell("topology, fresh", n, || build(observed.clone()));
    }
    memory(10_000);
    for n in [1_000, 10_000] {
        unchanged(n)?;
    }
    plan(1_000);
    Ok(())
}

/// Prints the median of what `work` takes; of what it makes, nothing is dropped within the time.
fn tell<T>(what: &str, n: u32, mut work: impl FnMut() -> T) {
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let begin = Instant::now();
            let made = black_box(work());
            let took = begin.elapsed();
            drop(made);
            took
        })
        .collect();
    times.sort_unstable();
    let median = times.get(TIMES / 2).copied().unwrap_or_default();
    println!(
        "{what:<40} {n:>6} devices {:>9.3}",
        median.as_secs_f64() * 1e3
    );
}

/// What device mapper answers on a node with so many volumes: the list, and each one's header with its table.
struct Answers {
    list: Vec<u8>,
    tables: Vec<Vec<u8>>,
}

impl Answers {
    fn of(n: u32) -> Self {
        let devices = devices(n);
        let mut list = Vec::new();
        for device in &devices {
            let at = list.len();
            list.extend(codec::encode_dev(device.dev).to_ne_bytes());
            list.extend([0; 4]);
            list.extend(device.name.bytes());
            list.push(0);
            list.resize(list.len().next_multiple_of(codec::ALIGN), 0);
            let next = u32::try_from(list.len() - at).unwrap_or_default();
            if device.dev.minor < n {
                list[at + 8..at + 12].copy_from_slice(&next.to_ne_bytes());
            }
        }
        Self {
            list,
            tables: devices.iter().map(table).collect(),
        }
    }

    fn decode(&self) -> Vec<DmDevice> {
        let names = codec::decode_names(&self.list).unwrap_or_default();
        assert_eq!(names.len(), self.tables.len());
        self.tables.iter().filter_map(|b| decode(b)).collect()
    }
}

/// The answer to `DM_TABLE_STATUS`.
fn table(device: &DmDevice) -> Vec<u8> {
    let mut buffer = vec![0; codec::HEADER];
    let mut put = |at: usize, value: &[u8]| buffer[at..at + value.len()].copy_from_slice(value);
    let number = |n: usize| u32::try_from(n).unwrap_or_default().to_ne_bytes();
    put(codec::offset::DATA_START, &number(codec::HEADER));
    put(codec::offset::TARGET_COUNT, &number(device.targets.len()));
    put(
        codec::offset::DEV,
        &codec::encode_dev(device.dev).to_ne_bytes(),
    );
    put(codec::offset::NAME, device.name.as_bytes());
    put(codec::offset::UUID, device.uuid.as_bytes());
    for target in &device.targets {
        let at = buffer.len();
        buffer.extend(target.start.to_ne_bytes());
        buffer.extend(target.length.to_ne_bytes());
        buffer.extend([0; 24]);
        buffer[at + 24..at + 24 + target.kind.len()].copy_from_slice(target.kind.as_bytes());
        buffer.extend(target.params.bytes().chain([0]));
        buffer.resize(buffer.len().next_multiple_of(codec::ALIGN), 0);
        let next = number(buffer.len() - codec::HEADER);
        buffer[at + 20..at + 24].copy_from_slice(&next);
    }
    let size = number(buffer.len());
    buffer[codec::offset::DATA_SIZE..codec::offset::DATA_SIZE + 4].copy_from_slice(&size);
    buffer
}

fn decode(buffer: &[u8]) -> Option<DmDevice> {
    let header = codec::decode_header(buffer).ok()?;
    let payload = header.payload(buffer).ok()?;
    Some(DmDevice {
        dev: header.dev,
        targets: codec::decode_targets(payload, header.target_count).ok()?,
        name: header.name,
        uuid: header.uuid,
        ..DmDevice::default()
    })
}

/// A volume group of so many volumes on one map of two paths.
fn devices(n: u32) -> Vec<DmDevice> {
    let device =
        |minor, name: String, uuid: String, kind: &str, params: String, deps: &[DevNo]| DmDevice {
            dev: DevNo { major: 253, minor },
            name: name.into(),
            uuid: uuid.into(),
            sectors: 8192,
            targets: vec![Target {
                start: 0,
                length: 8192,
                kind: kind.into(),
                params: params.into(),
            }]
            .into(),
            deps: deps.to_vec().into(),
            ..DmDevice::default()
        };
    let map = device(
        0,
        "mpatha".into(),
        "mpath-36001405aaaaaaaaaaaaaaaaaaaaaaaaa".into(),
        "multipath",
        "1 queue_if_no_path 0 1 1 service-time 0 2 1 8:0 1 8:16 1".into(),
        &PATHS,
    );
    let volumes = (1..=n).map(|minor| {
        device(
            minor,
            format!("inv-v{minor}"),
            format!("LVM-{VG}{minor:032}"),
            "linear",
            format!("{MAP} {}", 2048 + u64::from(minor) * 8192),
            &[MAP],
        )
    });
    std::iter::once(map).chain(volumes).collect()
}

fn observed(n: u32) -> Observed {
    let disk = |dev: DevNo| {
        let name = format!("sd{}", dev.minor);
        let state = "running".to_owned();
        (
            dev,
            Disk {
                name,
                state,
                io: None,
            },
        )
    };
    let map = MapState {
        queueing: true,
        paths: PATHS.map(|p| (p, true)).into(),
    };
    let look = Look {
        taken_at: Monotonic::from_secs(100),
        boot_id: "boot".into(),
        maps: BTreeMap::from([(MAP, map)]),
        disks: PATHS.map(disk).into(),
        lock_manager: LockManager::Running(vec![Lockspace {
            name: "lvm_inv".into(),
            vg_name: "inv".into(),
            vg_uuid: VG.into(),
            host_id: 7,
            ..Lockspace::default()
        }]),
        watchdog: Watchdog::default(),
    };
    Observed {
        devices: devices(n).into_iter().map(Arc::new).collect(),
        look,
    }
}

/// Looks at a simulated node: the first, one that reads all devices and finds them as they were, and one that need not read them.
fn unchanged(n: u32) -> Result<(), Box<dyn Error>> {
    let node = Simulation::new(&Layout {
        groups: vec![Group {
            linear: n,
            ..Group::target("inv")
        }],
    });
    let host = node.host();
    let mut kept = Kept::default();
    drop(observe_again(&host, &mut kept, Some(0))?);
    let mut heard = 0;
    tell("a look that reads all, none changed", n, || {
        heard += 1;
        observe_again(&host, &mut kept, Some(heard))
    });
    tell("a look at a node that did not change", n, || {
        observe_again(&host, &mut kept, Some(heard))
    });
    // As standard output is: a system call for each line, if nobody gathers them.
    let mut nowhere = LineWriter::new(File::options().write(true).open("/dev/null")?);
    tell("inspect", n, || {
        inspect(&host, &Facts::default, &mut nowhere)
    });
    node.end();
    Ok(())
}

/// What a device takes in memory.
fn memory(n: u32) {
    const COPIES: u32 = 8;
    let answers = Answers::of(n);
    // The first one takes what others have left.
    let first = answers.decode();
    let before = resident();
    let copies: Vec<Vec<DmDevice>> = (0..COPIES).map(|_| answers.decode()).collect();
    let more = resident().saturating_sub(before) * 1024 / u64::from(COPIES * n);
    println!("a device in memory {more:>46} bytes");
    drop((first, copies));
}

/// KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn plan(n: u32) {
    let inventory = build(observed(n));
    let groups = inventory.volume_groups.clone();
    tell("swap order", n, || groups.first().map(swap_levels));
    let order = Order::default();
    tell("plan", n, || {
        Plan::new(&order, &inventory, &groups, Monotonic::from_secs(100))
    });
}
