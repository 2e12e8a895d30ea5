//! The built-in lab: Debian's QEMU and kernel, and guests to control.
//!
//! [`Lab::ensure`] builds it once, in the target folder, from packages that apt verifies by
//! Debian's own signatures: a QEMU that has `vfio-user-pci` (the host's own if it is new enough), a
//! kernel, and a static busybox. Nothing of it is installed on the host but `mmdebstrap` (and json-c, for a benchmark's peer), and it
//! needs neither mounts nor a chroot to run.
//!
//! [`Lab::with_kernel`] has guests run another of Debian's kernels, for which modules can be built
//! ([`Lab::guest_module`], [`Lab::build_module`]); that does take a chroot, and root or a user
//! namespace.
//!
//! [`Lab::for_hosts`] has a [`Host`] run, a machine with SR-IOV, an IOMMU and KVM, and guests in it.
//!
//! [`Lab::libvfio_user`] is a peer for benchmarks.
//!
//! [`Vm`] boots a guest from it: an initrd made on the spot ([`Initrd`]), a console log, a QMP
//! connection, and a shell on a serial line that keeps working when the guest has moved to another
//! QEMU. When a `Vm` is dropped, or the process that made it dies in whatever way, its QEMU dies.
//!
//! It serves tests and the demo, so its errors are `anyhow`'s: they are read, not handled.
//!
//! # What it does not do
//!
//! It knows nothing of vferry's devices; tests and the demo add them as QEMU arguments. It has no
//! disk images, no network and no distribution in the guest: a kernel, one busybox, and the
//! files and packaged programs that the caller puts in. It builds on x86-64 Debian and on systems whose apt knows a
//! Debian mirror, and on nothing else.

mod apt;
mod control;
mod cpio;
mod dynamic;
mod emulator;
mod guest;
mod host;
mod initrd;
mod kernel;
mod libvfio_user;
mod modules;
mod process;
mod recipe;
mod root;
mod standstill;
mod target;
mod tsc;
mod workshop;

pub use control::Output;
pub use emulator::{Accelerator, Emulator, ONE_CPU};
pub use guest::{Vm, VmBuilder};
pub use host::{Cable, Function, Guest, Host, HostOptions, QemuEnded, SHARE};
pub use initrd::Initrd;
pub use kernel::Kernel;
pub use libvfio_user::{LibvfioUser, libvfio_user_from};
pub use process::Guarded;
pub use root::{Lab, Progress, progress_on_stderr};
pub use standstill::StandsStill;
pub use target::target_dir;
pub use workshop::KernelModule;
