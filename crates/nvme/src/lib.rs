//! An `NVMe` 1.4 controller as a device model, for the stock `nvme` drivers.
//!
//! Registers, commands and data structures are in [`spec`], as numbers and types without behaviour.
//!
//! # What it does not do
//!
//! There is no model yet: only what a controller and its driver agree on.

pub mod spec;
