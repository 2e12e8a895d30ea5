//! What a VMM and its guest send.

use std::os::fd::OwnedFd;

use device::lifecycle::Migratable;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user::MAX_MESSAGE;
use vfio_user::wire::{HEADER_LEN, command, device as wire, flags};

use crate::function;

/// Length of the one file of guest memory, in bytes.
const MEMORY: u64 = 64 << 10;

/// vfio-user messages, as they lie on the wire, to an endpoint. Descriptors go with them as QEMU
/// would send them, unless the upper byte of a message's id, less one, says how many.
///
/// # Panics
/// When what is sent back is no whole reply, when memory stays mapped after the client is gone, or
/// when the state that the function was left in does not load.
pub fn vfio_user(data: &[u8]) {
    let memory = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a descriptor is left");
    ftruncate(&memory, MEMORY).expect("a new file can be lengthened");
    let endpoints = function::endpoints();
    let endpoint = &endpoints.0[0];
    let mut sent = Vec::new();
    let messages = messages(data).map(|message| (message, descriptors(message, &memory)));
    // A violation is what most inputs are.
    let _ = vfio_user::session::replay(messages, &mut endpoint.frontend(), &mut sent);
    assert_whole_replies(&sent);
    assert!(endpoint.bus().memory_files().is_empty(), "memory is held");
    let state = endpoints
        .save(&Vec::new())
        .expect("every state can be saved");
    let mut successor = function::endpoints();
    successor.load(state.clone()).expect("what was saved loads");
    assert_eq!(
        successor
            .save(&Vec::new())
            .expect("every state can be saved"),
        state
    );
    successor.restart();
}

/// Cuts a stream where one message ends and the next begins.
fn messages(mut stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if stream.is_empty() {
            return None;
        }
        let size = usize::try_from(word(stream, 4)).unwrap_or(usize::MAX);
        let (message, rest) = stream.split_at(size.max(HEADER_LEN).min(stream.len()));
        stream = rest;
        Some(message)
    })
}

fn descriptors(message: &[u8], memory: &OwnedFd) -> Vec<OwnedFd> {
    let [_, chosen, low, high] = word(message, 0).to_le_bytes();
    let number = u16::from_le_bytes([low, high]);
    let connects = word(message, HEADER_LEN + 4) & wire::SET_DATA_EVENTFD != 0;
    let count = match (chosen, number) {
        (0, command::DMA_MAP) => 1,
        (0, command::DEVICE_SET_IRQS) if connects => word(message, HEADER_LEN + 16).min(16),
        (0, _) => 0,
        (more, _) => u32::from(more - 1) % 20,
    };
    let signals = number == command::DEVICE_SET_IRQS;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    (0..count)
        .filter_map(|position| {
            // One of the wrong kind among many.
            if signals == (position != 3) {
                eventfd(0, flags).ok()
            } else {
                memory.try_clone().ok()
            }
        })
        .collect()
}

fn assert_whole_replies(mut sent: &[u8]) {
    while !sent.is_empty() {
        let size = usize::try_from(word(sent, 4)).expect("32 bits fit");
        assert!((HEADER_LEN..=MAX_MESSAGE).contains(&size), "{size} bytes");
        let error = match word(sent, 8) {
            flags::REPLY => 0..=0,
            kind => {
                assert_eq!(kind, flags::REPLY | flags::ERROR);
                assert_eq!(size, HEADER_LEN, "a refusal with a body");
                1..=4095
            }
        };
        assert!(error.contains(&word(sent, 12)), "errno {}", word(sent, 12));
        sent = sent.get(size..).expect("a reply that was cut short");
    }
}

/// The word at `at`; what lies past the end is zero.
fn word(bytes: &[u8], at: usize) -> u32 {
    let rest = bytes.get(at..).unwrap_or_default();
    let mut word = [0; 4];
    let len = rest.len().min(4);
    word[..len].copy_from_slice(&rest[..len]);
    u32::from_ne_bytes(word)
}

/// vhost-user messages, as they lie on the wire, to the sidecar.
pub fn vhost_user(data: &[u8]) {
    sidecar::fuzz::converse(data);
}

/// See [`ixgbevf::fuzz::run`].
pub fn ixgbevf(data: &[u8]) {
    ixgbevf::fuzz::run(data);
}

/// See [`nvme::fuzz::run`].
pub fn nvme(data: &[u8]) {
    nvme::fuzz::run(data);
}

/// See [`stream_device::fuzz::run`].
pub fn stream(data: &[u8]) {
    stream_device::fuzz::run(data);
}

/// Writes to configuration space: offset (16 bits), length (modulo 9), bytes.
///
/// # Panics
/// When a write changes what cannot be written, when the image that is saved does not load, or when
/// the restore plan leads elsewhere.
pub fn config_space(mut data: &[u8]) {
    let mut space = function::config_space();
    let mut identity = [0; 4];
    space.read(0, &mut identity);
    while let [low, high, len, rest @ ..] = data {
        let offset = u16::from_le_bytes([*low, *high]);
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len) % 9));
        space.write(offset.into(), bytes);
        let mut shown = [0; 8];
        space.read(offset.into(), &mut shown[..bytes.len()]);
        data = rest;
    }
    let mut still = [0; 4];
    space.read(0, &mut still);
    assert_eq!(still, identity);

    let image = space.save();
    let mut copy = function::config_space();
    copy.load(&image).expect("what was saved loads");
    assert_eq!(copy.save(), image);

    let mut restored = function::config_space();
    for step in pci::restore::plan(&space, true) {
        if let pci::restore::Step::Config(write) = step {
            let bytes = write.value.to_le_bytes();
            let change = restored.write(write.offset.into(), &bytes[..write.size.into()]);
            assert!(!change.function_reset, "the plan resets the function");
        }
    }
    assert_eq!(restored.save(), image);
}
