//! The tests of `driver` once more, with an engine whose operations end late and in another order.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers are small, and a test that cuts one off fails"
)]

#[path = "../driver/admin.rs"]
mod admin;
#[path = "../driver/controller.rs"]
mod controller;
#[path = "../driver/disk.rs"]
mod disk;
#[path = "../driver/events.rs"]
mod events;
#[path = "../driver/io.rs"]
mod io;
#[expect(dead_code, reason = "the other tests use all of it")]
#[path = "../driver/late.rs"]
mod late;
#[expect(dead_code, reason = "the other tests use all of it")]
#[path = "../driver/machine.rs"]
mod machine;
#[path = "../driver/migration.rs"]
mod migration;
#[path = "../driver/queue_driver.rs"]
mod queue_driver;
#[path = "../driver/takeover.rs"]
mod takeover;

const LATE: bool = true;
