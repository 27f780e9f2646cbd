//! The bare ioctls, for comparison: the error target under every device whose name begins with a prefix, with no plan, no proof and no lock manager.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use storage_fence::host::device_mapper::Control;
use storage_fence::host::{DeviceMapper, Paths};

use crate::harness::Result;

/// Swaps them on that many threads, and prints the milliseconds that the kernel took.
pub fn swap(prefix: &str, threads: usize) -> Result {
    let control = Control::new(&Paths::default());
    let devices: Vec<_> = control
        .devices()?
        .into_iter()
        .filter(|d| d.name.starts_with(prefix))
        .collect();
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> std::result::Result<(), storage_fence::host::Error> {
            while let Some(d) = devices.get(next.fetch_add(1, Ordering::Relaxed)) {
                control.load_error(d.dev, d.sectors)?;
                control.swap(d.dev)?;
            }
            Ok(())
        };
        let started: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in started {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
    .map_err(|e: Box<dyn std::error::Error + Send + Sync>| e.to_string())?;
    println!("{} {}", devices.len(), begin.elapsed().as_millis());
    Ok(())
}
