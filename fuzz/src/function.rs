//! The PCI function that the targets work on: an `ixgbevf` whose network takes every frame.

use std::os::fd::BorrowedFd;

use device::{FrameLink, RxFrame, Sent, TxFrame};
use endpoint::{Endpoint, Endpoints};
use ixgbevf::spec::pci as spec;
use ixgbevf::{Vf, VfConfig};
use pci::{Bar, BarKind, ConfigSpace, Identity, MsixCapability};

/// As power-on leaves it, in an otherwise empty VM.
pub(crate) fn endpoints() -> Endpoints {
    let config = VfConfig {
        mac: [2, 0, 0, 0, 0, 1],
        queue_pairs: 2,
    };
    let vf = Vf::new(config, Box::new(Nowhere)).expect("the configuration is right");
    let endpoint = Endpoint::new("net0", config_space(), Box::new(vf));
    Endpoints(vec![endpoint.expect("a descriptor is left")])
}

/// Every capability that there is.
pub(crate) fn config_space() -> ConfigSpace {
    let [base, sub, interface] = spec::CLASS.map(u32::from);
    let bar = |index, size| Bar {
        index,
        size,
        kind: BarKind::Memory64Prefetchable,
    };
    let small = |offset: u64| u32::try_from(offset).expect("offsets lie within their BAR");
    ConfigSpace::builder(Identity {
        vendor: spec::VENDOR_ID,
        device: spec::DEVICE_ID,
        revision: spec::REVISION_ID,
        class: base << 16 | sub << 8 | interface,
        subsystem_vendor: spec::SUBSYSTEM_VENDOR_ID,
        subsystem: spec::SUBSYSTEM_ID,
    })
    .bar(bar(spec::REGISTER_BAR, spec::REGISTER_BAR_SIZE))
    .bar(bar(spec::MSIX_BAR, spec::MSIX_BAR_SIZE))
    .power_management(0x40)
    .msix(
        spec::MSIX_CAPABILITY_OFFSET.into(),
        MsixCapability {
            vectors: spec::MSIX_VECTORS,
            bar: spec::MSIX_BAR,
            table_offset: small(spec::MSIX_TABLE_OFFSET),
            pba_offset: small(spec::MSIX_PBA_OFFSET),
        },
    )
    .express(spec::PCIE_CAPABILITY_OFFSET.into())
    .build()
}

struct Nowhere;

impl FrameLink for Nowhere {
    fn peek(&mut self) -> Option<RxFrame<'_>> {
        None
    }

    fn consume(&mut self) {}

    fn send(&mut self, _frame: TxFrame<'_>) -> Sent {
        Sent::Taken
    }

    fn flush(&mut self) {}

    fn is_up(&self) -> bool {
        true
    }

    fn announce(&mut self, _mac: [u8; 6]) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
