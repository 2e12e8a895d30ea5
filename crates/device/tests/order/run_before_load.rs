use device::lifecycle::{Halted, Migratable};

fn migrate<D: Migratable>(waiting: Halted<D>) {
    let _ = waiting.run();
}

fn main() {}
