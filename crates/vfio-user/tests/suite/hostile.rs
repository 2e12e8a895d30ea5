//! Clients that mean no good, or are broken.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use proptest::collection::vec;
use proptest::prelude::*;
use vfio_user::frame::Framer;
use vfio_user::session::{Outcome, Session, replay};
use vfio_user::{Ended, Errno, MAX_MESSAGE, Options, Violation};

use crate::device::{BAR0, Device};
use crate::peer::{self, NO_REPLY, Peer, Served, borrowed, eventfds, header, message};
use crate::peer::{proposal, u32s, u64s};

fn assert_alive(peer: &mut Peer) {
    assert_eq!(peer.ask(peer::RESET, &[]), Ok(vec![]));
}

#[test]
fn a_message_shorter_than_its_header_is_refused_and_ends_the_connection() {
    for size in [0, 15] {
        let (served, peer) = Served::start(Device::default());
        peer.send(&header(0xbad1, peer::SET_IRQS, size, 0), &[])
            .unwrap();
        let reply = peer.receive().unwrap();
        assert_eq!(reply.id, 0xbad1);
        assert_eq!(reply.result(), Err(Errno::INVAL));
        assert!(peer.receive().is_none());
        assert_eq!(served.end().1, Err(Violation::TooShort(size).into()));
    }
}

#[test]
fn a_message_that_is_too_long_is_refused_at_once_and_dropped() {
    let (_served, mut peer) = Served::start(Device::default());
    let size = MAX_MESSAGE + 1;
    let head = header(0xbad1, peer::REGION_WRITE, u32::try_from(size).unwrap(), 0);
    peer.send(&head, &[]).unwrap();
    let reply = peer.receive().expect("an answer before the body has come");
    assert_eq!(reply.id, 0xbad1);
    assert_eq!(reply.result(), Err(Errno::INVAL));
    let fds = eventfds(2);
    peer.send(&vec![0xff; size - 16], &borrowed(&fds)).unwrap();
    assert_alive(&mut peer);
}

#[test]
fn the_longest_message_is_taken() {
    let (_served, mut peer) = Served::start(Device::default());
    let data = vec![0; 1 << 20];
    let body = [u64s(&[0]), u32s(&[BAR0, 1 << 20]), data].concat();
    assert_eq!(body.len(), MAX_MESSAGE - 16);
    // Longer than the region, which is the device's answer, not the framing's.
    assert_eq!(peer.ask(peer::REGION_WRITE, &body), Err(Errno::INVAL));
    assert_alive(&mut peer);
}

#[test]
fn replies_that_nobody_asked_for_are_dropped() {
    // libvfio-user answers EINVAL. A reply to a reply helps nobody, and a late reply is honest.
    let (_served, mut peer) = Served::start(Device::default());
    peer.send(&message(0xbad2, peer::SET_IRQS, peer::REPLY, &[]), &[])
        .unwrap();
    peer.send(&message(0xbad3, peer::DMA_READ, peer::REPLY, &[1; 99]), &[])
        .unwrap();
    assert_alive(&mut peer);
}

#[test]
fn a_message_that_is_neither_command_nor_reply_is_refused() {
    let (_served, mut peer) = Served::start(Device::default());
    peer.send(&message(5, peer::RESET, 2, &[]), &[]).unwrap();
    assert_eq!(peer.receive().unwrap().result(), Err(Errno::INVAL));
    assert_alive(&mut peer);
}

#[test]
fn what_wants_no_reply_gets_none_not_even_an_error() {
    let (served, mut peer) = Served::start(Device::default());
    let write = [u64s(&[8]), u32s(&[BAR0, 4]), vec![1, 2, 3, 4]].concat();
    peer.send(&message(1, peer::REGION_WRITE, NO_REPLY, &write), &[])
        .unwrap();
    peer.send(&message(2, peer::REGION_WRITE, NO_REPLY, &write[..9]), &[])
        .unwrap();
    peer.send(&message(3, 4711, NO_REPLY, &[]), &[]).unwrap();
    assert_alive(&mut peer);
    drop(peer);
    assert_eq!(served.end().0.registers[&(BAR0, 8)], [1, 2, 3, 4]);
}

#[test]
fn nothing_is_answered_before_a_version() {
    let (served, mut peer) = Served::start_raw(Device::default(), Options::default());
    assert_eq!(
        peer.ask(peer::GET_INFO, &u32s(&[16, 0, 0, 0])),
        Err(Errno::INVAL)
    );
    assert!(peer.receive().is_none());
    let violation = Violation::NotNegotiated(peer::GET_INFO);
    assert_eq!(served.end().1, Err(violation.into()));
}

fn open_descriptors() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = entries.map(|e| e.unwrap().path());
    let targets = names.filter_map(|path| std::fs::read_link(path).ok());
    targets.map(|t| t.to_string_lossy().into_owned()).collect()
}

/// A file that is told apart from all others in `/proc/self/fd`.
fn marked(name: &str) -> OwnedFd {
    rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let (_served, mut peer) = Served::start(Device::default());
    let name = "unwanted-descriptor";
    let fds: Vec<_> = (0..200).map(|_| marked(name)).collect();
    let read = [u64s(&[0]), u32s(&[BAR0, 4])].concat();
    let reply = peer.call(peer::REGION_READ, &read, &borrowed(&fds));
    assert!(reply.result().is_ok());
    let map = [u32s(&[32, 3]), u64s(&[0, 0, 4096])].concat();
    let reply = peer.call(peer::DMA_MAP, &map, &borrowed(&fds[..2]));
    assert_eq!(reply.result(), Err(Errno::INVAL), "one at most");
    let reply = peer.call(4711, &[], &borrowed(&fds[..1]));
    assert_eq!(reply.result(), Err(Errno::INVAL));
    drop(fds);
    assert_alive(&mut peer);
    let open = open_descriptors();
    assert!(!open.iter().any(|target| target.contains(name)), "{open:?}");
}

#[test]
fn a_command_whose_descriptors_were_lost_is_not_taken_for_one_without() {
    let mut framer = Framer::new(MAX_MESSAGE);
    let mut session = Session::new();
    let mut device = Device::default();
    let map = [u32s(&[32, 3]), u64s(&[0, 0, 4096])].concat();
    let version = message(1, peer::VERSION, 0, &proposal());
    for (message, lost) in [(version, false), (message(2, peer::DMA_MAP, 0, &map), true)] {
        framer.space()[..message.len()].copy_from_slice(&message);
        framer.received(message.len(), vec![], lost);
        let answer = session.answer(framer.find(), &mut device).unwrap();
        let (command, errno) = (peer::DMA_MAP, Errno::MFILE);
        let failed = answer.outcome == Outcome::Failed { command, errno };
        assert_eq!(failed, lost);
    }
    assert_eq!(device.log, [""; 0]);
}

#[test]
fn mappings_are_counted() {
    let mut device = Device::default();
    let maps = (0..=vfio_user::MAX_DMA_MAPS as u64).map(|i| {
        let body = [u32s(&[32, 3]), u64s(&[0, i << 12, 4096])].concat();
        message(1, peer::DMA_MAP, 0, &body)
    });
    let stream: Vec<u8> = [message(0, peer::VERSION, 0, &proposal())]
        .into_iter()
        .chain(maps)
        .flatten()
        .collect();
    let mut sent = vec![];
    replay([(&stream[..], vec![])], &mut device, &mut sent).unwrap();
    let last: [u8; 16] = sent[sent.len() - 16..].try_into().unwrap();
    let before: [u8; 16] = sent[sent.len() - 32..sent.len() - 16].try_into().unwrap();
    assert_eq!(before[12..], [0; 4]);
    assert_eq!(last[12..], u32s(&[28]), "ENOSPC");
}

/// A message that may be anything from honest to absurd.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![0u16..20, any::<u16>()];
    let small = prop_oneof![0u32..64, any::<u32>(), Just(4096), Just(1 << 20)];
    let word = small.prop_map(|v| v.to_le_bytes().to_vec());
    let body = prop_oneof![
        vec(word, 0..12).prop_map(|words| words.concat()),
        vec(any::<u8>(), 0..100),
    ];
    let flags = prop_oneof![8 => Just(0), 1 => Just(NO_REPLY), 1 => any::<u32>()];
    let lie = prop_oneof![9 => Just(0i64), 1 => -40i64..40, 1 => Just(1 << 21)];
    (any::<u16>(), command, body, flags, lie).prop_map(|(id, command, body, flags, lie)| {
        let size = 16 + i64::try_from(body.len()).unwrap() + lie;
        let size = u32::try_from(size.max(0)).unwrap();
        [header(id, command, size, flags), body].concat()
    })
}

/// The ids of the replies in `sent`, which must be whole messages.
fn reply_ids(mut sent: &[u8]) -> Vec<u16> {
    let mut ids = vec![];
    while !sent.is_empty() {
        let word = |at: usize| u32::from_le_bytes(sent[at..at + 4].try_into().unwrap());
        let (size, flags, errno) = (word(4) as usize, word(8), word(12));
        assert!(size <= MAX_MESSAGE);
        if flags == peer::REPLY {
            assert_eq!(errno, 0);
        } else {
            assert_eq!(flags, peer::REPLY | peer::ERROR);
            assert!(errno != 0 && size == 16);
        }
        ids.push(u16::from_le_bytes([sent[0], sent[1]]));
        sent = &sent[size..];
    }
    ids
}

/// The ids that a client that keeps to the framing would wait for: what the stream says, read
/// without the crate. Ends where the stream does, or cannot be read on.
fn awaited_ids(mut stream: &[u8]) -> Vec<u16> {
    let mut ids = vec![];
    while stream.len() >= 16 {
        let word = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap());
        let (size, flags) = (word(4) as usize, word(8));
        let whole = stream.len() >= size || size > MAX_MESSAGE;
        if whole && flags & 0xf != 1 && flags & NO_REPLY == 0 {
            ids.push(u16::from_le_bytes([stream[0], stream[1]]));
        }
        if size < 16 || stream.len() < size {
            break;
        }
        stream = &stream[size..];
    }
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_command_gets_exactly_one_reply(
        messages in vec(any_message(), 0..12),
        cuts in vec(1usize..200, 0..8),
        fd_counts in vec(0usize..20, 0..8),
    ) {
        let first = message(0, peer::VERSION, 0, &proposal());
        let stream = [vec![first], messages].concat().concat();
        let mut pieces = vec![];
        let mut rest = &stream[..];
        for (cut, fds) in cuts.into_iter().zip(fd_counts) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push((piece, eventfds(fds)));
            rest = after;
        }
        pieces.push((rest, vec![]));
        let mut device = Device::default();
        let mut sent = vec![];
        let _ = replay(pieces, &mut device, &mut sent);
        prop_assert_eq!(reply_ids(&sent), awaited_ids(&stream));
        prop_assert_eq!((device.connects, device.disconnects), (1, 1));
    }

    #[test]
    fn noise_gets_whole_replies_or_none(stream in vec(any::<u8>(), 0..2000)) {
        let mut sent = vec![];
        let _ = replay([(&stream[..], vec![])], &mut Device::default(), &mut sent);
        reply_ids(&sent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn over_a_socket_too_and_the_next_client_is_served(
        messages in vec(any_message(), 1..12),
        fd_counts in vec(0usize..40, 12),
    ) {
        let (served, mut peer) = Served::start_raw(Device::default(), Options::default());
        peer.negotiate();
        let fds = eventfds(40);
        let mut sent = vec![];
        for (message, count) in messages.iter().zip(fd_counts) {
            // The server may have closed the connection by now.
            if peer.send(message, &borrowed(&fds[..count])).is_err() {
                break;
            }
            sent.extend_from_slice(message);
        }
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap_or(());
        let mut ids = vec![];
        while let Some(reply) = peer.receive() {
            ids.push(reply.id);
        }
        let awaited = awaited_ids(&sent);
        // What came after a violation is not answered.
        prop_assert_eq!(&ids[..], &awaited[..ids.len()]);
        let (device, ended) = served.end();
        if ended == Ok(Ended::Disconnected) {
            prop_assert_eq!(ids, awaited);
        }
        prop_assert_eq!((device.connects, device.disconnects), (1, 1));
    }
}
