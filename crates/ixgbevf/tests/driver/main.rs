//! A small ring driver against the model, in one process: it initialises the function as Linux's
//! `ixgbevf` was seen to, register by register, and checks what the model promises its guest.

#![expect(
    clippy::cast_possible_truncation,
    clippy::decimal_bitwise_operands,
    reason = "the numbers are small, and lengths are decimal in the driver too"
)]

mod frames;
mod hostile;
mod interrupts;
mod machine;
mod migration;
mod offload;
mod probe;
mod receive;
mod ring_driver;
mod takeover;
mod transmit;
