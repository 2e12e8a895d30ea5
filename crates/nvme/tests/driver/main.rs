//! A small queue driver against the model, in one process: it initialises the controller as
//! Linux's `nvme` was seen to, register by register, and checks what the model promises its guest.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers are small, and a test that cuts one off fails"
)]

mod admin;
mod controller;
mod disk;
mod engines;
mod events;
mod flights;
mod io;
mod late;
mod machine;
mod migration;
mod queue_driver;
mod takeover;
mod turns;

/// Operations end at once; in `driver_late`, with the same tests, they do not.
const LATE: bool = false;
