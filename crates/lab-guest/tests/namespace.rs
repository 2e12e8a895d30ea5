//! The load against the built-in peer, with the real Linux stack as the guest: a network namespace
//! whose only interface is a TAP, and in place of a NIC model a pump between TAP and wire.

#[path = "../../uplink/tests/support/namespace.rs"]
mod namespace;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use device::{FrameLink, Sent, TxFrame, TxOffload};
use load_format::{GuestReport, Silence};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uplink::peer::{PeerReport, now_nanos};
use uplink::{Peer, PeerConfig, Tap, Wire};

use namespace::{in_namespace, ip};

const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const OUTAGE: Duration = Duration::from_millis(100);
/// What had come before the outage may be read this much later on a machine busy with others.
const LATE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);
/// Packets lost in an outage, each way, at least: the outage lasts until then.
const LOST: u64 = 50;
/// Packets may be on their way at either end of an outage.
const SLACK: Duration = Duration::from_millis(20);

#[test]
fn load_flows_without_loss_and_a_move_costs_only_its_outage() {
    in_namespace(|| {
        let bench = Bench::start();
        flows_without_loss(&bench);
        moves_with_loss_only_in_the_outage(&bench);
        moves_with_loss_only_in_the_outage(&bench);
        assert_eq!(bench.peer.report().switch.ports_ever, 3);
    });
}

fn flows_without_loss(bench: &Bench) {
    bench.reset();
    let since = now_nanos();
    bench
        .until(|report| report.udp_to_guest.sent >= 4000 && report.udp_from_guest.received >= 4000);
    let took = Duration::from_nanos(now_nanos() - since);
    let (peer, guest) = (bench.peer.report(), guest_report());

    let (udp, tcp) = (guest.udp.expect("asked for"), guest.tcp.expect("asked for"));
    assert_eq!(
        (udp.lost, udp.duplicates, udp.reordered, udp.corrupt),
        (0, 0, 0, 0)
    );
    let millis = guest.window_nanos / 1_000_000;
    assert!(
        udp.received > millis && udp.sent > millis,
        "half the rate in {millis} ms: {udp:?}"
    );
    assert_eq!(peer.udp_from_guest.lost, 0);
    assert_eq!(
        peer.udp_from_guest.duplicates + peer.udp_from_guest.corrupt,
        0
    );
    assert_eq!((peer.icmp.lost, peer.icmp.corrupt), (0, 0));
    assert!(peer.icmp.answered >= 1000, "{:?}", peer.icmp);
    assert!(
        took < Duration::from_secs(8),
        "a quarter of the rate: 2 s of packets in {took:?}"
    );

    assert!(peer.tcp_content_ok(), "{:?}", peer.tcp);
    assert_eq!((tcp.wrong_bytes, tcp.broken), (0, 0));
    let expected = 2000 * u64::try_from(took.as_millis()).expect("seconds");
    for bytes in [
        peer.tcp.to_guest_bytes,
        peer.tcp.from_guest_bytes,
        tcp.received_bytes,
    ] {
        let fair = expected / 4..expected * 3 / 2;
        assert!(fair.contains(&bytes), "{bytes} in {took:?}");
    }
    let dirty = guest.dirty.expect("asked for");
    assert!(
        dirty.written_bytes > dirty.memory_bytes && dirty.wrong_words == 0,
        "{dirty:?}"
    );
}

fn moves_with_loss_only_in_the_outage(bench: &Bench) {
    bench.reset();
    let since = now_nanos();
    bench.nic.move_to_another_wire();
    let resumed = now_nanos();
    bench
        .peer
        .wait_for_traffic(resumed, PATIENCE)
        .expect("traffic goes on");
    // Until the guest has a number from after the outage, it cannot know what it missed.
    let newest = bench.peer.report().udp_to_guest.highest_received;
    bench.until(|report| report.udp_to_guest.highest_received > newest);
    let window = bench.peer.window(since, resumed);
    let (peer, guest) = (bench.peer.report(), guest_report());
    let (udp, tcp) = (guest.udp.expect("asked for"), guest.tcp.expect("asked for"));

    for silence in [window.udp_from_guest, window.udp_to_guest, window.icmp] {
        let length = Duration::from_nanos(silence.as_ref().map_or(0, Silence::nanos));
        assert!(length + LATE >= OUTAGE, "{window:?}");
    }
    let outage = window.outage().expect("packets flow both ways");
    assert!(
        outage.from_nanos < resumed && outage.to_nanos > since,
        "{resumed}: {window:?}"
    );

    assert!(
        peer.udp_from_guest.lost >= LOST,
        "{:?}",
        peer.udp_from_guest
    );
    assert!(udp.lost >= LOST, "{udp:?}");
    assert_eq!(udp.lost_elsewhere, 0);
    let from_guest = bench.peer.loss_from_guest(&[outage], SLACK);
    let to_guest = bench.peer.loss_to_guest(&udp.lost_runs, &[outage], SLACK);
    assert_eq!(
        (from_guest.inside, from_guest.outside),
        (peer.udp_from_guest.lost, 0)
    );
    assert_eq!((to_guest.inside, to_guest.outside), (udp.lost, 0));
    assert_eq!(window.udp_lost_from_guest, peer.udp_from_guest.lost);

    assert!(peer.tcp_content_ok(), "{:?}", peer.tcp);
    assert_eq!((tcp.wrong_bytes, tcp.broken), (0, 0));
    assert_eq!(peer.moves.count, 1);
    assert!(peer.moves.last_nanos.is_some_and(|at| at > since));
}

/// Peer, pump and load, up and running.
struct Bench {
    // In the order in which they are to end.
    _load: Load,
    nic: Nic,
    peer: Peer,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("peer");
        let peer = Peer::start(PeerConfig::new(&socket, PEER, GUEST)).expect("a free socket");
        let tap = Tap::open("vf0").expect("a TAP");
        ip("link set vf0 address 02:00:00:00:00:77 txqueuelen 5000");
        ip(&format!("addr add {GUEST}/24 dev vf0"));
        ip("link set vf0 up");
        let nic = Nic::start(tap, socket);
        let load = Load(
            lab_guest(&["load", "--peer", &PEER.to_string(), "--dirty-mib", "4"])
                .spawn()
                .expect("our own binary"),
        );
        let bench = Self {
            _load: load,
            nic,
            peer,
            _folder: folder,
        };
        bench
            .peer
            .wait_for_traffic(now_nanos(), PATIENCE)
            .expect("traffic begins");
        bench
    }

    /// Waits for what the peer will report.
    fn until(&self, reached: impl Fn(&PeerReport) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(&self.peer.report()) {
            assert!(
                Instant::now() < deadline,
                "not reached: {:?}",
                self.peer.report()
            );
            self.peer
                .wait_for_traffic(now_nanos(), PATIENCE)
                .expect("traffic flows");
        }
    }

    fn reset(&self) {
        self.peer.reset();
        ask("reset");
    }
}

/// The running `lab-guest load`, ended with the test.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn guest_report() -> GuestReport {
    serde_json::from_str(&ask("report")).expect("a report")
}

/// Asks the running load by a second `lab-guest`.
fn ask(command: &str) -> String {
    let output = lab_guest(&[command]).output().expect("our own binary");
    assert!(output.status.success(), "lab-guest {command}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("JSON");
    assert_eq!(
        text.lines().count(),
        1,
        "one line, for a serial console: {text}"
    );
    text
}

fn lab_guest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab-guest"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Pumps frames between TAP and wire, as a NIC model does between rings and wire.
struct Nic {
    moves: Sender<Sender<()>>,
}

impl Nic {
    fn start(tap: Tap, socket: PathBuf) -> Self {
        let (moves, requests) = channel();
        std::thread::spawn(move || pump(tap, &socket, &requests));
        Self { moves }
    }

    /// The device halts, the VM pauses, and another process goes on with it on another wire.
    fn move_to_another_wire(&self) {
        let (done, moved) = channel();
        self.moves.send(done).expect("the pump runs");
        moved.recv_timeout(PATIENCE).expect("the pump runs");
    }
}

fn pump(mut tap: Tap, socket: &Path, requests: &Receiver<Sender<()>>) {
    let mut wire = Wire::connect(socket).expect("the peer listens");
    loop {
        match requests.try_recv() {
            Ok(done) => {
                wire = outage(&mut tap, wire, socket);
                done.send(()).expect("the test waits");
            }
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {}
        }
        forward(&mut tap, &mut wire);
        forward(&mut wire, &mut tap);
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, wire.wants_write());
        let mut fds = vec![PollFd::from_borrowed_fd(
            tap.fd().expect("up"),
            PollFlags::IN,
        )];
        fds.extend(wire.fd().map(|fd| PollFd::from_borrowed_fd(fd, interest)));
        let timeout = Timespec::try_from(Duration::from_millis(5)).expect("short");
        poll(&mut fds, Some(&timeout)).expect("polls");
    }
}

/// Loses what comes either way, then announces the guest on a new wire.
fn outage(tap: &mut Tap, mut old: Wire, socket: &Path) -> Wire {
    let end = Instant::now() + OUTAGE;
    let (mut from_guest, mut to_guest) = (0, 0);
    while Instant::now() < end || from_guest < LOST || to_guest < LOST {
        from_guest += lose(tap);
        to_guest += lose(&mut old);
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut new = Wire::connect(socket).expect("the peer listens");
    new.announce(MAC);
    new
}

/// Takes all frames and gives back how many of them are numbered UDP.
fn lose(link: &mut dyn FrameLink) -> u64 {
    let mut lost = 0;
    while let Some(frame) = link.peek() {
        let is_udp = frame.bytes.len() > 200 && frame.bytes[12..14] == [8, 0];
        lost += u64::from(is_udp && frame.bytes[23] == 17);
        link.consume();
    }
    lost
}

fn forward(from: &mut dyn FrameLink, to: &mut dyn FrameLink) {
    while let Some(frame) = from.peek() {
        let frame = TxFrame {
            bytes: frame.bytes,
            offload: TxOffload::None,
        };
        if to.send(frame) == Sent::Full {
            break;
        }
        from.consume();
    }
    to.flush();
}
