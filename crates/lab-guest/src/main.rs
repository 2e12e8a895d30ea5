//! What runs inside the lab guest.
fn main() {}
