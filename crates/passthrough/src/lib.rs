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
//! | `log` | what the function writes, where it or the IOMMU logs that |
//! | `migration`, `state` | its own states of migration, where its driver on the host has them |
//! | `vfio`, `iommufd`, `regions` | the kernel's interface: the calls whose outcome matters |
//! | `kernel` | who answers them: Linux, or in tests a `fake` that keeps the same rules |
//!
//! vferry is in the way of nothing that is frequent: the VMM maps the BARs themselves, interrupts go
//! from the kernel to the VMM by the VMM's own eventfds, and DMA goes through the IOMMU. What
//! remains are accesses to configuration space, of which the guest sees a copy, and to the page of the
//! MSI-X table, and guest memory that comes and goes.
//!
//! A function is opened by a file of its own where the kernel has iommufd, else by its group.
//!
//! A halt is bus mastering switched off in the real function, then read back, and a wait until none of
//! its transactions is pending. A function with states of migration is stopped by these instead, as its
//! driver on the host knows best what is under way; its state can be read then, and given to another.
//!
//! What hardware has for a migration no lab of ours has, so all of that was run against the `fake` alone, which
//! keeps to the kernel's sources (`drivers/vfio/vfio_main.c`, `drivers/iommu/iommufd`). The kernel's sample
//! device with such states, `mtty`, cannot be passed through here: it interrupts by `INTx` and MSI, and has no
//! MSI-X.
//!
//! # What it does not do
//!
//! A state is read in one go while the VM stands still (no `PRE_COPY`), and up to 8 MiB of it: larger ones are
//! left to their driver, as are those that nobody can read. It does not bind functions to `vfio-pci`, and
//! makes no virtual ones. No legacy interrupts (`INTx`), no MSI, no expansion ROM, no VGA.
//! It takes memory in while the VMM waits, which pins every page: the VMM has to wait for longer than its 5 s
//! (`x-msg-timeout`, which `vferry qemu-args` sets by the guest's size).

mod container;
pub mod device;
#[cfg(test)]
mod fake;
pub mod function;
mod iommufd;
mod kernel;
pub mod locked;
mod log;
mod memory;
mod migration;
mod ranges;
mod regions;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod vectors;
mod vfio;

pub use self::device::{OpenError, Passthrough};
pub use self::function::{Function, NotUsable, is_held};
