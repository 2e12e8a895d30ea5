//! The vferry command.
fn main() {}
