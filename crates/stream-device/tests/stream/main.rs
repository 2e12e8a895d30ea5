//! A driver against the device, in one process.

mod channels;
mod machine;
mod migration;
mod registers;
