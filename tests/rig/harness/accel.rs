//! Which accelerator runs guests here. A /dev/kvm that opens proves nothing: there are machines where it opens, makes a VM, and cannot run
//! one. So a guest is really booted for a few seconds, once per boot of this machine.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::process::{Guarded, RunDir, cache_dir};
use super::{Result, say};

/// QEMU's arguments for running guests as fast as this machine can.
pub fn arguments(run: &RunDir, kernel: &Path) -> Result<Vec<String>> {
    let args: &[&str] = if works(run, kernel)? {
        &["-accel", "kvm", "-cpu", "host"]
    } else {
        // Newer CPU models cost emulated features that nothing here uses.
        &["-accel", "tcg,thread=multi", "-cpu", "Nehalem"]
    };
    Ok(args.iter().map(|&arg| arg.to_owned()).collect())
}

fn works(run: &RunDir, kernel: &Path) -> Result<bool> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let verdict_file = cache_dir().join("kvm").join(boot_id.trim());
    if let Ok(verdict) = fs::read_to_string(&verdict_file) {
        return Ok(verdict.trim() == "yes");
    }
    let begin = Instant::now();
    let verdict = Path::new("/dev/kvm").exists() && probe(run, kernel)?;
    fs::create_dir_all(cache_dir().join("kvm"))?;
    fs::write(&verdict_file, if verdict { "yes\n" } else { "no\n" })?;
    say(format!(
        "KVM {} (probed in {:.1} s)",
        if verdict {
            "works here"
        } else {
            "does not work here: guests are emulated"
        },
        begin.elapsed().as_secs_f64()
    ));
    Ok(verdict)
}

/// A kernel without a root file system panics within a second or two of starting, and with panic=-1 and -no-reboot that ends QEMU.
fn probe(run: &RunDir, kernel: &Path) -> Result<bool> {
    let serial = run.join("kvm-probe.serial");
    let log = run.join("kvm-probe.log");
    let args: Vec<String> = [
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-append",
        "console=ttyS0 panic=-1 no_timer_check",
        "-serial",
    ]
    .iter()
    .map(|&arg| arg.to_owned())
    .chain([
        format!("file:{}", serial.display()),
        "-kernel".to_owned(),
        kernel.display().to_string(),
    ])
    .collect();
    let mut qemu = Guarded::start("the KVM probe", "qemu-system-x86_64", &args, &log)?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(15) {
        if let Some(status) = qemu.ended() {
            let said = fs::read(&serial).unwrap_or_default();
            let panicked = String::from_utf8_lossy(&said).contains("Kernel panic");
            return Ok(status.success() && panicked);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}
