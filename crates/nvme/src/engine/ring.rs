//! Operations by `io_uring`: begun with one system call for all, and the end of each told by an
//! eventfd.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Engine, Finished, Operation, PLACES, Request, perform};
use crate::backing::{Backing, OpenFile};

/// Entries of the queues: each place has at most one in each.
const ENTRIES: u32 = 32;
const _: () = assert!(ENTRIES as usize >= PLACES, "no queue can be full");
/// How long a ring that goes waits for what is under way.
const LAST_WAIT: Duration = Duration::from_secs(10);
/// When to submit again, while waiting, what the system had no room for.
const SUBMIT_AGAIN: Duration = Duration::from_millis(2);

/// The system's ring. What is no file is done at once.
pub struct Ring {
    uring: IoUring,
    /// Told when an operation ends.
    event: OwnedFd,
    /// What the system works on. An entry's user data is its place here.
    places: Vec<Option<Busy>>,
    finished: VecDeque<Finished>,
}

/// An operation that the system has, or will have with the next submission.
struct Busy {
    request: Request,
    /// Open until the operation has ended.
    file: OpenFile,
    /// Bytes that were moved so far.
    moved: usize,
}

impl Ring {
    /// A ring of this process.
    ///
    /// # Errors
    /// When the system has none, not all that is needed, or does not allow it.
    pub fn new() -> io::Result<Self> {
        let uring: IoUring = IoUring::builder().dontfork().build(ENTRIES)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        // Without the second, entries that find no room are lost.
        if !needed.iter().all(|code| probe.is_supported(*code))
            || !uring.params().is_feature_nodrop()
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            uring,
            event,
            places: (0..PLACES).map(|_| None).collect(),
            finished: VecDeque::with_capacity(PLACES),
        })
    }

    /// Queues what is left of the operation in a place.
    #[expect(
        unsafe_code,
        reason = "the system will use a buffer that Rust does not see lent"
    )]
    fn push(&mut self, place: usize) {
        let Some(busy) = &mut self.places[place] else {
            return;
        };
        let Some(entry) = busy.entry() else {
            self.end(place, Err(io::ErrorKind::InvalidInput.into()));
            return;
        };
        let entry = entry.user_data(place as u64);
        // SAFETY: the entry's pointer, if it has one, is into the buffer of `busy`, and its length
        // was taken from there. `busy` stays in its place, where nothing touches the buffer, until
        // the entry's completion was seen or it was found not to be queued; if the ring goes
        // sooner, `Drop` leaks it. The same holds for the file, whose descriptor is thus open.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        if pushed.is_err() {
            self.end(place, Err(io::ErrorKind::ResourceBusy.into()));
        }
    }

    fn end(&mut self, place: usize, result: io::Result<()>) {
        if let Some(Busy { request, .. }) = self.places[place].take() {
            let Request { id, buffer, .. } = request;
            self.finished.push_back(Finished { id, result, buffer });
        }
    }

    /// Takes the completions that there are.
    fn reap(&mut self) {
        loop {
            let next = self.uring.completion().next();
            let Some(completion) = next else { return };
            let (place, result) = (completion.user_data(), completion.result());
            // The number was made from an index.
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            let Some(busy) = self.places.get_mut(place).and_then(Option::as_mut) else {
                continue;
            };
            match busy.took(result) {
                Some(result) => self.end(place, result),
                None => self.push(place),
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.places.iter().any(Option::is_some)
    }
}

impl Busy {
    /// What the system is to do; `None` if the buffer is too small for it.
    fn entry(&mut self) -> Option<squeue::Entry> {
        let file = Fd(self.file.as_fd().as_raw_fd());
        let moved = self.moved;
        Some(match self.request.operation {
            Operation::Read { offset, len } => {
                let rest = self.request.buffer.get_mut(moved..len)?;
                let bytes = u32::try_from(rest.len()).ok()?;
                let read = opcode::Read::new(file, rest.as_mut_ptr(), bytes);
                read.offset(offset.checked_add(moved as u64)?).build()
            }
            Operation::Write { offset, len } => {
                let rest = self.request.buffer.get(moved..len)?;
                let bytes = u32::try_from(rest.len()).ok()?;
                let write = opcode::Write::new(file, rest.as_ptr(), bytes);
                write.offset(offset.checked_add(moved as u64)?).build()
            }
            Operation::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            Operation::Zero {
                offset,
                len,
                deallocate,
            } => {
                let how = if deallocate {
                    FallocateFlags::PUNCH_HOLE
                } else {
                    FallocateFlags::ZERO_RANGE
                };
                let mode = (how | FallocateFlags::KEEP_SIZE).bits().cast_signed();
                let zero = opcode::Fallocate::new(file, len);
                zero.offset(offset).mode(mode).build()
            }
        })
    }

    /// Takes a completion's result. `None` if there is more to be done.
    fn took(&mut self, result: i32) -> Option<io::Result<()>> {
        if result < 0 {
            let error = Errno::from_raw_os_error(result.wrapping_neg());
            let zeroes = matches!(self.request.operation, Operation::Zero { .. });
            return match error {
                // Not an answer of the file: the thread that began it was interrupted, or ended.
                Errno::INTR | Errno::AGAIN | Errno::CANCELED => None,
                // Not every file system can; INVAL is a block device's word for an odd range.
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL if zeroes => {
                    Some(Err(io::ErrorKind::Unsupported.into()))
                }
                error => Some(Err(error.into())),
            };
        }
        let (len, none) = match self.request.operation {
            Operation::Read { len, .. } => (len, io::ErrorKind::UnexpectedEof),
            Operation::Write { len, .. } => (len, io::ErrorKind::WriteZero),
            Operation::Flush | Operation::Zero { .. } => return Some(Ok(())),
        };
        self.moved += usize::try_from(result).unwrap_or(0);
        if self.moved >= len {
            Some(Ok(()))
        } else if result == 0 {
            Some(Err(none.into()))
        } else {
            None
        }
    }
}

impl Engine for Ring {
    fn begin(&mut self, request: Request, backing: &dyn Backing) {
        let nothing = matches!(request.operation, Operation::Zero { len: 0, .. });
        let free = self.places.iter().position(Option::is_none);
        match (backing.file(), free) {
            (Some(file), Some(place)) if !nothing => {
                self.places[place] = Some(Busy {
                    request,
                    file,
                    moved: 0,
                });
                self.push(place);
            }
            _ => self.finished.push_back(perform(request, backing)),
        }
    }

    fn submit(&mut self) -> bool {
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No memory at the moment, or completions to be taken first.
                Err(_) => return false,
            }
        }
        true
    }

    fn finished(&mut self) -> Option<Finished> {
        if self.finished.is_empty() {
            self.reap();
        }
        self.finished.pop_front()
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            self.clear();
            self.reap();
            let submitted = self.submit();
            if !self.finished.is_empty() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.is_busy() {
                return false;
            }
            // What the system does not have yet, it does not end.
            let left = if submitted {
                left
            } else {
                left.min(SUBMIT_AGAIN)
            };
            let left = Timespec::try_from(left).ok();
            // Interrupted or not, what has ended is looked for.
            let _ = poll(
                &mut [PollFd::new(&self.event, PollFlags::IN)],
                left.as_ref(),
            );
        }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn clear(&mut self) {
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

/// The system may use buffers and files until it has said that it does not.
impl Drop for Ring {
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_WAIT;
        while self.is_busy() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.wait(left) {
                break;
            }
            self.finished.clear();
        }
        self.places.drain(..).flatten().for_each(std::mem::forget);
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("busy", &self.places.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;

    use super::*;

    const LEN: usize = 256 << 10;

    /// An end of a pipe as a disk: what is asked of it ends when the other end has done its part.
    struct Pipe(OpenFile);

    impl Backing for Pipe {
        fn len(&self) -> u64 {
            1 << 20
        }

        fn file(&self) -> Option<OpenFile> {
            Some(self.0.clone())
        }

        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::NotSeekable.into())
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::NotSeekable.into())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }

        fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<bool> {
            Ok(true)
        }
    }

    /// `None` where the system does not allow rings; the tests have nothing to test then.
    fn ring() -> Option<Ring> {
        Ring::new().ok()
    }

    fn request(id: u64, operation: Operation) -> Request {
        Request {
            id,
            backing: 0,
            operation,
            buffer: (0..251).cycle().take(LEN).collect(),
        }
    }

    fn reader() -> (Pipe, File) {
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        (Pipe(Arc::new(ours)), theirs.into())
    }

    const READ: Operation = Operation::Read { offset: 0, len: 4 };

    #[test]
    fn an_operation_ends_when_it_does_and_the_descriptor_tells() {
        let Some(mut ring) = ring() else { return };
        let (pipe, mut other) = reader();
        ring.begin(request(7, READ), &pipe);
        assert!(ring.submit());
        assert!(!ring.wait(Duration::ZERO));
        assert!(ring.finished().is_none());
        // Parts of it come: it goes on by itself.
        other.write_all(b"ab").unwrap();
        assert!(!ring.wait(Duration::from_millis(1)));
        other.write_all(b"cd").unwrap();
        assert!(ring.wait(Duration::from_mins(1)));
        let event = ring.descriptor().unwrap().try_clone_to_owned().unwrap();
        let Finished { id, result, buffer } = ring.finished().unwrap();
        result.unwrap();
        assert_eq!((id, &buffer[..4]), (7, &b"abcd"[..]));
        assert_eq!(buffer[5000], 231, "and no byte more");
        let readable = || {
            let mut fds = [PollFd::new(&event, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        ring.clear();
        assert!(!readable());
        ring.begin(request(8, READ), &pipe);
        other.write_all(b"efgh").unwrap();
        ring.submit();
        let long = Timespec::try_from(Duration::from_mins(1)).unwrap();
        let fds = &mut [PollFd::new(&event, PollFlags::IN)];
        assert_eq!(poll(fds, Some(&long)).unwrap(), 1);
        assert_eq!(ring.finished().unwrap().id, 8);
    }

    #[test]
    fn a_write_that_is_taken_in_parts_is_written_whole() {
        let Some(mut ring) = ring() else { return };
        let (theirs, ours) = rustix::pipe::pipe().unwrap();
        let write = Operation::Write {
            offset: 0,
            len: LEN,
        };
        ring.begin(request(1, write), &Pipe(Arc::new(ours)));
        let reader = std::thread::spawn(move || {
            let mut data = vec![0; LEN];
            File::from(theirs).read_exact(&mut data).unwrap();
            data
        });
        while !ring.wait(Duration::from_mins(1)) {}
        let Finished { result, buffer, .. } = ring.finished().unwrap();
        result.unwrap();
        assert!(reader.join().unwrap() == buffer);
    }

    #[test]
    fn errors_and_ends_of_files_are_told() {
        let Some(mut ring) = ring() else { return };
        let (pipe, other) = reader();
        drop(other);
        let mut run = |operation| {
            ring.begin(request(1, operation), &pipe);
            assert!(ring.wait(Duration::from_mins(1)));
            ring.finished().unwrap().result.unwrap_err().kind()
        };
        assert_eq!(run(READ), io::ErrorKind::UnexpectedEof);
        // What a pipe says to fdatasync: it was asked, then.
        assert_eq!(run(Operation::Flush), io::ErrorKind::InvalidInput);
        let write = Operation::Write { offset: 0, len: 1 };
        assert!(
            !matches!(run(write), io::ErrorKind::WriteZero),
            "not open for writing"
        );
        let longer = Operation::Read {
            offset: 0,
            len: LEN + 1,
        };
        assert_eq!(run(longer), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_ring_that_goes_waits_for_what_the_system_still_does() {
        let Some(mut ring) = ring() else { return };
        let (pipe, mut other) = reader();
        ring.begin(request(1, READ), &pipe);
        ring.submit();
        let Pipe(file) = pipe;
        let writer = std::thread::spawn(move || {
            other.write_all(b"abcd").unwrap();
            other
        });
        drop(ring);
        drop(writer.join().unwrap());
        // Nobody has the file any more, and it was read by then.
        assert_eq!(Arc::strong_count(&file), 1);
        assert_eq!(rustix::io::read(&file, &mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn more_operations_than_places_are_done_one_way_or_the_other() {
        let Some(mut ring) = ring() else { return };
        let (pipe, mut other) = reader();
        for id in 0..=PLACES as u64 {
            ring.begin(request(id, READ), &pipe);
        }
        let last = ring.finished().unwrap();
        assert_eq!(last.id, PLACES as u64, "done at once");
        last.result.unwrap_err();
        ring.submit();
        other.write_all(&[9; 4 * PLACES]).unwrap();
        let mut ids = Vec::new();
        while ids.len() < PLACES {
            assert!(ring.wait(Duration::from_mins(1)));
            ids.push(ring.finished().unwrap().id);
        }
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..PLACES as u64));
    }
}
