//! The sidecar: a vhost-user device through which QEMU tells of a migration, learns which pages
//! devices wrote, and carries their state.
//!
//! Stock QEMU migrates a VM with vfio-user devices in silence: it asks them nothing, and what they
//! wrote to memory is stale on the destination. For its vhost-user devices it has all that is
//! missing. So each VM gets a `vhost-user-fs-pci` device ([`qemu_args`]) that this process serves
//! beside the real ones, and that no guest sees:
//!
//! * QEMU shares its **dirty log** when a migration begins ([`Hooks::log_started`]). Any page of
//!   the guest may be marked in it, from any thread ([`LogHandle`]);
//! * QEMU waits for the device to stop once the vCPUs stand still ([`Hooks::stopping`]): the
//!   moment to halt the real devices and mark the last pages. **But it stops it for other reasons
//!   too, some with running vCPUs**: the table at [`Hooks`] says how to tell;
//! * QEMU carries an opaque **state** in its own stream ([`Hooks::save`], [`Hooks::load`]), and
//!   either side may refuse, which fails the migration and leaves the VM on the source.
//!
//! QEMU does this only for a device that was started, for which there is [`driverless`].
//!
//! # Where no guest sees it
//!
//! The function number is not 0, and nothing else is in its slot: `06.1` without `06.0`. Function 0
//! is required of every device (PCI Local Bus 3.0, 3.2.2.3.4), so firmware and operating systems
//! that find none look no further: SeaBIOS (`pci_next`), EDK II (`PciPciDeviceInfoCollector`),
//! Linux (`pci_scan_slot`). The device gets no BARs and no driver. With a driver it would be in the
//! way: Linux's virtiofs refuses to suspend the guest (`virtio_fs_freeze`). At function 0 it works
//! as well, with or without a driver.
//!
//! To offer no `VIRTIO_F_VERSION_1`, so that drivers leave the device alone, is no way: QEMU 11.1
//! takes it for a legacy device then, which a vhost-user file system cannot be, and does not start.
//!
//! # How it is built
//!
//! [`Sidecar::serve`] is one loop on one thread over one `poll`: messages, kicks of the two rings,
//! the pipe of a state transfer, and the [`Stopper`]. The only thing shared with other threads is
//! the log, behind a lock that those who mark take for reading. From the outside in: `server` (the
//! socket and the loop), `device` (what each message means), and under it `log`, `memory`, `ring`
//! (requests of a guest that mounts), `transfer` and `blob` (the state in the pipe).
//!
//! # What the `vhost` crates lacked
//!
//! The messages are read, checked and answered by `BackendReqHandler` of the `vhost` crate. It has
//! everything that is needed: the log's descriptor, the device state, answers that wait for the
//! handler, an end from outside by shutting the socket down. What one has to know:
//!
//! * a handler cannot see whether QEMU waits for the answer (`NEED_REPLY`). The stop hook relies
//!   on QEMU always asking for one with `SET_VRING_ENABLE`, as it has done since 8.2;
//! * an error of a handler and a broken message look alike to the caller, so both end the
//!   connection. The two messages of the device state are the exception, and the only ones that a
//!   running system refuses;
//! * those two messages are not checked against the negotiated features: done here;
//! * a log that cannot be used has no answer, only the end of the connection;
//! * no request beyond those it knows reaches the handler (`SET_STATUS` among them).
//!
//! `vhost-user-backend`, which builds a whole daemon on it, was not used: its log can be marked
//! only by the device's own writes through its own mapping, not for other devices' pages; it goes
//! on marking when QEMU has switched the log off; it tells its device nothing of the log at all,
//! and a stop only ring by ring; and its rings run on threads of their own, which would have to be
//! held up at each stop.
//!
//! # What it does not do
//!
//! * No file system: a guest that mounts the tag gets an input/output error for every request.
//! * No configuration space: QEMU's device makes its own and never asks.
//! * No reconnection: QEMU's `vhost-user-fs` cannot. When the process ends, QEMU runs on and its
//!   migrations fail, unless a keeper holds the connection ([`Sidecar::keep`]): then the next process goes on
//!   with it, but not with a migration that was under way, and not with requests of a guest that mounts.
//! * No virtual IOMMU in front of the sidecar itself, and no packed rings, indirect descriptors or
//!   event indices: not offered.
//! * No postcopy: not offered, so QEMU refuses it.
//! * No protection from a QEMU that shrinks the files of its log or its memory under the mapping:
//!   that ends the process with SIGBUS, as it does for every user of shared guest memory.

mod args;
mod blob;
mod device;
pub mod driverless;
mod error;
pub mod fuzz;
mod hooks;
mod kept;
mod layout;
mod log;
mod memory;
mod poll;
mod ring;
mod server;
#[cfg(test)]
mod testing;
mod transfer;

pub use args::{ArgsError, qemu_args};
pub use error::Error;
pub use hooks::{Hooks, LogStart, Stop, Stopped, Veto};
pub use layout::{FileId, Part};
pub use log::{LogHandle, Marker, Tally};
pub use server::{Config, Sidecar, Stopper};
