//! `VFIO_USER_DEVICE_FEATURE` and the data of migration, after libvfio-user's `test_migration.py`.

use std::sync::{Arc as Shared, Mutex};

use vfio_user::migration::{Arc, ArcError, IovaRange, State};
use vfio_user::{DmaLog, Ended, Errno, Migration};

use crate::device::Device;
use crate::peer::{self, FEATURE, MIG_READ, MIG_WRITE, Peer, Served, u32s, u64s};

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;

const MIGRATION: u32 = 1;
const STATE: u32 = 2;
const START: u32 = 6;
const STOP: u32 = 7;
const REPORT: u32 = 8;

#[derive(Default)]
struct Seen {
    arcs: Vec<Arc>,
    abandoned: Option<State>,
    /// What is still to be read.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    logging: Option<Vec<IovaRange>>,
    fail: Option<ArcError>,
}

struct Moving {
    seen: Shared<Mutex<Seen>>,
    log: Log,
}

struct Log(Shared<Mutex<Seen>>);

impl Migration for Moving {
    fn has_pre_copy(&self) -> bool {
        true
    }
    fn follow(&mut self, arc: Arc) -> Result<(), ArcError> {
        let mut seen = self.seen.lock().unwrap();
        if let Some(error) = seen.fail {
            return Err(error);
        }
        seen.arcs.push(arc);
        Ok(())
    }
    fn read(&mut self, data: &mut [u8]) -> Result<usize, Errno> {
        let mut seen = self.seen.lock().unwrap();
        let len = data.len().min(seen.outgoing.len());
        let part: Vec<u8> = seen.outgoing.drain(..len).collect();
        data[..len].copy_from_slice(&part);
        Ok(len)
    }
    fn write(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.seen.lock().unwrap().incoming.extend_from_slice(data);
        Ok(())
    }
    fn abandon(&mut self, from: State) {
        self.seen.lock().unwrap().abandoned = Some(from);
    }
    fn dma_log(&mut self) -> Option<&mut dyn DmaLog> {
        Some(&mut self.log)
    }
}

impl DmaLog for Log {
    fn start(&mut self, _: u64, ranges: &[IovaRange]) -> Result<u64, Errno> {
        self.0.lock().unwrap().logging = Some(ranges.to_vec());
        Ok(4096)
    }
    fn stop(&mut self) {
        self.0.lock().unwrap().logging = None;
    }
    fn report(&mut self, _: IovaRange, _: u64, bitmap: &mut [u64]) -> Result<(), Errno> {
        // More than the range has pages: those past its end are not to be reported.
        bitmap.fill(u64::MAX);
        Ok(())
    }
}

fn start() -> (Served, Peer, Shared<Mutex<Seen>>) {
    let seen = Shared::new(Mutex::new(Seen::default()));
    let log = Log(Shared::clone(&seen));
    let moving = Moving {
        seen: Shared::clone(&seen),
        log,
    };
    let device = Device {
        migration: Some(Box::new(moving)),
        ..Device::default()
    };
    let (served, peer) = Served::start(device);
    (served, peer, seen)
}

fn feature(argsz: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    [u32s(&[argsz, flags]), data.to_vec()].concat()
}

fn go(peer: &mut Peer, state: u32) -> Result<(), Errno> {
    let body = feature(16, SET | STATE, &u32s(&[state, u32::MAX]));
    let reply = peer.ask(FEATURE, &body)?;
    assert_eq!(reply, body, "the reply is the command again");
    Ok(())
}

fn state(peer: &mut Peer) -> u32 {
    let reply = peer.ask(FEATURE, &feature(16, GET | STATE, &[])).unwrap();
    assert_eq!(reply[..8], feature(16, GET | STATE, &[]));
    assert_eq!(reply.len(), 16);
    u32::from_le_bytes(reply[8..12].try_into().unwrap())
}

#[test]
fn a_device_without_migration_has_no_features() {
    let (_served, mut peer) = Served::start(Device::default());
    for index in [MIGRATION, STATE, START, STOP, REPORT, 3] {
        let probe = feature(8, PROBE | index, &[]);
        assert_eq!(peer.ask(FEATURE, &probe), Err(Errno::NOTTY));
    }
    let data = u32s(&[16, 8]);
    assert_eq!(peer.ask(MIG_READ, &data), Err(Errno::NOTSUP));
    assert_eq!(peer.ask(MIG_WRITE, &u32s(&[8, 0])), Err(Errno::NOTSUP));
}

#[test]
fn features_are_probed() {
    let (_served, mut peer, _) = start();
    for (index, methods) in [
        (MIGRATION, GET),
        (STATE, GET),
        (STATE, SET),
        (STATE, GET | SET),
        (START, SET),
        (STOP, SET),
        (REPORT, GET),
        (MIGRATION, 0),
    ] {
        let probe = feature(8, PROBE | methods | index, &[]);
        assert_eq!(
            peer.ask(FEATURE, &probe),
            Ok(probe.clone()),
            "{index} {methods:#x}"
        );
    }
    for (name, body, errno) in [
        (
            "set migration",
            feature(8, PROBE | SET | MIGRATION, &[]),
            Errno::INVAL,
        ),
        (
            "both",
            feature(8, PROBE | GET | SET | MIGRATION, &[]),
            Errno::INVAL,
        ),
        (
            "bad argsz",
            feature(2, PROBE | MIGRATION, &[]),
            Errno::INVAL,
        ),
        ("short", vec![8, 0, 0, 0, 1, 0, 4], Errno::INVAL),
        (
            "unknown feature",
            feature(8, PROBE | 0x63, &[]),
            Errno::NOTTY,
        ),
        (
            "unknown flag",
            feature(8, (1 << 19) | GET | MIGRATION, &[]),
            Errno::INVAL,
        ),
        ("nothing asked", feature(16, MIGRATION, &[]), Errno::INVAL),
        (
            "get and set",
            feature(16, GET | SET | STATE, &[0; 8]),
            Errno::INVAL,
        ),
    ] {
        assert_eq!(peer.ask(FEATURE, &body), Err(errno), "{name}");
    }
}

#[test]
fn what_the_device_can_do_is_told_where_there_is_room() {
    let (_served, mut peer, _) = start();
    let told = feature(16, GET | MIGRATION, &u64s(&[1 | 4]));
    let ask = feature(16, GET | MIGRATION, &[]);
    assert_eq!(peer.ask(FEATURE, &ask), Ok(told));
    let ask = feature(8, GET | MIGRATION, &[]);
    assert_eq!(peer.ask(FEATURE, &ask), Err(Errno::INVAL));
}

#[test]
fn the_state_goes_along_arcs() {
    let (_served, mut peer, seen) = start();
    let (stop, running, stop_copy, resuming, pre_copy) = (1, 2, 3, 4, 6);
    assert_eq!(state(&mut peer), running);
    assert_eq!(go(&mut peer, pre_copy), Ok(()));
    assert_eq!(go(&mut peer, stop_copy), Ok(()));
    assert_eq!(
        go(&mut peer, pre_copy),
        Err(Errno::INVAL),
        "forbidden by name"
    );
    assert_eq!(go(&mut peer, resuming), Ok(()));
    assert_eq!(state(&mut peer), resuming);
    assert_eq!(go(&mut peer, stop), Ok(()));
    let arcs = std::mem::take(&mut seen.lock().unwrap().arcs);
    let expected = [
        Arc::RunningToPreCopy,
        Arc::PreCopyToStopCopy,
        Arc::StopCopyToStop,
        Arc::StopToResuming,
        Arc::ResumingToStop,
    ];
    assert_eq!(arcs, expected);
    for unreachable in [0, 5, 7, 8, 0xabcd] {
        assert_eq!(
            go(&mut peer, unreachable),
            Err(Errno::INVAL),
            "{unreachable}"
        );
    }
    let body = feature(8, SET | STATE, &u32s(&[running, 0]));
    assert_eq!(
        peer.ask(FEATURE, &body),
        Err(Errno::INVAL),
        "argsz without room"
    );
    let body = feature(16, SET | STATE, &u32s(&[running]));
    assert_eq!(peer.ask(FEATURE, &body), Err(Errno::INVAL), "half a state");
    assert_eq!(seen.lock().unwrap().arcs, []);
}

#[test]
fn a_broken_device_comes_back_by_reset() {
    let (_served, mut peer, seen) = start();
    seen.lock().unwrap().fail = Some(ArcError::Broken(Errno::IO));
    assert_eq!(go(&mut peer, 1), Err(Errno::IO));
    assert_eq!(state(&mut peer), 0);
    seen.lock().unwrap().fail = None;
    assert_eq!(go(&mut peer, 2), Err(Errno::INVAL));
    peer.ask(peer::RESET, &[]).unwrap();
    assert_eq!(state(&mut peer), 2);
}

#[test]
fn a_reset_does_not_end_a_migration() {
    let (_served, mut peer, _) = start();
    go(&mut peer, 6).unwrap();
    peer.ask(peer::RESET, &[]).unwrap();
    assert_eq!(state(&mut peer), 6);
}

#[test]
fn data_is_read_while_saving_and_only_then() {
    let (_served, mut peer, seen) = start();
    for (state, saving) in [
        (1, false),
        (2, false),
        (3, true),
        (4, false),
        (2, false),
        (6, true),
    ] {
        go(&mut peer, state).unwrap();
        seen.lock().unwrap().outgoing = b"abcde".to_vec();
        let read = |peer: &mut Peer, size| peer.ask(MIG_READ, &u32s(&[8 + size, size]));
        if saving {
            assert_eq!(
                read(&mut peer, 4),
                Ok([&u32s(&[12, 4])[..], b"abcd"].concat())
            );
            assert_eq!(
                read(&mut peer, 4),
                Ok([&u32s(&[9, 1])[..], b"e"].concat()),
                "the end"
            );
            assert_eq!(read(&mut peer, 4), Ok(u32s(&[8, 0])));
        } else {
            assert_eq!(read(&mut peer, 4), Err(Errno::INVAL), "state {state}");
        }
    }
    for (name, body) in [
        ("short", u32s(&[12, 4])[..7].to_vec()),
        ("argsz without room", u32s(&[11, 4])),
        ("too long", u32s(&[u32::MAX, (1 << 20) + 1])),
        ("huge", u32s(&[u32::MAX, u32::MAX])),
    ] {
        assert_eq!(peer.ask(MIG_READ, &body), Err(Errno::INVAL), "{name}");
    }
}

#[test]
fn data_is_written_while_resuming_and_only_then() {
    let (_served, mut peer, seen) = start();
    let data = |size: u32, data: &[u8]| [u32s(&[8 + size, size]), data.to_vec()].concat();
    assert_eq!(
        peer.ask(MIG_WRITE, &data(4, b"abcd")),
        Err(Errno::INVAL),
        "running"
    );
    go(&mut peer, 4).unwrap();
    assert_eq!(peer.ask(MIG_WRITE, &data(4, b"abcd")), Ok(vec![]));
    assert_eq!(peer.ask(MIG_WRITE, &data(2, b"ef")), Ok(vec![]));
    assert_eq!(
        peer.ask(MIG_WRITE, &data(4, b"abc")),
        Err(Errno::INVAL),
        "short"
    );
    assert_eq!(
        peer.ask(MIG_WRITE, &data(4, b"")),
        Err(Errno::INVAL),
        "without data"
    );
    assert_eq!(seen.lock().unwrap().incoming, b"abcdef");
}

fn report(argsz: u32, iova: u64, length: u64, page_size: u64) -> Vec<u8> {
    feature(argsz, GET | REPORT, &u64s(&[iova, length, page_size]))
}

fn logging(page_size: u64, ranges: &[u64]) -> Vec<u8> {
    let count = u32::try_from(ranges.len() / 2).unwrap();
    let data = [u64s(&[page_size]), u32s(&[count, 0]), u64s(ranges)].concat();
    feature(8 + u32::try_from(data.len()).unwrap(), SET | START, &data)
}

#[test]
fn dma_writes_are_logged_and_reported() {
    let (_served, mut peer, seen) = start();
    let ask = report(40, 0x10_0000, 10 << 12, 4096);
    assert_eq!(peer.ask(FEATURE, &ask), Err(Errno::INVAL), "not started");
    let started = peer.ask(
        FEATURE,
        &logging(8192, &[0x1000, 0x2000, 0x10_0000, 0xa000]),
    );
    let expected = logging(4096, &[0x1000, 0x2000, 0x10_0000, 0xa000]);
    assert_eq!(
        started,
        Ok(expected),
        "with the page size that the device chose"
    );
    let ranges = [(0x1000, 0x2000), (0x10_0000, 0xa000)];
    let ranges = ranges.map(|(iova, len)| IovaRange { iova, len });
    assert_eq!(seen.lock().unwrap().logging.as_deref(), Some(&ranges[..]));
    let told = [ask.clone(), u64s(&[0x3ff])].concat();
    assert_eq!(peer.ask(FEATURE, &ask), Ok(told), "ten pages, ten bits");
    let ask = report(1000, 0, 128 << 16, 1 << 16);
    let told = [report(48, 0, 128 << 16, 1 << 16), u64s(&[u64::MAX; 2])].concat();
    assert_eq!(peer.ask(FEATURE, &ask), Ok(told));
    let stop = feature(8, SET | STOP, &[]);
    assert_eq!(peer.ask(FEATURE, &stop), Ok(stop));
    assert!(seen.lock().unwrap().logging.is_none());
}

#[test]
fn wrong_ranges_and_reports_are_refused() {
    let (_served, mut peer, seen) = start();
    for (name, body) in [
        ("page size 0", logging(0, &[0, 4096])),
        ("page size 5000", logging(5000, &[0, 4096])),
        ("empty range", logging(4096, &[0x1000, 0])),
        ("wrapping range", logging(4096, &[u64::MAX, 2])),
        ("range missing", logging(4096, &[0, 4096])[..39].to_vec()),
        (
            "argsz without room",
            [u32s(&[39]), logging(4096, &[0, 4096])[4..].to_vec()].concat(),
        ),
    ] {
        assert_eq!(peer.ask(FEATURE, &body), Err(Errno::INVAL), "{name}");
        assert!(seen.lock().unwrap().logging.is_none(), "{name}");
    }
    peer.ask(FEATURE, &logging(4096, &[])).unwrap();
    assert_eq!(
        peer.ask(FEATURE, &logging(4096, &[])),
        Err(Errno::INVAL),
        "started twice"
    );
    for (name, body) in [
        ("argsz without room", report(39, 0x1_0000, 0x20 << 12, 4096)),
        ("page size 0", report(40, 0, 4096, 0)),
        ("page size 1", report(40, 0, 4096, 1)),
        ("page size 6000", report(40, 0, 4096, 6000)),
        ("empty", report(40, 0, 0, 4096)),
        ("wrapping", report(40, u64::MAX - 4095, 8192, 4096)),
        ("bitmap too long", report(u32::MAX, 0, u64::MAX, 4096)),
        ("half a request", report(40, 0, 4096, 4096)[..31].to_vec()),
    ] {
        assert_eq!(peer.ask(FEATURE, &body), Err(Errno::INVAL), "{name}");
    }
}

#[test]
fn a_client_that_leaves_amid_a_migration_leaves_a_running_device() {
    let (served, mut peer, seen) = start();
    peer.ask(FEATURE, &logging(4096, &[])).unwrap();
    go(&mut peer, 3).unwrap();
    drop(peer);
    assert_eq!(served.end().1, Ok(Ended::Disconnected));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.abandoned, Some(State::StopCopy));
    assert!(seen.logging.is_none());
}
