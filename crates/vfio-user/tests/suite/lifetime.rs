//! Coming, going, and being stopped.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use vfio_user::{BindError, Ended, Negotiated, Options, ServeError, Server, Violation};

use crate::device::{BAR0, Device};
use crate::peer::{self, Peer, Served, listening, message, u32s, u64s};

fn read_register() -> Vec<u8> {
    [u64s(&[0]), u32s(&[BAR0, 4])].concat()
}

#[test]
fn stop_returns_at_any_moment() {
    type Moment = fn(&mut Peer);
    let moments: [(&str, Moment); 4] = [
        ("before the first byte", |_| ()),
        ("between messages", Peer::negotiate),
        ("inside a header", |peer| {
            peer.negotiate();
            peer.send(&[1, 2, 3], &[]).unwrap();
        }),
        ("inside a body", |peer| {
            peer.negotiate();
            let message = message(1, peer::REGION_READ, 0, &read_register());
            peer.send(&message[..20], &[]).unwrap();
        }),
    ];
    for (name, moment) in moments {
        let (served, mut peer) = Served::start_raw(Device::default(), Options::default());
        moment(&mut peer);
        served.stopper.stop();
        let (device, ended) = served.end();
        assert_eq!(ended, Ok(Ended::Stopped), "{name}");
        assert_eq!(device.connects, device.disconnects, "{name}");
    }
}

#[test]
fn stop_ends_the_wait_for_a_client_for_good() {
    let server = listening();
    let stopper = server.stopper();
    thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve_one(&mut Device::default()));
        stopper.stop();
        assert_eq!(serving.join().unwrap(), Ok(Ended::Stopped));
    });
    assert_eq!(server.serve_one(&mut Device::default()), Ok(Ended::Stopped));
}

#[test]
fn stop_ends_the_wait_for_a_client_that_does_not_read() {
    let device = Device::default();
    let options = Options {
        send_timeout: Duration::from_mins(10),
        ..Options::default()
    };
    let (served, mut peer) = Served::start_raw(device, options);
    peer.negotiate();
    fill(&peer);
    served.stopper.stop();
    assert_eq!(served.end().1, Ok(Ended::Stopped));
}

/// Asks until the server has no more room for its replies, and therefore no longer reads.
fn fill(peer: &Peer) {
    let patience = Some(Duration::from_millis(200));
    peer.stream.set_write_timeout(patience).unwrap();
    let body = [u64s(&[0]), u32s(&[BAR0, 4096])].concat();
    let ask = message(1, peer::REGION_READ, 0, &body);
    while peer.send(&ask, &[]).is_ok() {}
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let options = Options {
        send_timeout: Duration::from_millis(100),
        ..Options::default()
    };
    let (served, mut peer) = Served::start_raw(Device::default(), options);
    peer.negotiate();
    fill(&peer);
    let (device, ended) = served.end();
    assert_eq!(ended, Err(ServeError::NotReading));
    assert_eq!(device.disconnects, 1);
}

#[test]
fn a_client_that_only_stops_to_send_gets_its_replies() {
    let (served, peer) = Served::start(Device::default());
    for id in 0..10 {
        peer.send(&message(id, peer::REGION_READ, 0, &read_register()), &[])
            .unwrap();
    }
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for id in 0..10 {
        assert_eq!(peer.receive().unwrap().id, id);
    }
    assert!(peer.receive().is_none());
    assert_eq!(served.end().1, Ok(Ended::Disconnected));
}

#[test]
fn a_client_that_leaves_inside_a_message_broke_the_protocol() {
    let (served, peer) = Served::start(Device::default());
    peer.send(&[0; 15], &[]).unwrap();
    drop(peer);
    let (device, ended) = served.end();
    assert_eq!(ended, Err(Violation::Truncated.into()));
    assert_eq!(device.disconnects, 1);
}

#[test]
fn a_second_client_waits_for_the_first_to_leave() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::bind(&path).unwrap();
    thread::scope(|scope| {
        let (ends, ended) = channel();
        scope.spawn(move || {
            let mut device = Device::default();
            for _ in 0..2 {
                ends.send(server.serve_one(&mut device)).unwrap();
            }
            assert_eq!((device.connects, device.disconnects), (2, 2));
        });
        let mut first = Peer::new(UnixStream::connect(&path).unwrap());
        first.negotiate();
        let second = Peer::new(UnixStream::connect(&path).unwrap());
        second
            .send(&message(9, peer::VERSION, 0, &peer::proposal()), &[])
            .unwrap();
        first.ask(peer::REGION_READ, &read_register()).unwrap();
        assert!(ended.try_recv().is_err(), "the first is still served");
        drop(first);
        assert_eq!(ended.recv().unwrap(), Ok(Ended::Disconnected));
        assert_eq!(second.receive().unwrap().id, 9);
        drop(second);
        assert_eq!(ended.recv().unwrap(), Ok(Ended::Disconnected));
    });
    assert!(!path.exists(), "the server took its socket with it");
}

#[test]
fn a_connection_is_taken_over_where_its_server_was_stopped() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer::new(theirs);
    let kept = ours.try_clone().unwrap();
    let (first, second) = (listening(), listening());
    let negotiated = Negotiated {
        max_data_xfer_size: 1 << 20,
        client_max_msg_fds: 16,
        write_multiple: true,
    };
    thread::scope(|scope| {
        let serving = scope.spawn(|| first.serve_stream(ours, None, &mut Device::default()));
        peer.negotiate();
        first.stopper().stop();
        assert_eq!(serving.join().unwrap(), Ok(Ended::Stopped));
        peer.send(&message(77, peer::REGION_READ, 0, &read_register()), &[])
            .unwrap();
        let serving = scope.spawn(|| {
            let mut device = Device::default();
            let ended = second.serve_stream(kept, Some(negotiated), &mut device);
            (device.connects, ended)
        });
        assert_eq!(peer.receive().unwrap().id, 77);
        peer.ask(peer::RESET, &[]).unwrap();
        drop(peer);
        assert_eq!(serving.join().unwrap(), (1, Ok(Ended::Disconnected)));
    });
}

#[test]
fn what_is_in_the_way_of_a_socket_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let dead = UnixListener::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::InUse(_))));
    drop(dead);
    let server = Server::bind(&path).expect("an abandoned socket is replaced");
    assert!(matches!(Server::bind(&path), Err(BindError::InUse(_))));
    drop(server);
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::NotASocket(_))));
    let nowhere = folder.path().join("none/socket");
    assert!(matches!(
        Server::bind(nowhere),
        Err(BindError::System { .. })
    ));
}

#[test]
fn a_dropped_server_leaves_its_successors_socket_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}

#[test]
fn descriptors_find_their_commands_in_a_row_of_messages() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer::new(theirs);
    let memory = Device::default().memory();
    let vectors = peer::eventfds(2);
    // All of it lies in the socket before the first read.
    let send = |command, flags, body: Vec<u8>, fds: &[_]| {
        peer.send(&message(1, command, flags, &body), fds).unwrap();
    };
    let write = [u64s(&[8]), u32s(&[BAR0, 4]), vec![1, 2, 3, 4]].concat();
    let map = |iova| [u32s(&[32, 3]), u64s(&[0, iova, 4096])].concat();
    send(peer::VERSION, 0, peer::proposal(), &[]);
    for (iova, fd) in [(0, None), (0x1000, Some(&memory)), (0x2000, None)] {
        send(peer::REGION_WRITE, peer::NO_REPLY, write.clone(), &[]);
        let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
        send(peer::DMA_MAP, 0, map(iova), &fds);
    }
    let set = u32s(&[20, 4 | 32, 2, 5, 2]);
    send(peer::SET_IRQS, 0, set, &peer::borrowed(&vectors));
    send(peer::REGION_WRITE, peer::NO_REPLY, write.clone(), &[]);
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();

    let mut device = Device::default();
    assert_eq!(
        listening().serve_stream(ours, None, &mut device),
        Ok(Ended::Disconnected)
    );
    let expected = [
        "map 0x0 to nothing",
        "map 0x1000 to memory",
        "map 0x2000 to nothing",
        "2: Trigger 5..7 to 2 eventfds",
    ];
    assert_eq!(device.log, expected);
}
