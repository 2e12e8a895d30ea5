use std::io::{Read as _, Write as _};

use super::*;
use crate::journal::{Limits, Message};

const LIMITS: Limits = Limits {
    state: 8,
    rare: 0,
    reply: 100_000,
};

/// A client, and all that outlives a worker.
struct Bench {
    client: UnixStream,
    stream: Arc<UnixStream>,
    pipe: (OwnedFd, OwnedFd),
    journal: Arc<Journal>,
}

impl Bench {
    fn new() -> Self {
        let (client, stream) = UnixStream::pair().unwrap();
        let limit = Some(Duration::from_secs(5));
        client.set_read_timeout(limit).unwrap();
        let journal = Arc::new(Journal::create(LIMITS).unwrap());
        journal.put(b"", None, None).unwrap();
        Self {
            client,
            stream: Arc::new(stream),
            pipe: Conversation::pipe().unwrap(),
            journal,
        }
    }

    /// A worker, which takes over from the last one.
    fn worker(&self) -> Conversation {
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
        let pipe = (copy(&self.pipe.0), copy(&self.pipe.1));
        let (stream, journal) = (Arc::clone(&self.stream), Arc::clone(&self.journal));
        Conversation::resume(stream, pipe, journal).unwrap()
    }

    fn say(&self, words: &str) {
        (&self.client).write_all(words.as_bytes()).unwrap();
    }

    fn hears(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        (&self.client).read_exact(&mut bytes).unwrap();
        bytes
    }

    fn hears_nothing(&self) {
        self.client.set_nonblocking(true).unwrap();
        let error = (&self.client).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        self.client.set_nonblocking(false).unwrap();
    }

    fn carry_out(&self, len: u64, reply: Option<&[u8]>) {
        let message = Message { len, reply };
        self.journal.put(b"", None, Some(message)).unwrap();
    }
}

fn shown(worker: &mut Conversation) -> String {
    let mut space = [0; 100];
    let received = worker.receive(&mut space).unwrap();
    String::from_utf8_lossy(&space[..received.len]).into_owned()
}

#[test]
fn what_was_not_carried_out_is_seen_again() {
    let bench = Bench::new();
    bench.say("onetwo");
    let mut worker = bench.worker();
    assert_eq!(shown(&mut worker), "onetwo");
    bench.carry_out(3, None);
    assert_eq!(shown(&mut bench.worker()), "two");
    // It has taken `one` out.
    assert_eq!(shown(&mut bench.worker()), "two");
    bench.carry_out(3, None);
    bench.say("three");
    assert_eq!(shown(&mut bench.worker()), "three");
}

#[test]
fn what_is_shown_goes_on_where_it_ended() {
    let bench = Bench::new();
    let mut worker = bench.worker();
    bench.say("on");
    assert_eq!(shown(&mut worker), "on");
    bench.say("etwo");
    assert_eq!(shown(&mut worker), "etwo");
    bench.carry_out(3, None);
    bench.say("!");
    assert_eq!(shown(&mut worker), "!");
}

#[test]
fn a_worker_that_died_when_it_took_messages_out_has_taken_them_or_not() {
    for took in [0, 2, 3] {
        let bench = Bench::new();
        bench.say("onetwo");
        let mut worker = bench.worker();
        assert_eq!(shown(&mut worker), "onetwo");
        bench.carry_out(3, None);
        // As `consume`, but that what it has done is not written down.
        bench.journal.set(word::SHOWN, 6);
        bench.journal.set(word::CONSUMED, 1);
        if took > 0 {
            (&*bench.stream).read_exact(&mut vec![0; took]).unwrap();
        }
        assert_eq!(shown(&mut bench.worker()), "two", "{took} taken");
    }
}

#[test]
fn a_reply_is_sent_once_whenever_the_worker_died() {
    let long: Vec<u8> = (0..=u8::MAX).cycle().take(2 * PIECE + 100).collect();
    // How much of which piece went into the pipe and out of it again, and what was written down.
    let deaths = [
        (0, 0, 0, None),
        (0, 0, 0, Some(false)),
        (0, 10, 0, Some(false)),
        (0, PIECE, 0, Some(false)),
        (0, PIECE, 0, Some(true)),
        (0, PIECE, 7, Some(true)),
        (0, PIECE, PIECE, Some(true)),
        (1, 20, 0, Some(false)),
        (2, 100, 100, Some(true)),
    ];
    for (piece, piped, sent, written) in deaths {
        let bench = Bench::new();
        bench.say("one");
        let mut worker = bench.worker();
        assert_eq!(shown(&mut worker), "one");
        bench.carry_out(3, Some(&long));
        let reader = thread::spawn({
            let client = bench.client.try_clone().unwrap();
            let len = long.len();
            move || {
                let mut bytes = vec![0; len];
                { &client }.read_exact(&mut bytes).unwrap();
                bytes
            }
        });
        let from = piece * PIECE;
        (&*bench.stream).write_all(&long[..from]).unwrap();
        rustix::io::write(&bench.pipe.1, &long[from..from + piped]).unwrap();
        if sent > 0 {
            let mut left = sent;
            while left > 0 {
                left -= worker.splice(left).unwrap();
            }
        }
        if let Some(piped) = written {
            let stage = Sending {
                message: 1,
                sent: piece,
                piped,
            };
            bench.journal.set(word::REPLY, stage.word());
        }
        let worker = bench.worker();
        assert!(reader.join().unwrap() == long, "{piece} {piped} {sent}");
        worker.answer().unwrap();
        drop(bench.worker());
        bench.hears_nothing();
    }
}

#[test]
fn each_reply_is_sent_when_it_is_due() {
    let bench = Bench::new();
    let mut worker = bench.worker();
    for (question, reply) in [("one", Some("1")), ("two", None), ("six", Some("666"))] {
        bench.say(question);
        assert_eq!(shown(&mut worker), question);
        bench.carry_out(3, reply.map(str::as_bytes));
        worker.answer().unwrap();
        let reply = reply.unwrap_or_default();
        assert_eq!(bench.hears(reply.len()), reply.as_bytes());
        bench.hears_nothing();
    }
}

#[test]
fn descriptors_come_again_until_their_message_is_carried_out() {
    let bench = Bench::new();
    let sent = [bench.client.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&sent)));
    let words = [io::IoSlice::new(b"with")];
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&bench.client, &words, &mut control, flags).unwrap();
    bench.say("next");
    for _ in 0..2 {
        let mut space = [0; 100];
        let received = bench.worker().receive(&mut space).unwrap();
        assert_eq!((received.len, received.fds.len()), (4, 1));
    }
    // With no more room than for a part of it, they come with the rest.
    for room in [2, 3, 4] {
        let mut worker = bench.worker();
        let (mut seen, mut fds) = (0, 0);
        while seen < 4 {
            let mut space = vec![0; room.min(4 - seen).max(2)];
            let received = worker.receive(&mut space).unwrap();
            seen += received.len;
            fds += received.fds.len();
        }
        assert_eq!((seen, fds), (4, 1), "room for {room}");
    }
    bench.carry_out(4, None);
    let mut space = [0; 100];
    let received = bench.worker().receive(&mut space).unwrap();
    assert_eq!((received.len, received.fds.len()), (4, 0));
}

#[test]
fn a_reply_that_nobody_reads_fails_in_time() {
    let bench = Bench::new();
    let worker = bench.worker();
    let limit = bench.stream.write_timeout().unwrap();
    assert_eq!(limit, Some(PATIENCE));
    // A test does not wait so long.
    let limit = Some(Duration::from_millis(20));
    bench.stream.set_write_timeout(limit).unwrap();
    for _ in 0..1000 {
        bench.carry_out(1, Some(&vec![7; 100_000]));
        if let Err(error) = worker.answer() {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            return;
        }
    }
    panic!("no socket has room for all that");
}
