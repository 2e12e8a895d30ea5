use device::lifecycle::{Halted, Migratable};

fn migrate<D: Migratable>(halted: Halted<D>, carry: &D::Carry) {
    let _ = halted.save(carry);
}

fn main() {}
