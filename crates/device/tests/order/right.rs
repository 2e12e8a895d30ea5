use device::lifecycle::{HandedOver, Migratable, Running};

fn migrate<D: Migratable>(running: Running<D>, carry: &D::Carry) -> Option<(D::State, HandedOver<D>)> {
    let marked = running.halt().ok()?.mark(&mut |_file, _page| {}).ok()?;
    let state = marked.save(carry).ok()?;
    Some((state, marked.hand_over("m1").ok()?))
}

fn main() {}
