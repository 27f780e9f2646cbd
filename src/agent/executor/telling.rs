//! Device mapper as a fence sees it: each device that is read is a sign that the fence moves ([`Signs`]). Reading ten thousand takes seconds.

use std::sync::Arc;

use crate::agent::journal::Signs;
use crate::fence::{DevNo, DmDevice};
use crate::host::{DeviceEvents, DeviceMapper, Host, Result};

struct Telling {
    inner: Arc<dyn DeviceMapper>,
    signs: Signs,
}

/// The host for a look that is to give signs. Not for one that only repeats what was seen: then it goes round, and gets nothing done.
#[must_use]
pub fn telling(host: &Host, signs: &Signs) -> Host {
    let telling = Telling {
        inner: Arc::clone(&host.device_mapper),
        signs: signs.clone(),
    };
    Host {
        device_mapper: Arc::new(telling),
        ..host.clone()
    }
}

impl DeviceMapper for Telling {
    fn version(&self) -> Result<(u32, u32, u32)> {
        self.inner.version()
    }

    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()> {
        self.inner.each(&mut |device| {
            self.signs.give();
            take(device);
        })
    }

    fn device(&self, uuid: &str) -> Result<DmDevice> {
        self.inner.device(uuid)
    }

    fn status(&self, dev: DevNo) -> Result<Vec<(String, String)>> {
        self.inner.status(dev).inspect(|_| self.signs.give())
    }

    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()> {
        self.inner.load_error(uuid, sectors)
    }

    fn swap(&self, uuid: &str) -> Result<()> {
        self.inner.swap(uuid)
    }

    fn remove(&self, uuid: &str) -> Result<()> {
        self.inner.remove(uuid)
    }

    fn message(&self, uuid: &str, message: &str) -> Result<()> {
        self.inner.message(uuid, message)
    }

    fn events(&self) -> Result<Box<dyn DeviceEvents>> {
        self.inner.events()
    }
}
