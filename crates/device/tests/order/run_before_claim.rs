use device::lifecycle::{Arrived, Migratable};

fn migrate<D: Migratable>(arrived: Arrived<D>) {
    let _ = arrived.run();
}

fn main() {}
