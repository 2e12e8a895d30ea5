//! A PCI function of the host, by VFIO, as a device model.
//!
//! | module | what |
//! |---|---|
//! | [`function`] | which function of the host it is, and whether it can be passed through |
//! | [`device`](mod@device) | that function, opened, as a [`Model`](::device::Model) with [`Hardware`](::device::Hardware) |
//! | [`locked`] | whether as much memory may be locked as it takes |
//! | `registers` | bus mastering, and whether anything is under way |
//! | `vectors` | interrupts, from the kernel to the VMM |
//! | `memory` | guest memory, as the IOMMU has it |
//! | `vfio` | the calls of the kernel's interface whose outcome matters |
//! | `kernel` | who answers them |
//!
//! vferry is in the way of nothing that is frequent: the VMM maps the BARs themselves, interrupts go
//! from the kernel to the VMM by the VMM's own eventfds, and DMA goes through the IOMMU. What
//! remains are accesses to configuration space, of which the guest sees a copy, and to the page of the
//! MSI-X table, and guest memory that comes and goes.
//!
//! A halt is bus mastering switched off in the real function, then read back, and a wait until none of
//! its transactions is pending.
//!
//! # What it does not do
//!
//! It saves no state: a fresh function is started by the guest's driver. It does not know what the
//! function writes. It does not bind functions to `vfio-pci`, and makes no virtual ones. No legacy
//! interrupts (`INTx`), no MSI, no expansion ROM, no VGA. Containers of `/dev/vfio/vfio` only, not iommufd.
//! It takes memory in while the VMM waits, which pins every page: a VMM of a large guest has to wait for
//! longer than its 5 s (`x-msg-timeout`).

pub mod device;
pub mod function;
pub mod locked;
mod kernel;
mod memory;
mod registers;
mod vectors;
mod vfio;

pub use self::device::{OpenError, Passthrough};
pub use self::function::{Function, NotUsable, is_held};
