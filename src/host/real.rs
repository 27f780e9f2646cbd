//! The real node.

use std::sync::Arc;

use super::{
    Host, Paths, Underway, device_mapper, lvm, lvmlockd, multipath, openers, sanlock, system, wdmd,
};

impl Host {
    /// Everything of the node that those paths lead to. Opens nothing yet: what is missing is told when it is asked.
    #[must_use]
    pub fn real(paths: &Paths) -> Self {
        Self {
            device_mapper: Arc::new(device_mapper::Control::new(paths)),
            system: Arc::new(system::Sysfs::new(paths)),
            multipathd: Arc::new(multipath::Socket::new(paths)),
            lvmlockd: Arc::new(lvmlockd::Socket::new(paths)),
            sanlock: Arc::new(sanlock::Socket::new(paths)),
            wdmd: Arc::new(wdmd::Socket::new(paths)),
            lvm: Arc::new(lvm::Tools::new(paths)),
            openers: Arc::new(openers::Procfs::new(paths)),
            underway: Underway::default(),
        }
    }
}
