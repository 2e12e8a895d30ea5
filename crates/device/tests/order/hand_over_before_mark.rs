use device::lifecycle::{Halted, Migratable};

fn migrate<D: Migratable>(halted: Halted<D>) {
    let _ = halted.hand_over("m1");
}

fn main() {}
