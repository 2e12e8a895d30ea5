use device::lifecycle::{Migratable, Running};

fn migrate<D: Migratable>(running: Running<D>) {
    let _ = running.mark(&mut |_file, _page| {});
}

fn main() {}
