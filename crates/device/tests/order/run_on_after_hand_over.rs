use device::lifecycle::{Marked, Migratable};

fn migrate<D: Migratable>(marked: Marked<D>) {
    let _gone = marked.hand_over("m1");
    let _here = marked.resume();
}

fn main() {}
