//! Two devices of one VM: what only one host may have is let go of and taken for both or for
//! neither, whichever of them fails, and what a guest was told goes along with each.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use device::lifecycle::{Halted, Marked, Running};
use device::{Access, Claim, Model, Progress, Reset, State, StateError, StateRecord};
use endpoint::{Carry, Endpoint, Endpoints};
use pci::ConfigSpace;
use serde::{Deserialize, Serialize};

use crate::IDENTITY;

/// One host's device, seen from beside it.
#[derive(Clone, Default)]
struct Device(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    has_it: bool,
    fails: bool,
    heard: Vec<Vec<u8>>,
    told_again: bool,
}

#[derive(Serialize, Deserialize)]
struct Nothing;

impl State for Nothing {
    const NAME: &'static str = "nothing";
    const VERSION: u32 = 1;
}

impl Device {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    fn set(&self, has_it: bool) -> io::Result<()> {
        let mut seen = self.seen();
        if seen.fails {
            return Err(io::Error::other("it fails"));
        }
        seen.has_it = has_it;
        Ok(())
    }
}

impl Model for Device {
    fn read(&mut self, _: u8, _: u64, _: &mut [u8], _: &Access<'_>) {}

    fn write(&mut self, _: u8, _: u64, _: &[u8], _: &Access<'_>) {}

    fn reset(&mut self, _: Reset) {}

    fn poll(&mut self, _: &Access<'_>) -> Progress {
        Progress::Idle(None)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn acquire(&mut self, _: Claim<'_>) -> io::Result<()> {
        self.set(true)
    }

    fn release(&mut self, _: &str) -> io::Result<()> {
        self.set(false)
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        StateRecord::pack(&Nothing)
    }

    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        record.unpack::<Nothing>().map(drop)
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.seen().heard.clone()
    }

    fn remember(&mut self, heard: &[Vec<u8>], again: bool) {
        let mut seen = self.seen();
        seen.heard = heard.to_vec();
        seen.told_again = again;
    }

    fn resume(&mut self, _: &Access<'_>) {}
}

/// A VM's two devices on one host.
fn host() -> ([Device; 2], Endpoints) {
    let devices = [Device::default(), Device::default()];
    let endpoints = ["a", "b"].iter().zip(&devices).map(|(name, device)| {
        let space = ConfigSpace::builder(IDENTITY).build();
        Endpoint::new(name, space, Box::new(device.clone())).unwrap()
    });
    let endpoints = Endpoints(endpoints.collect());
    (devices, endpoints)
}

/// The source's, at the end of its part.
fn marked(endpoints: Endpoints) -> Marked<Endpoints> {
    let halted = Running::new(endpoints).halt().unwrap();
    halted.mark(&mut |_, _| {}).unwrap()
}

fn have_it(devices: &[Device; 2]) -> [bool; 2] {
    [0, 1].map(|index| devices[index].seen().has_it)
}

#[test]
fn a_source_whose_one_device_cannot_let_go_keeps_both() {
    for failing in 0..2 {
        let (devices, endpoints) = host();
        for device in &devices {
            device.seen().has_it = true;
        }
        let marked = marked(endpoints);
        devices[failing].seen().fails = true;
        let failed = marked.hand_over("m1").unwrap_err();
        assert!(failed.error.to_string().contains("it fails"));
        assert_eq!(have_it(&devices), [true, true], "{failing} fails");
    }
}

#[test]
fn a_destination_whose_one_device_gets_nothing_leaves_both() {
    for failing in 0..2 {
        let (_, endpoints) = host();
        let marked = marked(endpoints);
        let state = marked.save(&Vec::new()).unwrap();
        let (devices, endpoints) = host();
        let arrived = Halted::waiting(endpoints).unwrap().load(state).unwrap();
        devices[failing].seen().fails = true;
        let failed = arrived.claim("m1").unwrap_err();
        assert!(failed.error.to_string().contains("it fails"));
        assert_eq!(have_it(&devices), [false, false], "{failing} fails");
    }
}

#[test]
fn what_a_guest_was_told_goes_along_and_is_said_again_of_a_fresh_device_only() {
    let (devices, endpoints) = host();
    for (name, device) in (0..).zip(&devices) {
        device.seen().heard = vec![vec![name]];
    }
    let marked = marked(endpoints);
    let carry = vec![Carry::State, Carry::Configuration];
    let state = marked.save(&carry).unwrap();
    let (there, endpoints) = host();
    let _arrived = Halted::waiting(endpoints).unwrap().load(state).unwrap();
    for (index, device) in there.iter().enumerate() {
        let seen = device.seen();
        assert_eq!(seen.heard, devices[index].seen().heard);
        assert_eq!(seen.told_again, index == 1);
    }
}
