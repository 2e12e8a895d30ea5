//! A guest that mounts the file system, and a guest that writes nonsense into the rings.

mod common;

use std::os::unix::fs::FileExt;
use std::time::Instant;

use common::{AVAILABLE, DESCRIPTORS, Event, PATIENCE, Qemu, RING_SIZE, Script, Served, USED};
use proptest::prelude::*;
use sidecar::LogStart;
use vhost::VhostBackend;

const REQUEST: u64 = 0x4000;
const REPLY: u64 = 0x5ff8;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;
const FUSE_FORGET: u32 = 2;
const FUSE_INIT: u32 = 26;

impl Guest<'_> {
    fn write(&self, at: u64, bytes: &[u8]) {
        let memory = &self.0.memory;
        memory.write_all_at(bytes, at).expect("inside the memory");
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = &self.0.memory;
        memory.read_exact_at(&mut bytes, at).expect("inside");
        bytes
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut entry = address.to_le_bytes().to_vec();
        entry.extend(len.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend(next.to_le_bytes());
        self.write(DESCRIPTORS + 16 * u64::from(index), &entry);
    }

    /// Puts a request of 40 bytes with room for a reply into the ring, as number `n`.
    fn ask(&self, n: u16, opcode: u32) {
        let mut header = 40u32.to_le_bytes().to_vec();
        header.extend(opcode.to_le_bytes());
        header.extend(0x1122_3344_5566_7788_u64.to_le_bytes());
        header.resize(40, 0);
        self.write(REQUEST, &header);
        // Both are cut in two, the reply across a page boundary.
        self.descriptor(0, REQUEST, 3, NEXT, 1);
        self.descriptor(1, REQUEST + 3, 37, NEXT, 2);
        self.descriptor(2, REPLY, 10, NEXT | WRITABLE, 3);
        self.descriptor(3, REPLY + 10, 100, WRITABLE, 0);
        self.offer(n);
    }

    fn offer(&self, n: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(n % RING_SIZE), &[0, 0]);
        self.write(AVAILABLE + 2, &(n + 1).to_le_bytes());
        self.0.kick.write(1).expect("an eventfd");
    }

    /// Waits for the used index to become `n`.
    #[track_caller]
    fn wait_used(&self, n: u16) {
        let start = Instant::now();
        while u16::from_le_bytes(self.read(USED + 2)) != n {
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::yield_now();
        }
    }
}

struct Guest<'q>(&'q Qemu);

#[test]
fn every_request_gets_an_error_and_its_pages_are_marked() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    Guest(&qemu).ask(0, FUSE_INIT);
    Guest(&qemu).wait_used(1);

    let guest = Guest(&qemu);
    let (length, error): ([u8; 4], [u8; 4]) = (guest.read(REPLY), guest.read(REPLY + 4));
    assert_eq!(u32::from_le_bytes(length), 16);
    assert_eq!(i32::from_le_bytes(error), -5);
    assert_eq!(
        u64::from_le_bytes(guest.read(REPLY + 8)),
        0x1122_3344_5566_7788
    );
    assert_eq!(u32::from_le_bytes(guest.read(USED + 8)), 16);
    // The interrupt comes after the used index.
    let start = Instant::now();
    while qemu.call.read().is_err() {
        assert!(start.elapsed() < PATIENCE, "no interrupt");
    }

    let log = qemu.open_log(256);
    served.expect(&[Event::LogStarted(LogStart::Fresh)]);
    Guest(&qemu).ask(1, FUSE_INIT);
    Guest(&qemu).wait_used(2);
    // The stop comes behind the marking in the same thread.
    assert_eq!(qemu.front.get_vring_base(1).expect("a ring"), 2);
    assert_eq!(log.pages(), [USED >> 12, REPLY >> 12, (REPLY + 15) >> 12]);
}

#[test]
fn a_request_without_a_reply_gets_none() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    Guest(&qemu).ask(0, FUSE_FORGET);
    Guest(&qemu).wait_used(1);
    assert_eq!(Guest(&qemu).read(REPLY), [0; 16]);
    assert_eq!(Guest(&qemu).read(USED + 8), [0; 4]);
}

#[test]
fn a_request_that_waited_for_the_start_needs_no_kick() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.prepare(false);
    Guest(&qemu).ask(0, FUSE_INIT);
    qemu.kick.read().expect("the kick is taken back");
    qemu.enable(true);
    Guest(&qemu).wait_used(1);
}

#[test]
fn a_stopped_ring_is_left_alone_until_the_restart() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    qemu.enable(false);
    Guest(&qemu).ask(0, FUSE_INIT);
    // An answer to QEMU shows that the loop came by again.
    assert_eq!(qemu.front.get_vring_base(1).expect("a ring"), 0);
    assert_eq!(Guest(&qemu).read(USED + 2), [0, 0]);
    qemu.start();
    Guest(&qemu).wait_used(1);
}

#[test]
fn a_guest_that_breaks_the_ring_hurts_only_itself() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    // More requests than the ring holds.
    Guest(&qemu).write(AVAILABLE + 2, &1000u16.to_le_bytes());
    qemu.kick.write(1).expect("an eventfd");
    qemu.stop();
    assert_eq!(Guest(&qemu).read(USED + 2), [0, 0]);
    Guest(&qemu).write(AVAILABLE + 2, &[0, 0]);
    // Set up again, it works again; a request whose buffers are nowhere is used up unanswered.
    qemu.start();
    let guest = Guest(&qemu);
    guest.descriptor(0, u64::MAX - 4, 40, NEXT, 1);
    guest.descriptor(1, 1 << 50, 100, WRITABLE, 0);
    guest.offer(0);
    guest.wait_used(1);
    guest.descriptor(0, REQUEST, 40, NEXT, 0);
    guest.offer(1);
    guest.wait_used(2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the guest writes into ring and descriptors, QEMU's next message is answered and
    /// nothing outside of the guest's memory is touched.
    #[test]
    fn nonsense_in_the_rings_is_survived(
        rings in proptest::collection::vec(any::<u8>(), 0x3000),
        count in 0..=RING_SIZE,
        next in 0u16..4,
    ) {
        let served = Served::new(Script::default());
        let mut qemu = served.qemu();
        qemu.start();
        Guest(&qemu).write(DESCRIPTORS, &rings);
        for index in 0..RING_SIZE {
            // Plausible heads and links, so that not all ends at the first check.
            let at = AVAILABLE + 4 + 2 * u64::from(index);
            Guest(&qemu).write(at, &(index % 4).to_le_bytes());
            let descriptor = DESCRIPTORS + 16 * u64::from(index);
            Guest(&qemu).write(descriptor + 2, &[0; 6]);
            Guest(&qemu).write(descriptor + 14, &next.to_le_bytes());
        }
        Guest(&qemu).write(AVAILABLE + 2, &count.to_le_bytes());
        qemu.kick.write(1).expect("an eventfd");
        qemu.front.set_owner().expect("QEMU is answered");
        qemu.stop();
        qemu.start();
    }
}
