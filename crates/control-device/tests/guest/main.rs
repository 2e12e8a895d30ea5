//! Both sides of the control device against each other in one process: the host's handle, and a
//! guest that behaves or does not.

mod driver;
mod hostile;
mod machine;
mod migration;
mod protocol;
mod registers;
