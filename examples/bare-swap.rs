//! The bare ioctls, for comparison: puts the `error` target under every device-mapper device whose name begins with a prefix, one after the
//! other, with no plan, no proof and no lock manager, and prints how long the kernel took.
//!
//! For test devices only. Usage: `bare-swap PREFIX [THREADS]`; prints `devices=N threads=T milliseconds=M`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use storage_fence::host::device_mapper::Control;
use storage_fence::host::{DeviceMapper, Paths};

fn run() -> Result<String, String> {
    let mut args = std::env::args().skip(1);
    let prefix = args
        .next()
        .filter(|p| !p.is_empty())
        .ok_or("usage: bare-swap PREFIX [THREADS]")?;
    let threads: usize = args
        .next()
        .map_or(Ok(1), |t| t.parse().map_err(|e| format!("THREADS: {e}")))?;
    let control = Control::new(&Paths::default());
    let devices: Vec<_> = control
        .devices()
        .map_err(|e| e.to_string())?
        .into_iter()
        .filter(|d| d.name.starts_with(&prefix))
        .collect();
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Result<(), String> {
            while let Some(d) = devices.get(next.fetch_add(1, Ordering::Relaxed)) {
                let told = |e| format!("{}: {e}", d.name);
                control.load_error(d.dev, d.sectors).map_err(told)?;
                control.swap(d.dev).map_err(told)?;
            }
            Ok(())
        };
        let started: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        started
            .into_iter()
            .try_for_each(|t| t.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
    Ok(format!(
        "devices={} threads={threads} milliseconds={milliseconds:.3}",
        devices.len()
    ))
}

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("bare-swap: {why}");
            ExitCode::FAILURE
        }
    }
}
