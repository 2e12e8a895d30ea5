//! What the guest's neighbours say of themselves, remembered and said again.
//!
//! A guest that sees its link go down forgets who its neighbours are (`neigh_carrier_down` in
//! Linux), asks while the link is still away, and asks again a second later. After a device was
//! started anew by its driver at the destination, the guest hears once more what each neighbour had
//! told it last, so that its question is answered when it can be.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use device::{FrameLink, Offloads, RxFrame, Sent, TxFrame};

/// How many neighbours are remembered; the one heard of longest ago is forgotten for a new one.
const NEIGHBOURS: usize = 32;
/// How many questions are kept until it shows whether the guest answers them.
const QUESTIONS: usize = 8;
/// From how many addresses of its own a guest is known to send.
const OWN: usize = 4;
/// Longest frame that is: neighbour discovery with a tag and one more option than it needs.
const LONGEST: usize = 128;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const TAGGED: [u8; 2] = 0x8100_u16.to_be_bytes();
const ARP: [u8; 2] = 0x0806_u16.to_be_bytes();
const IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
/// Hardware: Ethernet; protocol: IPv4; lengths 6 and 4 (RFC 826).
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REPLY: [u8; 2] = [0, 2];
const IPV6_HEADER: usize = 40;
const ICMPV6: u8 = 58;
/// Neighbour solicitation and advertisement (RFC 4861, sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A link that remembers its neighbours: those that spoke to the guest, and those that asked
/// and were answered by it.
pub struct Attentive<L> {
    link: L,
    /// What the guest has sent from, the newest last.
    own: VecDeque<[u8; 6]>,
    heard: Frames,
    /// To everybody, or to whom the guest has not been seen to be, from those who are not known.
    asked: Frames,
    /// Those of the heard that the guest has sent nothing to since they were remembered or said again.
    unreached: Vec<Neighbour>,
    /// What is said again, in order.
    again: VecDeque<Vec<u8>>,
}

/// Frames by who they are of, the newest last.
type Frames = VecDeque<(Neighbour, Vec<u8>)>;

/// A network with a tag or without, and an address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Neighbour {
    tag: Option<[u8; 2]>,
    address: Address,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl<L: FrameLink> Attentive<L> {
    /// Nobody has been heard on `link` yet.
    pub fn new(link: L) -> Self {
        Self {
            link,
            own: VecDeque::new(),
            heard: Frames::new(),
            asked: Frames::new(),
            unreached: Vec::new(),
            again: VecDeque::new(),
        }
    }

    fn sends_from(&mut self, address: &[u8]) {
        let Ok(address) = address.try_into() else {
            return;
        };
        self.own.retain(|own| *own != address);
        if self.own.len() == OWN {
            self.own.pop_front();
        }
        self.own.push_back(address);
    }
}

impl<L: FrameLink> FrameLink for Attentive<L> {
    fn peek(&mut self) -> Option<RxFrame<'_>> {
        if let Some(bytes) = self.again.front() {
            return Some(RxFrame {
                bytes,
                checksums_good: false,
            });
        }
        let frame = self.link.peek()?;
        if let Some(speaker) = speaker(frame.bytes) {
            let is_known = self.heard.iter().any(|(known, _)| *known == speaker);
            let to = frame.bytes.get(..6);
            if is_known || self.own.iter().any(|own| to == Some(own)) {
                keep(&mut self.heard, NEIGHBOURS, speaker, frame.bytes);
            } else {
                keep(&mut self.asked, QUESTIONS, speaker, frame.bytes);
            }
        }
        Some(frame)
    }

    fn consume(&mut self) {
        if self.again.pop_front().is_none() {
            self.link.consume();
        }
    }

    fn send(&mut self, frame: TxFrame<'_>) -> Sent {
        if let Some(from) = frame.bytes.get(6..12)
            && self.own.back().is_none_or(|own| own != from)
        {
            self.sends_from(from);
        }
        if !self.asked.is_empty()
            && let Some(listener) = listener(frame.bytes)
            && let Some(at) = self.asked.iter().position(|(one, _)| *one == listener)
            && let Some((_, question)) = self.asked.remove(at)
        {
            keep(&mut self.heard, NEIGHBOURS, listener, &question);
        }
        if !self.unreached.is_empty()
            && let Some(to) = frame.bytes.get(..6)
        {
            for (reached, said) in &self.heard {
                if said.get(6..12) == Some(to) {
                    self.unreached.retain(|one| one != reached);
                }
            }
        }
        self.link.send(frame)
    }

    fn flush(&mut self) {
        self.link.flush();
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    fn offloads(&self) -> Offloads {
        self.link.offloads()
    }

    fn announce(&mut self, mac: [u8; 6]) {
        self.link.announce(mac);
    }

    fn look_for_end(&mut self) {
        self.link.look_for_end();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.fd()
    }

    fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.iter().map(|(_, frame)| frame.clone()).collect()
    }

    fn remember(&mut self, heard: &[Vec<u8>]) {
        self.heard.clear();
        for frame in heard {
            if let Some(speaker) = speaker(frame) {
                keep(&mut self.heard, NEIGHBOURS, speaker, frame);
            }
        }
        self.unreached = self.heard.iter().map(|(one, _)| *one).collect();
    }

    fn say_again(&mut self, is_last: bool) -> usize {
        let unreached = |(one, _): &&(Neighbour, Vec<u8>)| self.unreached.contains(one);
        let due = self.heard.iter().filter(unreached);
        self.again = due.map(|(_, frame)| frame.clone()).collect();
        // What a guest sends first waited in its queue, and tells nothing of what it knows after
        // it has seen its link go.
        self.unreached.clear();
        if !is_last {
            self.unreached
                .extend(self.heard.iter().map(|(one, _)| *one));
        }
        self.again.len()
    }
}

impl<L> std::fmt::Debug for Attentive<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attentive")
            .field("heard", &self.heard.len())
            .field("again", &self.again.len())
            .finish_non_exhaustive()
    }
}

/// Puts the newest frame of `of` in the place of an older one.
fn keep(frames: &mut Frames, limit: usize, of: Neighbour, frame: &[u8]) {
    if let Some(older) = frames.iter().position(|(one, _)| *one == of) {
        frames.remove(older);
    } else if frames.len() == limit {
        frames.pop_front();
    }
    frames.push_back((of, frame.to_vec()));
}

/// Whose address a received frame tells.
fn speaker(frame: &[u8]) -> Option<Neighbour> {
    let (tag, message) = message(frame)?;
    let address = match message {
        Message::Arp(arp) => v4(arp.get(14..18)?)?,
        Message::Discovery(packet) => match *packet.get(IPV6_HEADER)? {
            SOLICITATION => v6(packet.get(8..24)?)?,
            ADVERTISEMENT => v6(packet.get(IPV6_HEADER + 8..IPV6_HEADER + 24)?)?,
            _ => return None,
        },
    };
    Some(Neighbour { tag, address })
}

/// Whose question a frame of the guest answers.
fn listener(frame: &[u8]) -> Option<Neighbour> {
    let (tag, message) = message(frame)?;
    let address = match message {
        Message::Arp(arp) if arp.get(6..8)? == ARP_REPLY => v4(arp.get(24..28)?)?,
        Message::Discovery(packet) if *packet.get(IPV6_HEADER)? == ADVERTISEMENT => {
            v6(packet.get(24..40)?)?
        }
        _ => return None,
    };
    Some(Neighbour { tag, address })
}

/// What neighbours find each other with.
enum Message<'a> {
    Arp(&'a [u8]),
    /// The whole `IPv6` packet.
    Discovery(&'a [u8]),
}

fn message(frame: &[u8]) -> Option<(Option<[u8; 2]>, Message<'_>)> {
    if frame.len() > LONGEST {
        return None;
    }
    let mut at = ETHERNET;
    let mut tag = None;
    if frame.get(12..14)? == TAGGED {
        tag = Some(frame.get(14..16)?.try_into().ok()?);
        at += TAG;
    }
    let kind: [u8; 2] = frame.get(at - 2..at)?.try_into().ok()?;
    let payload = &frame[at..];
    match kind {
        ARP if payload.get(..6)? == ARP_OF_IPV4 => Some((tag, Message::Arp(payload))),
        IPV6 if *payload.get(6)? == ICMPV6 => Some((tag, Message::Discovery(payload))),
        _ => None,
    }
}

/// None is the sender's of a probe (RFC 5227).
fn v4(bytes: &[u8]) -> Option<Address> {
    let bytes: [u8; 4] = bytes.try_into().ok()?;
    (bytes != [0; 4]).then_some(Address::V4(bytes))
}

/// None is the sender's while it looks whether its address is free (RFC 4862).
fn v6(bytes: &[u8]) -> Option<Address> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    (bytes != [0; 16]).then_some(Address::V6(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link on which these frames come.
    struct Script(VecDeque<Vec<u8>>);

    impl FrameLink for Script {
        fn peek(&mut self) -> Option<RxFrame<'_>> {
            self.0.front().map(|bytes| RxFrame {
                bytes,
                checksums_good: true,
            })
        }

        fn consume(&mut self) {
            self.0.pop_front();
        }

        fn send(&mut self, _: TxFrame<'_>) -> Sent {
            Sent::Taken
        }

        fn flush(&mut self) {}

        fn is_up(&self) -> bool {
            true
        }

        fn announce(&mut self, _: [u8; 6]) {}

        fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn arp(to: [u8; 6], sender: [u8; 4], mac: u8) -> Vec<u8> {
        let mut frame = to.to_vec();
        frame.extend([2, 0, 0, 0, 0, mac]);
        frame.extend(ARP);
        frame.extend(ARP_OF_IPV4);
        frame.extend([0, 2, 2, 0, 0, 0, 0, mac]);
        frame.extend(sender);
        frame.resize(60, 0);
        frame
    }

    fn tagged(frame: &[u8], tag: u8) -> Vec<u8> {
        [&frame[..12], &TAGGED, &[0, tag], &frame[12..]].concat()
    }

    fn discovery(kind: u8, source: u8, target: u8) -> Vec<u8> {
        let mut frame = GUEST.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(IPV6);
        frame.extend([0x60, 0, 0, 0, 0, 24, ICMPV6, 255]);
        frame.extend([source; 16]);
        frame.extend([1; 16]);
        frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend([target; 16]);
        frame
    }

    fn all(link: &mut Attentive<Script>) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(frame) = link.peek() {
            all.push(frame.bytes.to_vec());
            link.consume();
        }
        all
    }

    fn listen(frames: &[Vec<u8>]) -> Attentive<Script> {
        let mut link = Attentive::new(Script(frames.iter().cloned().collect()));
        say(&mut link, &arp([0xff; 6], [10, 0, 0, 99], 1));
        assert_eq!(all(&mut link), frames);
        link
    }

    #[test]
    fn what_each_neighbour_said_last_is_said_again_elsewhere_once() {
        let newer = arp(GUEST, [10, 0, 0, 1], 8);
        let said = [
            arp(GUEST, [10, 0, 0, 1], 7),
            tagged(&arp(GUEST, [10, 0, 0, 1], 5), 3),
            discovery(ADVERTISEMENT, 3, 4),
            discovery(SOLICITATION, 5, 6),
            newer.clone(),
        ];
        let here = listen(&said);
        let mut there = Attentive::new(Script(VecDeque::from([vec![0xee; 60]])));
        there.remember(&here.heard());
        assert_eq!(there.say_again(false), 4);
        let mut expected = said[1..].to_vec();
        expected.push(vec![0xee; 60]);
        assert_eq!(all(&mut there), expected);
        assert!(all(&mut there).is_empty());
        assert_eq!(there.heard(), here.heard());
        // Those that the guest has reached need not say it once more.
        say(&mut there, &arp([2, 0, 0, 0, 0, 8], [10, 0, 0, 99], 1));
        say(&mut there, &arp([2, 0, 0, 0, 0, 5], [10, 0, 0, 99], 1));
        assert_eq!(there.say_again(false), 2);
        assert_eq!(all(&mut there), said[2..4]);
        // It may have forgotten them since.
        assert_eq!(there.say_again(true), 4);
        all(&mut there);
        assert_eq!(there.say_again(true), 0);
    }

    /// The guest sends this.
    fn say(link: &mut Attentive<Script>, frame: &[u8]) {
        let offload = device::TxOffload::None;
        let sent = link.send(TxFrame {
            bytes: frame,
            offload,
        });
        assert_eq!(sent, Sent::Taken);
    }

    /// The guest's answer to `to` of the addresses that are made of its number.
    fn answer(to: u8, v6: bool) -> Vec<u8> {
        if v6 {
            let mut frame = discovery(ADVERTISEMENT, 1, 1);
            frame[6..12].copy_from_slice(&GUEST);
            frame[38..54].fill(to);
            return frame;
        }
        let mut frame = arp([2, 0, 0, 0, 0, to], [10, 0, 0, 99], 1);
        frame[38..42].copy_from_slice(&[10, 0, 0, to]);
        frame
    }

    #[test]
    fn who_asks_everybody_is_remembered_when_the_guest_answers() {
        let to_all = |mut frame: Vec<u8>| {
            frame[..6].fill(0xff);
            frame
        };
        let asked = [
            to_all(arp(GUEST, [10, 0, 0, 3], 3)),
            to_all(arp(GUEST, [10, 0, 0, 4], 4)),
            to_all(discovery(SOLICITATION, 5, 6)),
        ];
        let mut link = listen(&asked);
        assert_eq!(link.heard(), Vec::<Vec<u8>>::new());
        say(&mut link, &answer(7, false));
        say(&mut link, &answer(4, false));
        say(&mut link, &answer(5, true));
        assert_eq!(link.heard(), asked[1..]);
        // Now that it is known, what it tells everybody is for the guest.
        let moved = to_all(arp(GUEST, [10, 0, 0, 4], 9));
        link.link.0.push_back(moved.clone());
        all(&mut link);
        assert_eq!(link.heard(), [asked[2].clone(), moved]);
        // So many ask that a question is forgotten.
        for number in 10..10 + u8::try_from(QUESTIONS).unwrap() {
            let question = to_all(arp(GUEST, [10, 0, 0, number], number));
            link.link.0.push_back(question);
        }
        all(&mut link);
        say(&mut link, &answer(3, false));
        assert_eq!(link.heard().len(), 2);
    }

    #[test]
    fn nothing_else_is_remembered() {
        let mut other = arp(GUEST, [10, 0, 0, 1], 7);
        other[13] = 0;
        let mut long = arp(GUEST, [10, 0, 0, 1], 7);
        long.resize(LONGEST + 1, 0);
        let all = [
            arp([0xff; 6], [10, 0, 0, 1], 7),
            arp([2, 0, 0, 0, 0, 2], [10, 0, 0, 1], 7),
            arp(GUEST, [0; 4], 7),
            discovery(ADVERTISEMENT, 3, 0),
            discovery(SOLICITATION, 0, 3),
            discovery(134, 3, 3),
            other,
            long,
            arp(GUEST, [10, 0, 0, 1], 7)[..30].to_vec(),
            tagged(&arp(GUEST, [10, 0, 0, 1], 7), 3)[..15].to_vec(),
            GUEST[..1].to_vec(),
            Vec::new(),
        ];
        assert_eq!(listen(&all).heard(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_network_of_many_has_the_last_of_them_remembered() {
        let count = u8::try_from(NEIGHBOURS).unwrap() + 3;
        let frames: Vec<_> = (1..=count)
            .map(|last| arp(GUEST, [10, 0, 0, last], last))
            .collect();
        assert_eq!(listen(&frames).heard(), frames[3..]);
        let mut there = Attentive::new(Script(VecDeque::new()));
        there.remember(&frames);
        assert_eq!(there.heard(), frames[3..]);
    }
}
