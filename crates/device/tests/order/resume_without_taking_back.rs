use device::lifecycle::{HandedOver, Migratable};

fn migrate<D: Migratable>(gone: HandedOver<D>) {
    let _ = gone.resume();
}

fn main() {}
