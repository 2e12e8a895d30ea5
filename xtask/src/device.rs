//! What a guest has, as it is asked for.

use clap::ValueEnum;
use testbed::Devices;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A NIC, with traffic to and from a peer.
    Nic,
    /// A disk, with every block checked.
    Nvme,
}

/// All that were named; a NIC if none was.
pub(crate) fn all(named: &[Device]) -> Devices {
    let nic = named.contains(&Device::Nic);
    match (nic, named.contains(&Device::Nvme)) {
        (true, true) => Devices::NicAndDisk,
        (false, true) => Devices::Disk,
        (_, false) => Devices::Nic,
    }
}
