//! What the 82599's virtual function looks like from the outside: numbers and typed views of
//! them, no behaviour.
//!
//! Sections are those of Intel's *82599 10 Gigabit Ethernet Controller Datasheet*: 7.1 receive, 7.2
//! transmit, 7.3 interrupts, 7.10 virtualization and mailbox, 8.3 registers of a virtual function.
//! The names are the datasheet's; where Linux's `ixgbevf` driver has another one (`defines.h`,
//! `mbx.h`, `regs.h`), it is given too.

pub mod descriptors;
pub mod mailbox;
pub mod pci;
pub mod registers;
