//! What an `NVMe` controller looks like from the outside: numbers and typed views of them, no
//! behaviour.
//!
//! Sections are those of the *NVM Express Base Specification*, revision 1.4: 3.1 registers, 4
//! memory structures, 5 admin commands, 6 NVM commands, 7 controller architecture. The names are
//! the specification's.

pub mod commands;
pub mod features;
pub mod identify;
pub mod logs;
pub mod pci;
pub mod registers;
pub mod status;
