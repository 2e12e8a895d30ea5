//! The client's memory, read and written by message while it uses the device.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use vfio_user::{Client, DmaMessageError, Ended, Errno, Options};

use crate::device::{BAR0, Device};
use crate::peer::{self, DMA_READ, DMA_WRITE, ERROR, NO_REPLY, Peer, REPLY, Served, message};
use crate::peer::{u32s, u64s};

/// A device that hands out its client whenever a register is written.
fn device() -> (Device, Receiver<Client>) {
    let (clients, client) = channel();
    let device = Device {
        // Most tests take only the first.
        on_write: Some(Box::new(move |client| drop(clients.send(client.clone())))),
        ..Device::default()
    };
    (device, client)
}

/// A served device, its client, and the way back to that client.
fn start(options: Options) -> (Served, Peer, Client) {
    let (device, client) = device();
    let (served, mut peer) = Served::start_raw(device, options);
    peer.negotiate();
    write_register(&mut peer);
    (served, peer, receive(&client))
}

fn write_register(peer: &mut Peer) {
    let body = [u64s(&[0]), u32s(&[BAR0, 4]), vec![0; 4]].concat();
    peer.ask(peer::REGION_WRITE, &body).unwrap();
}

fn receive<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(Duration::from_secs(10))
        .expect("it comes")
}

fn quick() -> Options {
    Options {
        send_timeout: Duration::from_millis(50),
        reply_timeout: Duration::from_millis(50),
    }
}

#[test]
fn a_read_is_asked_for_in_pieces_and_put_together() {
    let (_served, peer, client) = start(Options::default());
    let reading = thread::spawn(move || client.dma_read(0x1000, 80_000));
    for (start, count) in [(0x1000, 32768), (0x9000, 32768), (0x11000, 14464)] {
        let asked = peer.receive().unwrap();
        assert_eq!((asked.command, asked.flags), (DMA_READ, 0));
        assert_eq!(
            asked.body,
            u64s(&[start, count]),
            "64-bit address and count"
        );
        let data = vec![start.to_le_bytes()[2] + 1; usize::try_from(count).unwrap()];
        let body = [asked.body, data].concat();
        peer.send(&message(asked.id, DMA_READ, REPLY, &body), &[])
            .unwrap();
    }
    let read = reading.join().unwrap().unwrap();
    assert_eq!(read.len(), 80_000);
    assert_eq!([read[0], read[65_535], read[79_999]], [1, 1, 2]);
}

#[test]
fn a_write_is_sent_in_pieces_of_what_was_agreed_on() {
    let (device, client) = device();
    let (_served, mut peer) = Served::start_raw(device, Options::default());
    let json = br#"{"capabilities":{"max_data_xfer_size":8}}"#;
    peer.ask(peer::VERSION, &[&[0; 4], &json[..], &[0]].concat())
        .unwrap();
    write_register(&mut peer);
    let client = receive(&client);
    let writing = thread::spawn(move || client.dma_write(0x100, b"hello, guest"));
    // The replies of libvfio-user (and QEMU 11.1), and of the specification's table.
    for (iova, data, reply) in [
        (0x100, &b"hello, g"[..], u64s(&[0x100, 8])),
        (0x108, b"uest", [u64s(&[0x108]), u32s(&[4])].concat()),
    ] {
        let asked = peer.receive().unwrap();
        assert_eq!((asked.command, asked.flags), (DMA_WRITE, 0));
        assert_eq!(
            asked.body,
            [u64s(&[iova, data.len() as u64]), data.to_vec()].concat()
        );
        peer.send(&message(asked.id, DMA_WRITE, REPLY, &reply), &[])
            .unwrap();
    }
    assert_eq!(writing.join().unwrap(), Ok(()));
}

#[test]
fn a_posted_write_asks_for_no_reply_and_waits_for_none() {
    let (_served, mut peer, client) = start(Options::default());
    client.dma_write_posted(0x2000, b"x").unwrap();
    let asked = peer.receive().unwrap();
    assert_eq!((asked.command, asked.flags), (DMA_WRITE, NO_REPLY));
    assert_eq!(asked.body, [u64s(&[0x2000, 1]), b"x".to_vec()].concat());
    write_register(&mut peer);
}

#[test]
fn a_refusal_is_told() {
    let (_served, peer, client) = start(Options::default());
    let writing = thread::spawn(move || client.dma_write(0x2000, b"x"));
    let asked = peer.receive().unwrap();
    let mut reply = message(asked.id, DMA_WRITE, REPLY | ERROR, &[]);
    reply[12] = 19;
    peer.send(&reply, &[]).unwrap();
    let refused = DmaMessageError::Refused(Errno::NODEV);
    assert_eq!(writing.join().unwrap(), Err(refused));
}

#[test]
fn replies_that_do_not_fit_are_refused() {
    let (_served, peer, client) = start(Options::default());
    for body in [
        u64s(&[0x1000, 4]),
        [u64s(&[0x1000, 4]), vec![0; 5]].concat(),
        [u64s(&[0x1000, 5]), vec![0; 5]].concat(),
        [u64s(&[0x2000, 4]), vec![0; 4]].concat(),
        vec![],
    ] {
        let client = client.clone();
        let reading = thread::spawn(move || client.dma_read(0x1000, 4));
        let asked = peer.receive().unwrap();
        peer.send(&message(asked.id, DMA_READ, REPLY, &body), &[])
            .unwrap();
        assert_eq!(
            reading.join().unwrap(),
            Err(DmaMessageError::BadReply),
            "{body:?}"
        );
    }
}

#[test]
fn replies_find_their_requests_in_any_order_amid_commands() {
    let (_served, mut peer, client) = start(Options::default());
    let readers: Vec<_> = (0..8u64)
        .map(|i| {
            let client = client.clone();
            thread::spawn(move || client.dma_read(i << 12, 1))
        })
        .collect();
    let mut asked: Vec<_> = (0..8).map(|_| peer.receive().unwrap()).collect();
    write_register(&mut peer);
    asked.sort_by_key(|a| std::cmp::Reverse(a.body[1]));
    for request in asked {
        let body = [request.body.clone(), vec![request.body[1] >> 4]].concat();
        peer.send(&message(request.id, DMA_READ, REPLY, &body), &[])
            .unwrap();
    }
    for (i, reader) in (0u8..).zip(readers) {
        assert_eq!(reader.join().unwrap(), Ok(vec![i]));
    }
}

#[test]
fn a_reply_that_comes_too_late_is_dropped() {
    let (_served, mut peer, client) = start(quick());
    assert_eq!(client.dma_read(0x1000, 4), Err(DmaMessageError::Timeout));
    let late = peer.receive().unwrap();
    let body = [late.body, vec![0; 4]].concat();
    peer.send(&message(late.id, DMA_READ, REPLY, &body), &[])
        .unwrap();
    write_register(&mut peer);
    let reading = thread::spawn(move || client.dma_read(0x1000, 1));
    let asked = peer.receive().unwrap();
    assert_ne!(asked.id, late.id);
    let body = [asked.body, vec![7]].concat();
    peer.send(&message(asked.id, DMA_READ, REPLY, &body), &[])
        .unwrap();
    assert_eq!(reading.join().unwrap(), Ok(vec![7]));
}

#[test]
fn whoever_waits_is_told_of_the_end() {
    for stop in [false, true] {
        let (served, peer, client) = start(Options::default());
        let waiting = client.clone();
        let reading = thread::spawn(move || waiting.dma_read(0x1000, 4));
        peer.receive().expect("the request");
        if stop {
            served.stopper.stop();
        } else {
            drop(peer);
        }
        assert_eq!(reading.join().unwrap(), Err(DmaMessageError::Closed));
        let expected = if stop {
            Ended::Stopped
        } else {
            Ended::Disconnected
        };
        assert_eq!(served.end().1, Ok(expected));
        assert_eq!(client.dma_write(0, &[1]), Err(DmaMessageError::Closed));
        assert_eq!(
            client.dma_write_posted(0, &[1]),
            Err(DmaMessageError::Closed)
        );
    }
}

#[test]
fn a_backend_that_waits_for_its_threads_when_the_client_leaves_is_not_kept() {
    let (mut device, client) = device();
    let (threads, thread) = channel::<thread::JoinHandle<Result<Vec<u8>, DmaMessageError>>>();
    device.on_disconnect = Some(Box::new(move || {
        let read = receive(&thread).join().unwrap();
        assert_eq!(read, Err(DmaMessageError::Closed));
    }));
    let options = Options {
        reply_timeout: Duration::from_mins(10),
        ..Options::default()
    };
    let (served, mut peer) = Served::start_raw(device, options);
    peer.negotiate();
    write_register(&mut peer);
    let client = receive(&client);
    threads
        .send(thread::spawn(move || client.dma_read(0, 1)))
        .unwrap();
    peer.receive().expect("the request");
    drop(peer);
    assert_eq!(served.end().1, Ok(Ended::Disconnected));
}

#[test]
fn inside_the_backend_waiting_is_refused_and_posting_is_not() {
    let (results, result) = channel();
    let device = Device {
        on_write: Some(Box::new(move |client| {
            let read = client.dma_read(0, 1).map(|_| ());
            let posted = client.dma_write_posted(0x3000, b"y");
            results
                .send([read, client.dma_write(0, &[0]), posted])
                .unwrap();
        })),
        ..Device::default()
    };
    let (_served, peer) = Served::start(device);
    let body = [u64s(&[0]), u32s(&[BAR0, 4]), vec![0; 4]].concat();
    peer.send(&message(1, peer::REGION_WRITE, 0, &body), &[])
        .unwrap();
    let inside = Err(DmaMessageError::InsideBackend);
    assert_eq!(receive(&result), [inside, inside, Ok(())]);
    assert_eq!(peer.receive().unwrap().command, DMA_WRITE);
    assert_eq!(peer.receive().unwrap().command, peer::REGION_WRITE);
}

#[test]
fn ranges_past_the_end_of_memory_are_refused_and_empty_ones_are_nothing() {
    let (_served, _peer, client) = start(Options::default());
    assert_eq!(client.dma_read(u64::MAX, 2), Err(DmaMessageError::BadRange));
    assert_eq!(
        client.dma_write(u64::MAX, &[0; 2]),
        Err(DmaMessageError::BadRange)
    );
    assert_eq!(client.dma_read(5, 0), Ok(vec![]));
    assert_eq!(client.dma_write(5, &[]), Ok(()));
}

#[test]
fn a_client_that_does_not_read_fails_the_write_and_then_the_connection() {
    let (served, peer, client) = start(quick());
    let data = vec![0; 1 << 20];
    assert_eq!(
        client.dma_write_posted(0, &data),
        Err(DmaMessageError::NotReading)
    );
    // A part of it was sent: what came after would be taken for the rest.
    assert_eq!(
        client.dma_write_posted(0, &[1]),
        Err(DmaMessageError::Closed)
    );
    assert_eq!(served.end().1, Ok(Ended::Disconnected));
    drop(peer);
}
