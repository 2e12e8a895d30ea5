//! Register accesses allocate nothing: counted, not read off the code.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use vfio_user::frame::Framer;
use vfio_user::session::Outcome;
use vfio_user::{
    Backend, Client, DmaMap, DmaUnmap, Errno, IrqInfo, IrqSet, MAX_MESSAGE, Negotiated, Region,
    Session,
};

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

struct Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Register([u8; 4]);

impl Backend for Register {
    fn region_info(&self, index: u32) -> Option<Region> {
        (index == 0).then(|| Region::trapped(4096))
    }
    fn irq_info(&self, _: u32) -> IrqInfo {
        IrqInfo::default()
    }
    fn region_read(&mut self, _: u32, _: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.copy_from_slice(&self.0);
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, data: &[u8]) -> Result<(), Errno> {
        self.0.copy_from_slice(data);
        Ok(())
    }
    fn dma_map(&mut self, _: DmaMap, _: Option<std::os::fd::OwnedFd>) -> Result<(), Errno> {
        Ok(())
    }
    fn dma_unmap(&mut self, _: DmaUnmap) -> Result<(), Errno> {
        Ok(())
    }
    fn set_irqs(&mut self, _: IrqSet<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn reset(&mut self) -> Result<(), Errno> {
        Ok(())
    }
    fn connected(&mut self, _: Client) {}
    fn disconnected(&mut self) {}
}

fn access(command: u16, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(32 + data.len()).unwrap().to_le_bytes();
    let [id, command] = [1, command].map(u16::to_le_bytes);
    let head = [&id[..], &command, &size, &[0; 8]].concat();
    [&head[..], &[0; 8], &[0; 4], &4u32.to_le_bytes(), data].concat()
}

#[test]
fn register_accesses_allocate_nothing_once_warm() {
    let negotiated = Negotiated {
        max_data_xfer_size: 1 << 20,
        client_max_msg_fds: 16,
        write_multiple: true,
    };
    let mut session = Session::resume(negotiated);
    let mut framer = Framer::new(MAX_MESSAGE);
    let mut device = Register([0; 4]);
    let accesses = [access(10, &[1, 2, 3, 4]), access(9, &[])].concat();
    let mut allocations = vec![];
    for _ in 0..3 {
        let before = ALLOCATIONS.get();
        for _ in 0..100 {
            framer.space()[..accesses.len()].copy_from_slice(&accesses);
            framer.received(accesses.len(), Vec::new(), false);
            for len in [32, 36] {
                let answer = session.answer(framer.find(), &mut device).unwrap();
                assert_eq!(answer.outcome, Outcome::Done);
                assert_eq!(answer.reply.unwrap().bytes.len(), len);
            }
        }
        allocations.push(ALLOCATIONS.get() - before);
    }
    assert_eq!(allocations[1..], [0, 0]);
}
