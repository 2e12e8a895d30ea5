//! A worker is killed over and over, and its client sees each request done and answered once.
//!
//! The client adds numbers: some by posted requests, some by requests that want the sum back, in
//! lengths that go into one read, into several, and come in pieces. Some bring a file, which is asked for
//! again by later ones. The sum and the order of the
//! replies show what was lost or done twice. The worker is this test program, started by the keeper.

use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use keeper::{
    Conversation, Ended, Event, Held, Journal, Keeper, KeeperError, Limits, Message, Rate, Worker,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};

/// Length, serial number, value and whether a reply is wanted, whether a file comes along.
const HEADER: usize = 32;
const LIMITS: Limits = Limits {
    state: 4096,
    rare: 64,
    reply: 128 << 10,
};
const IS_WORKER: &str = "KEEPER_TEST_IS_WORKER";
const KILLS: u64 = 500;
/// A worker that dies of itself is not started for ever.
const KILLS_LIMIT: usize = 520;

/// Adds. Its state has a tail that depends on the sum, so that slots have other lengths each time.
struct Adder {
    sum: u64,
    serial: u64,
    /// Where in the stream the last file came, plus 1.
    file_at: u64,
    held: Held,
    keeper: Worker,
}

impl Adder {
    fn load(state: &[u8], keeper: Worker, held: Held) -> Self {
        let (sum, serial) = (u64_at(state, 0), u64_at(state, 8));
        let tail = &state[24..];
        assert_eq!(tail, Self::tail(sum), "the state is of one piece");
        Self {
            sum,
            serial,
            file_at: u64_at(state, 16),
            held,
            keeper,
        }
    }

    /// Files that came where neither of `needed` says: what is in force needs no others.
    fn let_go_of_all_but(&mut self, needed: [u64; 2]) {
        let needed = needed.map(|at| format!("file-{}", at.wrapping_sub(1)));
        let is_old = |name: &String| name.starts_with("file-") && !needed.contains(name);
        let old: Vec<_> = self.held.keys().filter(|n| is_old(n)).cloned().collect();
        for name in old {
            self.keeper.let_go(&name).unwrap();
            self.held.remove(&name);
        }
    }

    fn tail(sum: u64) -> Vec<u8> {
        let length = usize::try_from(sum % 3000).unwrap();
        vec![sum.to_le_bytes()[0]; length]
    }
}

impl Adder {
    fn keep(&mut self, at: u64, mut fds: Vec<OwnedFd>) {
        assert_eq!(fds.len(), 1, "as many as were sent");
        let (name, fd) = (format!("file-{at}"), fds.remove(0));
        self.keeper.hold(&name, &fd).unwrap();
        self.held.insert(name, fd);
    }

    fn handle(&mut self, at: u64, request: &[u8]) -> Option<Vec<u8>> {
        let serial = u64_at(request, 8);
        assert_eq!(serial, self.serial + 1, "no request is lost or done twice");
        let (value, wanted) = (u64_at(request, 16) >> 1, u64_at(request, 16) & 1 == 1);
        assert!(
            request[HEADER..]
                .iter()
                .all(|b| *b == serial.to_le_bytes()[0])
        );
        self.serial = serial;
        self.sum = self.sum.wrapping_add(value);
        self.let_go_of_all_but([self.file_at, at + 1]);
        let brings_file = self.held.contains_key(&format!("file-{at}"));
        assert_eq!(
            brings_file,
            u64_at(request, 24) == 1,
            "each has its own file"
        );
        if brings_file {
            self.file_at = at + 1;
        }
        let inode = self.file_at.checked_sub(1).map_or(0, |at| {
            let file = self.held.get(&format!("file-{at}"));
            inode(file.expect("no file is lost"))
        });
        let mut reply = [serial, self.sum, inode].map(u64::to_le_bytes).concat();
        reply.resize(reply_len(serial), serial.to_le_bytes()[0]);
        wanted.then_some(reply)
    }

    fn save(&self) -> Vec<u8> {
        let head = [self.sum, self.serial, self.file_at].map(u64::to_le_bytes);
        [head.concat(), Self::tail(self.sum)].concat()
    }

    /// Serves until the client leaves.
    fn serve(&mut self, conversation: &mut Conversation, journal: &Journal) {
        let (mut bytes, mut begins) = (Vec::new(), u64_at(&journal.rare(), 0));
        loop {
            let mut space = [0; 8192];
            let received = conversation.receive(&mut space).unwrap();
            if received.len == 0 {
                assert_eq!(bytes, [0; 0], "it left between two requests");
                return;
            }
            bytes.extend_from_slice(&space[..received.len]);
            let mut fds = received.fds;
            loop {
                let length = match bytes.get(..8) {
                    Some(length) => usize::try_from(u64_at(length, 0)).unwrap(),
                    None => usize::MAX,
                };
                // They came with the last request that has begun.
                if !fds.is_empty() && !bytes.is_empty() && bytes.len() <= length {
                    self.keep(begins, std::mem::take(&mut fds));
                }
                if bytes.len() < length {
                    break;
                }
                let rest = bytes.split_off(length);
                let reply = self.handle(begins, &bytes);
                begins += length as u64;
                let message = Message {
                    len: length as u64,
                    reply: reply.as_deref(),
                };
                let rare = begins.to_le_bytes();
                let put = journal.put(&self.save(), Some(&rare), Some(message));
                put.unwrap();
                conversation.answer().unwrap();
                bytes = rest;
            }
        }
    }
}

/// Some replies go in several pieces.
fn reply_len(serial: u64) -> usize {
    if serial.is_multiple_of(50) {
        70_000
    } else {
        24
    }
}

/// What the keeper starts; by itself it is no test.
#[test]
fn worker() {
    if std::env::var_os(IS_WORKER).is_none() {
        return;
    }
    let (keeper, mut held) = Worker::start().expect("started by a keeper");
    let mut take = |name: &str| held.remove(name);
    let stream = UnixStream::from(take("socket").expect("the client's socket"));
    let pipe = (take("pipe-out").unwrap(), take("pipe-in").unwrap());
    let journal = if let Some(left) = take("journal") {
        Journal::open(left).expect("whole, whenever its writer died")
    } else {
        let journal = Journal::create(LIMITS).unwrap();
        journal.put(&[0; 24], Some(&[0; 8]), None).unwrap();
        keeper.hold("journal", &journal).unwrap();
        keeper.barrier().unwrap();
        journal
    };
    let journal = Arc::new(journal);
    let mut adder = Adder::load(&journal.state(), keeper, held);
    let mut conversation =
        Conversation::resume(Arc::new(stream), pipe, Arc::clone(&journal)).unwrap();
    adder.serve(&mut conversation, &journal);
}

/// A small generator (xorshift64), so that its start tells the run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What a client has seen.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    replies: u64,
    longest: Duration,
}

/// Sends requests until `enough`, and checks each reply.
fn client(mut stream: UnixStream, start: u64, enough: &dyn Fn(u64) -> bool) -> Seen {
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    let (mut random, mut seen, mut sum) = (Random(start), Seen::default(), 0_u64);
    let mut last_file = 0;
    while !enough(seen.requests) {
        seen.requests += 1;
        let serial = seen.requests;
        let wanted = random.below(3) == 0;
        let value = random.below(1 << 32);
        sum = sum.wrapping_add(value);
        let longest = if random.below(20) == 0 { 12_000 } else { 64 };
        let body = usize::try_from(random.below(longest)).unwrap();
        let file = (random.below(5) == 0).then(|| {
            let file = rustix::fs::memfd_create("sent", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            last_file = inode(&file);
            file
        });
        let words = [
            (HEADER + body) as u64,
            serial,
            value << 1 | u64::from(wanted),
            u64::from(file.is_some()),
        ];
        let mut request: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        request.resize(HEADER + body, serial.to_le_bytes()[0]);
        let cut = usize::try_from(random.below(4) * 7 % request.len() as u64).unwrap();
        let asked = Instant::now();
        let cut = file.map_or(cut, |file| {
            send_with(&stream, &request[..cut.max(1)], &file);
            cut.max(1)
        });
        let begin = if request[24] == 1 { cut } else { 0 };
        for piece in [&request[begin..cut], &request[cut..]] {
            stream
                .write_all(piece)
                .expect("the socket outlives every worker");
        }
        if wanted {
            let mut reply = vec![0; reply_len(serial)];
            stream
                .read_exact(&mut reply)
                .expect("every request is answered");
            let tail = &reply[24..];
            assert!(tail.iter().all(|byte| *byte == serial.to_le_bytes()[0]));
            assert_eq!((u64_at(&reply, 0), u64_at(&reply, 8)), (serial, sum));
            assert_eq!(u64_at(&reply, 16), last_file, "the last file that was sent");
            seen.replies += 1;
            seen.longest = seen.longest.max(asked.elapsed());
        }
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0; 0], "nothing is answered twice");
    seen
}

fn send_with(stream: &UnixStream, bytes: &[u8], file: &OwnedFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

fn inode(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).unwrap().st_ino
}

fn keeper_of(stream: &UnixStream, deaths: usize) -> Keeper {
    let mut keeper = Keeper::new(Rate {
        deaths,
        within: Duration::from_mins(10),
    });
    let (out, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let socket = stream.as_fd().try_clone_to_owned().unwrap();
    for (name, fd) in [("socket", socket), ("pipe-out", out), ("pipe-in", into)] {
        assert!(keeper.hold(name, fd));
    }
    keeper
}

fn command() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker", "--nocapture", "--quiet"]);
    command.env(IS_WORKER, "1");
    command.stdout(std::process::Stdio::null());
    command
}

#[test]
fn five_hundred_kills_at_random_moments_lose_nothing_and_do_nothing_twice() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut keeper = keeper_of(&theirs, KILLS_LIMIT);
    drop(theirs);
    let enough = Arc::new(AtomicBool::new(false));
    let is_enough = Arc::clone(&enough);
    let served = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&served);
    let client = thread::spawn(move || {
        client(ours, 11, &|requests| {
            count.store(requests, Ordering::Relaxed);
            is_enough.load(Ordering::Acquire)
        })
    });
    let (started, pids) = mpsc::channel::<u32>();
    let killer = thread::spawn(move || {
        let mut random = Random(13);
        let mut amid = 0;
        for _ in 0..KILLS {
            let pid = pids.recv().unwrap();
            // Of a life some are to be spent in starting, most under load.
            let before = served.load(Ordering::Relaxed);
            if random.below(8) == 0 {
                thread::sleep(Duration::from_micros(random.below(6_000)));
            } else {
                let deadline = Instant::now() + Duration::from_secs(5);
                while served.load(Ordering::Relaxed) < before + 2 && Instant::now() < deadline {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_micros(random.below(2_000)));
            }
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            kill_process(pid, Signal::KILL).expect("it runs until it is killed");
            amid += u64::from(served.load(Ordering::Relaxed) > before + 1);
        }
        enough.store(true, Ordering::Release);
        amid
    });
    let mut deaths = 0;
    let mut tell = |event| match event {
        Event::Started { pid } => drop(started.send(pid)),
        Event::Died { deaths: all, .. } => deaths = all,
        Event::Serves { .. } | Event::Ended => {}
    };
    let ended = keeper.run(&mut |_| Some(command()), &mut tell).unwrap();
    assert_eq!(ended, Ended::Exited(0));
    drop(keeper);
    let seen = client.join().expect("the client saw what it should");
    let amid = killer.join().unwrap();
    println!("{deaths} kills, {amid} of them under load, {seen:?}");
    assert_eq!(deaths, KILLS);
    assert!(amid > KILLS / 10, "most die at work, not at start");
}

#[test]
fn a_worker_that_dies_too_often_is_given_up_with_an_error() {
    let mut keeper = Keeper::new(Rate {
        deaths: 3,
        within: Duration::from_mins(10),
    });
    let mut lives = Vec::new();
    let mut worker = |_| {
        let mut command = Command::new("sh");
        command.args(["-c", "kill -$((KEEPER_RESTARTS + 13)) $$"]);
        Some(command)
    };
    let mut tell = |event| {
        if let Event::Died { status, deaths } = event {
            lives.push((status.signal(), deaths));
        }
    };
    let error = keeper.run(&mut worker, &mut tell).unwrap_err();
    assert_eq!(lives, [(Some(13), 1), (Some(14), 2), (Some(15), 3)]);
    assert!(
        matches!(error, KeeperError::TooOften { deaths: 4, .. }),
        "{error}"
    );
}

#[test]
fn a_worker_that_ends_of_its_own_accord_or_is_unwanted_is_the_last() {
    let mut started = 0;
    let ended = Keeper::new(Rate::default()).run(
        &mut |_| {
            started += 1;
            let mut command = Command::new("sh");
            command.args(["-c", "exit 3"]);
            Some(command)
        },
        &mut |_| {},
    );
    assert_eq!((ended.unwrap(), started), (Ended::Exited(3), 1));
    let ended = Keeper::new(Rate::default()).run(&mut |_| None, &mut |_| {});
    assert_eq!(ended.unwrap(), Ended::Unwanted);
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
