use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

const INNER: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ALL: [u8; 6] = [0xff; 6];

fn frame(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame
}

/// A switch with `N` wires whose far ends are in the test's hand.
struct Bench<const N: usize> {
    switch: Switch,
    far: [Wire; N],
}

impl<const N: usize> Bench<N> {
    fn new() -> Self {
        let mut switch = Switch::new(INNER);
        let far = std::array::from_fn(|_| {
            let (near, far) = UnixStream::pair().expect("a socket pair");
            switch.attach(near).expect("a free port");
            Wire::from_stream(far)
        });
        Self { switch, far }
    }

    /// Sends from wire `from`; tells which wires got it, and whether the inner port did.
    fn send(&mut self, from: usize, bytes: &[u8]) -> (Vec<usize>, bool) {
        assert_eq!(
            self.far[from].send(TxFrame {
                bytes,
                offload: TxOffload::None
            }),
            Sent::Taken
        );
        self.far[from].flush();
        let inner = self.turn();
        (self.receivers(), inner)
    }

    fn inject(&mut self, bytes: &[u8]) -> Vec<usize> {
        self.switch.inject(bytes);
        self.switch.flush();
        self.receivers()
    }

    fn turn(&mut self) -> bool {
        let mut inner = false;
        let (_keep, wake) = UnixStream::pair().expect("a socket pair");
        self.switch
            .wait(Duration::ZERO, std::os::fd::AsFd::as_fd(&wake))
            .expect("polls");
        self.switch.turn(|_| inner = true);
        self.switch.flush();
        inner
    }

    fn receivers(&mut self) -> Vec<usize> {
        let mut receivers = Vec::new();
        for (index, wire) in self.far.iter_mut().enumerate() {
            while wire.peek().is_some() {
                wire.consume();
                receivers.push(index);
            }
        }
        receivers
    }
}

#[test]
fn unknown_addresses_are_flooded_and_known_ones_are_not() {
    let mut bench = Bench::<3>::new();
    assert_eq!(bench.send(0, &frame(B, A)), (vec![1, 2], false));
    assert_eq!(bench.send(1, &frame(A, B)), (vec![0], false));
    assert_eq!(bench.send(0, &frame(B, A)), (vec![1], false));
    assert_eq!(bench.send(2, &frame(ALL, [2; 6])), (vec![0, 1], true));
    assert_eq!(bench.send(0, &frame(INNER, A)), (vec![], true));
}

#[test]
fn an_announcement_moves_the_address_to_its_new_wire() {
    let mut bench = Bench::<2>::new();
    bench.send(0, &frame(INNER, A));
    assert_eq!(bench.inject(&frame(A, INNER)), [0]);
    assert_eq!(bench.switch.port_of(A), Some(Port(0)));

    bench.far[1].announce(A);
    assert!(bench.turn(), "a broadcast reaches the inner port");
    assert_eq!(bench.receivers(), [0]);
    assert_eq!(bench.inject(&frame(A, INNER)), [1]);
    assert_eq!(bench.switch.port_of(A), Some(Port(1)));
}

#[test]
fn a_wire_that_sends_nothing_from_inner_or_a_group_can_pose_as_neither() {
    let mut bench = Bench::<2>::new();
    assert_eq!(bench.send(0, &frame(B, INNER)), (vec![], false));
    assert_eq!(bench.send(0, &frame(B, ALL)), (vec![], false));
    assert_eq!(bench.switch.report().forged, 2);
    assert_eq!(bench.send(1, &frame(INNER, B)), (vec![], true));
}

#[test]
fn an_unplugged_wire_is_forgotten_with_its_addresses_after_its_last_frames() {
    let mut bench = Bench::<2>::new();
    bench.send(0, &frame(INNER, A));
    let mut last = bench.far[0]
        .fd()
        .expect("open")
        .try_clone_to_owned()
        .map(UnixStream::from);
    let last = last.as_mut().expect("a descriptor");
    last.write_all(&60_u32.to_be_bytes()).expect("open");
    last.write_all(&frame(INNER, A)).expect("open");
    last.shutdown(std::net::Shutdown::Both).expect("open");
    assert!(bench.turn(), "the last frame still comes through");
    assert_eq!(bench.switch.port_of(A), None);
    assert_eq!(bench.switch.report().ports.len(), 1);
    assert_eq!(
        bench.inject(&frame(A, INNER)),
        [1],
        "unknown again, so flooded"
    );
}

#[test]
fn a_wire_that_is_not_read_drops_and_counts_only_its_own() {
    let mut bench = Bench::<2>::new();
    bench.send(0, &frame(INNER, A));
    bench.send(1, &frame(INNER, B));
    let sent = 100_000_u64;
    for _ in 0..sent {
        bench.switch.inject(&frame(A, INNER));
    }
    assert_eq!(
        bench
            .inject(&frame(B, INNER))
            .iter()
            .filter(|index| **index == 1)
            .count(),
        1
    );
    let report = bench.switch.report();
    assert!(report.ports[0].dropped > 0);
    assert_eq!(report.ports[0].sent + report.ports[0].dropped, sent);
    assert_eq!(report.ports[1].dropped, 0);
}

#[test]
fn more_frames_than_one_turn_takes_come_in_the_next() {
    let mut bench = Bench::<1>::new();
    for _ in 0..FRAMES_PER_TURN + 10 {
        let bytes = frame(INNER, A);
        let _ = bench.far[0].send(TxFrame {
            bytes: &bytes,
            offload: TxOffload::None,
        });
    }
    bench.far[0].flush();
    let mut seen = 0;
    bench.switch.turn(|_| seen += 1);
    assert_eq!(seen, FRAMES_PER_TURN);
    let (_keep, wake) = UnixStream::pair().expect("a socket pair");
    let hour = Duration::from_hours(1);
    bench
        .switch
        .wait(hour, std::os::fd::AsFd::as_fd(&wake))
        .expect("does not wait");
    bench.switch.turn(|_| seen += 1);
    assert_eq!(seen, FRAMES_PER_TURN + 10);
}

#[test]
fn wires_plug_in_by_the_socket_which_goes_with_the_switch() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("switch");
    let mut switch = Switch::new(INNER);
    switch.listen(&path).expect("a free path");
    assert!(matches!(
        Switch::new(INNER).listen(&path),
        Err(UplinkError::Listen { .. })
    ));
    let mut far: Vec<_> = (0..=MAX_PORTS)
        .map(|_| UnixStream::connect(&path).expect("it listens"))
        .collect();
    let (_keep, wake) = UnixStream::pair().expect("a socket pair");
    switch
        .wait(Duration::ZERO, std::os::fd::AsFd::as_fd(&wake))
        .expect("polls");
    assert_eq!(switch.report().ports.len(), MAX_PORTS);
    assert_eq!(
        far[MAX_PORTS].read(&mut [0]).expect("closed"),
        0,
        "one too many is closed"
    );
    drop(switch);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn garbage_on_the_wires_leaves_a_working_switch(
        pieces in prop::collection::vec(
            (0_usize..2, prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..200)),
            0..50,
        ),
    ) {
        let mut bench = Bench::<3>::new();
        for (wire, bytes) in pieces {
            if let Some(fd) = bench.far[wire].fd() {
                let mut stream =
                    UnixStream::from(fd.try_clone_to_owned().expect("a descriptor"));
                let _ = stream.write_all(&bytes);
            }
            bench.turn();
        }
        bench.receivers();
        let (_, inner) = bench.send(2, &frame(INNER, B));
        prop_assert!(inner);
        prop_assert!(bench.inject(&frame(B, INNER)).contains(&2));
    }
}
