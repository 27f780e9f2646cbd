//! Device mapper as a closing sees it: without what came into use under new locks.

use std::sync::Arc;

use super::sieve::Sieve;
use crate::fence::{DevNo, DmDevice};
use crate::host::{DeviceEvents, DeviceMapper, Error, Host, Result};

struct Veil {
    host: Host,
    sieve: Sieve,
}

/// The host for a closing of that volume group.
pub(super) fn veiled(host: &Host, sieve: &Sieve) -> Host {
    let veil = Veil {
        host: host.clone(),
        sieve: sieve.clone(),
    };
    Host {
        device_mapper: Arc::new(veil),
        ..host.clone()
    }
}

impl Veil {
    fn is_ours(&self, uuid: &str) -> Result<()> {
        let device = self.host.device_mapper.device(uuid)?;
        if self.sieve.is_ours(&self.host, &device) {
            return Ok(());
        }
        Err(Error::NoSuchDevice {
            what: format!("{uuid}, which was made anew under new locks"),
        })
    }
}

impl DeviceMapper for Veil {
    fn version(&self) -> Result<(u32, u32, u32)> {
        self.host.device_mapper.version()
    }

    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()> {
        let list = self.host.device_mapper.devices()?;
        let list = self.sieve.to_close(&self.host, list);
        list.into_iter().for_each(take);
        Ok(())
    }

    fn device(&self, uuid: &str) -> Result<DmDevice> {
        self.host.device_mapper.device(uuid)
    }

    fn status(&self, dev: DevNo) -> Result<Vec<(String, String)>> {
        self.host.device_mapper.status(dev)
    }

    /// The kernel knows a device by its UUID, which one that is made anew has too: so it is looked at before, and after. Was it still the fence's
    /// after the load, then the error table is in its own inactive slot, and goes when it goes: a swap that finds another device finds no table
    /// there, and changes nothing.
    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()> {
        self.is_ours(uuid)?;
        self.host.device_mapper.load_error(uuid, sectors)?;
        self.is_ours(uuid).inspect_err(|_| {
            tracing::error!(
                uuid,
                "a device was deactivated and activated anew in the moment in which it was to be closed: an error table may wait in it; take it away \
                 with dmsetup clear"
            );
        })
    }

    fn swap(&self, uuid: &str) -> Result<()> {
        self.host.device_mapper.swap(uuid)
    }

    fn remove(&self, uuid: &str) -> Result<()> {
        self.host.device_mapper.remove(uuid)
    }

    fn message(&self, uuid: &str, message: &str) -> Result<()> {
        self.host.device_mapper.message(uuid, message)
    }

    fn events(&self) -> Result<Box<dyn DeviceEvents>> {
        self.host.device_mapper.events()
    }
}
