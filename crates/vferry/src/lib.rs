//! The `vferry` command: one process per VM that serves its devices and carries it elsewhere.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the configuration file, with errors that say what to write instead |
//! | [`models`] | the device models there are |
//! | [`host`] | what is changed on the host for functions that are passed through, and given back |
//! | [`daemon`] | `vferry run`: sockets and threads |
//! | [`control`] | what `migrate`, `rehearse`, `resolve` and `status` say to the running process |
//! | [`resolution`] | the ways out where it is not known which host runs the VM |
//! | [`rehearsal`] | the guest's part of a migration, without one |
//! | [`commands`] | the commands |
//!
//! # What it does not do
//!
//! It starts no QEMU and no VM: it prints the arguments for one, and serves it. How a migration
//! goes is in `ferry`, what a device is in the models.

pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod host;
pub mod models;
pub mod rehearsal;
pub mod resolution;
mod stream;
mod told;
