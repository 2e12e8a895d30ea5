//! Configuration space of one PCI Express endpoint, as the endpoint itself keeps it.
//!
//! [`ConfigSpace`] is a 4 KiB image with a mask of the bits that the guest may write, built from a
//! [`Layout`]: identity, BARs and capabilities. A write returns what it changed ([`Change`]), so that the
//! owner can act on bus mastering, function-level reset and MSI-X. [`ConfigImage`] is its saved
//! form, [`guest_view`] makes one of a function of the host, and [`restore`] says which writes bring a fresh VMM-side function to the same point.
//!
//! Section numbers are those of the PCI Local Bus Specification 3.0 ("PCI") and the PCI Express
//! Base Specification 4.0 ("PCIe").
//!
//! # What it does not do
//!
//! No bus, no bridges, no address decoding: the VMM does that. MSI, INTx and the extended
//! capabilities are not built; the MSI-X *table* is kept by the VMM too, which is why
//! [`msix::MsixTable`] only carries a copy of it.

pub mod config;
pub mod express;
pub mod guest_view;
pub mod image;
pub mod layout;
pub mod msix;
pub mod power;
pub mod registers;
pub mod restore;

pub use config::{Bar, BarKind, Change, ConfigBuilder, ConfigSpace, Identity};
pub use image::{ConfigImage, ImageError};
pub use layout::Layout;
pub use msix::{MsixCapability, MsixEntry, MsixTable};
