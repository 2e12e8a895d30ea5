//! Two hosts of the lab side by side: a guest with a vferry device under load, and migrations.
//!
//! A [`Host`] is a vferry process and a QEMU that was started with what `vferry qemu-args` prints,
//! as a user would. A [`Testbed`] is one host with a running guest, and the peer at the other end
//! of its network; [`Testbed::migrate`] starts a second host, moves the guest there with `vferry
//! migrate`, and ends the first. What it returns is what the demo prints and the tests judge.
//!
//! # What it does not do
//!
//! It looks into nothing: everything is measured from outside, by the peer, by the guest, by QEMU's
//! monitor and by the commands' own output.

mod dice;
pub mod faults;
mod host;
mod kills;
mod load;
mod migration;
mod nested;
mod options;
mod pause;
mod power_cut;
mod processors;
mod programs;
mod rival;
mod run;
mod small_disk;
mod split;
mod still;
mod stock;
mod summary;
mod unit;
mod wait;

pub use host::{GuestOptions, Host, HostOptions, Identity};
pub use kills::{
    Kills, hang_worker, kill_worker, kill_workers, restart_unit, upgrade, upgrade_workers,
};
pub use migration::{Interrupts, Migration};
pub use nested::{DriverRace, Exits, Nested, NestedHost, NestedOptions, NeverGone, Replug, Way};
pub use options::{Between, Boot, Devices, Help, HostFiles, Options, Plug};
pub use power_cut::{Cuts, power_cuts};
pub use processors::{Processors, run_on};
pub use programs::Programs;
pub use run::{GUEST_IP, PEER_IP, Testbed};
pub use split::{RecoverySplit, Split};
pub use still::Still;
pub use stock::{Stock, StockMigration, StockTestbed};
pub use summary::{DiskSummary, NetworkSummary, Rehearsed, Spread, Summary, summarise};
pub use unit::Manager;
pub use wait::wait_until;
