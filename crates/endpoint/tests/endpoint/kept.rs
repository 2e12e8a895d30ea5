//! What another process finds of an endpoint when this one has died.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;

use keeper::{Journal, KeeperHere};
use rustix::fs::{MemfdFlags, memfd_create};
use vfio_user::Done;

use super::*;

/// A kept endpoint, and what it needs to be gone on with.
struct Kept {
    rig: Rig,
    journal: Arc<Journal>,
    worker: Arc<keeper::Worker>,
    keeper: KeeperHere,
}

impl Kept {
    fn new() -> Self {
        let keeper = KeeperHere::new();
        let worker = Arc::new(keeper.worker().unwrap());
        let journal = Arc::new(Journal::create(endpoint::kept::LIMITS).unwrap());
        let endpoint = Endpoint::new("a", space(), Box::new(Store::default())).unwrap();
        endpoint
            .keep(Arc::clone(&journal), Arc::clone(&worker))
            .unwrap();
        let mut kept = Self {
            rig: Rig::of(endpoint),
            journal,
            worker,
            keeper,
        };
        // What the rig's messages have mapped is in force with this one.
        kept.message(|_| ());
        kept
    }

    /// A message of the VMM, whole.
    fn message(&mut self, act: impl FnOnce(&mut Rig)) {
        self.rig.frontend.begin();
        act(&mut self.rig);
        let done = Done {
            len: 0,
            reply: None,
            agreed: None,
        };
        self.rig.frontend.commit(done).unwrap();
    }

    /// The endpoint of the process after this one, which writes to a copy of what this one has left.
    fn successor(&self) -> Endpoint {
        let journal = copy(&self.journal);
        let mut held = self.keeper.held(&self.worker).unwrap();
        let next = Endpoint::new("a", space(), Box::new(Store::default())).unwrap();
        let (journal, worker) = (Journal::open(journal).unwrap(), Arc::clone(&self.worker));
        next.take_over(Arc::new(journal), worker, &mut held)
            .unwrap();
        next
    }
}

fn copy(journal: &Journal) -> OwnedFd {
    let mut left = File::from(journal.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = Vec::new();
    left.rewind().unwrap();
    left.read_to_end(&mut bytes).unwrap();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("journal", flags).unwrap());
    copy.write_all(&bytes).unwrap();
    let seals = rustix::fs::fcntl_get_seals(&left).unwrap();
    rustix::fs::fcntl_add_seals(&copy, seals).unwrap();
    copy.into()
}

fn vendor(endpoint: &Endpoint) -> u16 {
    let mut bytes = [0; 2];
    let mut frontend = endpoint.frontend();
    frontend.region_read(CONFIG, 0, &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

#[test]
fn a_successor_has_what_the_last_whole_message_left() {
    let mut kept = Kept::new();
    kept.message(|rig| rig.store(7));
    let next = kept.successor();
    let mut bytes = [0; 8];
    next.frontend().region_read(0, 0, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 7);
    assert!(next.is_bus_master());
    let mut frontend = next.frontend();
    frontend.region_write(0, 0, &9u64.to_le_bytes()).unwrap();
    assert_eq!((kept.rig.memory(), kept.rig.interrupts()), (9, 2));
}

#[test]
fn what_the_vmm_did_not_get_for_want_of_room_outlives_the_process() {
    let mut kept = Kept::new();
    assert_eq!(kept.successor().lack(), None);
    kept.message(|rig| rig.frontend.refused(Errno::MFILE));
    assert_eq!(kept.successor().lack(), kept.rig.endpoint.lack());
    assert!(kept.successor().lack().is_some());
    // The next VMM asks anew.
    kept.rig.frontend.disconnected();
    assert_eq!(kept.rig.endpoint.lack(), None);
}

/// So whoever asks for the turn again and again tells that no message hangs.
#[test]
fn nobody_has_a_turn_before_a_message_has_come_to_its_end() {
    let mut kept = Kept::new();
    let (had, has_had) = std::sync::mpsc::channel();
    let endpoint = kept.rig.endpoint.clone();
    let ask = move || {
        endpoint.wait_for_turn();
        had.send(()).unwrap();
    };
    let mut asking = None;
    kept.message(|_| {
        asking = Some(std::thread::spawn(ask));
        let early = has_had.recv_timeout(std::time::Duration::from_millis(50));
        assert!(early.is_err(), "the message is under way");
    });
    has_had.recv().unwrap();
    asking.unwrap().join().unwrap();
    // Whoever has had it has given it back.
    kept.message(|_| ());
}

#[test]
fn what_a_function_waits_for_outlives_the_process_until_it_has_been_programmed() {
    let mut kept = Kept::new();
    let endpoint = kept.rig.endpoint.clone();
    assert_eq!(kept.successor().programme(), None);

    endpoint.leave_at_reset("this".into());
    let next = kept.successor();
    assert!(!next.has_left());
    assert_eq!(next.programme(), Some("this".into()));

    kept.message(|rig| rig.frontend.reset().unwrap());
    let next = kept.successor();
    assert!(next.has_left());
    assert_eq!(vendor(&next), 0xffff);

    // Not programmed yet, or half.
    endpoint.answer();
    assert_eq!(vendor(&endpoint), IDENTITY.vendor);
    for _ in 0..2 {
        let next = kept.successor();
        assert!(next.has_left());
        assert_eq!(next.programme(), Some("this".into()));
        kept.message(|rig| rig.command(2));
    }

    endpoint.appear();
    let next = kept.successor();
    assert_eq!((next.has_left(), next.programme()), (false, None));
    assert_eq!(vendor(&next), IDENTITY.vendor);
}
