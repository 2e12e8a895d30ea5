//! The PCI function that the targets work on: an `ixgbevf` whose network takes every frame.

use std::os::fd::BorrowedFd;

use device::{FrameLink, RxFrame, Sent, TxFrame};
use endpoint::{Endpoint, Endpoints};
use ixgbevf::spec::pci::LAYOUT;
use ixgbevf::{Vf, VfConfig};
use pci::{ConfigSpace, Layout};

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
    ConfigSpace::of(&Layout {
        power: Some(0x40),
        ..LAYOUT
    })
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
