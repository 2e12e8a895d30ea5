//! A function against a kernel that has what no lab has.

mod halt;
mod log;
mod migration;

use std::fs::File;
use std::io;

use ::device::lifecycle::Migratable;
use endpoint::{Endpoint, Endpoints};
use vfio_user::{Backend, DmaMap, DmaUnmap};

use crate::device::Passthrough;
use crate::fake::{Fake, Has};

/// A VM's memory and its one device.
struct Vm {
    fake: Fake,
    endpoints: Endpoints,
    memory: File,
}

const PAGE: u64 = 4096;
/// Of memory.
const PAGES: u64 = 100;

impl Vm {
    fn new(has: Has) -> Self {
        let fake = Fake::new(has);
        let (space, model) = fake.open().unwrap();
        let endpoint = Endpoint::new("net0", space, Box::new(model)).unwrap();
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(2 * PAGES * PAGE).unwrap();
        Self {
            fake,
            endpoints: Endpoints(vec![endpoint]),
            memory,
        }
    }

    /// With memory, and its driver has made the function bus master.
    fn running(has: Has) -> Self {
        let vm = Self::new(has);
        vm.map(0, PAGES);
        vm.set_bus_master(true);
        vm
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoints.0[0]
    }

    fn map(&self, page: u64, pages: u64) {
        self.map_to(page, pages, true);
    }

    /// What the device may write, or only read.
    fn map_to(&self, page: u64, pages: u64, writable: bool) {
        let map = DmaMap {
            iova: page * PAGE,
            size: pages * PAGE,
            offset: page % PAGES * PAGE,
            readable: true,
            writable,
        };
        let file = self.memory.try_clone().unwrap();
        self.take(map, file).unwrap();
    }

    fn take(&self, map: DmaMap, file: File) -> io::Result<()> {
        let taken = self.endpoint().frontend().dma_map(map, Some(file.into()));
        taken.map_err(io::Error::other)
    }

    fn unmap(&self, page: u64, pages: u64) {
        let (iova, size) = (page * PAGE, pages * PAGE);
        let unmap = DmaUnmap::Range { iova, size };
        self.endpoint().frontend().dma_unmap(unmap).unwrap();
    }

    fn set_bus_master(&self, on: bool) {
        let command = [if on { 6 } else { 2 }, 0];
        self.endpoint()
            .frontend()
            .region_write(7, 4, &command)
            .unwrap();
    }

    /// The pages that are marked now, while the VM may run.
    fn mark(&self) -> Result<Vec<u64>, String> {
        let mut pages = Vec::new();
        let marked = self.endpoints.clone().mark(&mut |_, page| pages.push(page));
        marked.map(|()| pages).map_err(|error| error.to_string())
    }
}

fn opened(has: Has) -> (Fake, Passthrough) {
    let fake = Fake::new(has);
    let (_, function) = fake.open().unwrap();
    (fake, function)
}
