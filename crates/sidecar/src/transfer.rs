//! One passage of the device state through the pipe that QEMU gave, driven by the message loop:
//! QEMU reads or writes its end while it also waits for answers, so neither may block.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;

use crate::poll::{self, Remaining};
use crate::{Config, blob};

/// A transfer under way, or done and not yet asked for.
#[derive(Debug)]
pub(crate) struct Transfer {
    pipe: Option<File>,
    direction: Direction,
    stall: Duration,
    deadline: Instant,
    failed: Option<TransferError>,
}

#[derive(Debug)]
enum Direction {
    Save { sealed: Vec<u8>, sent: usize },
    Load { sealed: Vec<u8>, limit: usize },
}

/// A transfer that went well.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Saved,
    Loaded(Vec<u8>),
}

impl Transfer {
    /// Sends `state` into `pipe`, and closes it.
    pub(crate) fn save(pipe: File, state: &[u8], config: &Config) -> Result<Self, TransferError> {
        if state.len() > config.max_state {
            return Err(TransferError::TooLarge {
                limit: config.max_state,
            });
        }
        let sealed = blob::seal(state);
        Self::new(pipe, Direction::Save { sealed, sent: 0 }, config)
    }

    /// Receives a state from `pipe`, up to its end.
    pub(crate) fn load(pipe: File, config: &Config) -> Result<Self, TransferError> {
        let limit = config.max_state.saturating_add(blob::HEADER_LEN);
        let sealed = Vec::new();
        Self::new(pipe, Direction::Load { sealed, limit }, config)
    }

    fn new(pipe: File, direction: Direction, config: &Config) -> Result<Self, TransferError> {
        let set = |flags: OFlags| rustix::fs::fcntl_setfl(&pipe, flags | OFlags::NONBLOCK);
        rustix::fs::fcntl_getfl(&pipe)
            .and_then(set)
            .map_err(|e| TransferError::Pipe(e.into()))?;
        Ok(Self {
            pipe: Some(pipe),
            direction,
            stall: config.stall,
            deadline: Instant::now() + config.stall,
            failed: None,
        })
    }

    /// What to wait for before the next [`advance`](Self::advance), if anything is left to do.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let flags = match self.direction {
            Direction::Save { .. } => PollFlags::OUT,
            Direction::Load { .. } => PollFlags::IN,
        };
        self.pipe.as_ref().map(|p| (p.as_fd(), flags))
    }

    /// When [`advance`](Self::advance) gives up if it is not called with success before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pipe.as_ref().map(|_| self.deadline)
    }

    /// Moves what can be moved without waiting.
    pub(crate) fn advance(&mut self) {
        // A peer that is never slow must not keep the loop here.
        for _ in 0..16 {
            let Some(pipe) = &mut self.pipe else {
                return;
            };
            match self.direction.step(pipe) {
                Ok(Step::Moved) => self.deadline = Instant::now() + self.stall,
                Ok(Step::Finished) => self.pipe = None,
                Ok(Step::Later) => break,
                Err(error) => self.fail(error),
            }
        }
        if self.pipe.is_some() && Instant::now() >= self.deadline {
            self.fail(TransferError::Stalled(self.stall));
        }
    }

    /// Waits for the end, or until `stop` is readable.
    pub(crate) fn finish(mut self, stop: BorrowedFd<'_>) -> Result<Done, TransferError> {
        while let Some((pipe, flags)) = self.interest() {
            let mut fds = [
                PollFd::from_borrowed_fd(pipe, flags),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            poll::wait(&mut fds, Remaining::until(self.deadline())).map_err(TransferError::Pipe)?;
            if !fds[1].revents().is_empty() {
                return Err(TransferError::Stopped);
            }
            self.advance();
        }
        match (self.failed, self.direction) {
            (Some(error), _) => Err(error),
            (None, Direction::Save { .. }) => Ok(Done::Saved),
            (None, Direction::Load { sealed, .. }) => Ok(Done::Loaded(blob::open(sealed)?)),
        }
    }

    fn fail(&mut self, error: TransferError) {
        self.pipe = None;
        self.failed = Some(error);
    }
}

enum Step {
    Moved,
    Finished,
    Later,
}

impl Direction {
    fn step(&mut self, pipe: &mut File) -> Result<Step, TransferError> {
        let moved = match self {
            Self::Save { sealed, sent } => {
                let rest = &sealed[*sent..];
                if rest.is_empty() {
                    return Ok(Step::Finished);
                }
                pipe.write(rest).map(|n| *sent += n)
            }
            Self::Load { sealed, limit } => {
                let mut piece = [0; 16 << 10];
                match pipe.read(&mut piece) {
                    Ok(0) => return Ok(Step::Finished),
                    Ok(n) if sealed.len() + n > *limit => {
                        let limit = limit.saturating_sub(blob::HEADER_LEN);
                        return Err(TransferError::TooLarge { limit });
                    }
                    Ok(n) => {
                        sealed.extend_from_slice(&piece[..n]);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match moved {
            Ok(()) => Ok(Step::Moved),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Step::Later),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(Step::Moved),
            Err(e) => Err(TransferError::Pipe(e)),
        }
    }
}

/// Why a state did not get through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the device state is larger than the limit of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("QEMU moved nothing of the device state for {0:?}")]
    Stalled(Duration),
    #[error("the sidecar was stopped during the transfer of the device state")]
    Stopped,
    #[error("the pipe for the device state failed: {0}")]
    Pipe(#[source] std::io::Error),
    #[error(transparent)]
    Blob(#[from] blob::BlobError),
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn config(max_state: usize, stall: Duration) -> Config {
        Config { max_state, stall }
    }

    fn pipe() -> (File, File) {
        let (read, write) = std::io::pipe().expect("a pipe");
        (OwnedFd::from(read).into(), OwnedFd::from(write).into())
    }

    fn never() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
    }

    #[test]
    fn a_state_larger_than_the_pipe_arrives_whole() {
        let config = config(1 << 20, Duration::from_secs(10));
        let state: Vec<u8> = (0..1u32 << 20).map(|i| i.to_le_bytes()[0]).collect();
        let (read, write) = pipe();
        let sender = Transfer::save(write, &state, &config).expect("it starts");
        let sending = std::thread::spawn(move || sender.finish(never().as_fd()));
        let receiver = Transfer::load(read, &config).expect("it starts");
        let loaded = receiver.finish(never().as_fd()).expect("it ends");
        assert_eq!(loaded, Done::Loaded(state));
        let saved = sending.join().expect("no panic");
        assert_eq!(saved.expect("it ends"), Done::Saved);
    }

    #[test]
    fn a_pipe_that_stalls_is_given_up() {
        let config = config(1 << 20, Duration::from_millis(20));
        let (read, write) = pipe();
        let stalled = Transfer::save(write, &vec![0; 1 << 20], &config).expect("it starts");
        assert!(matches!(
            stalled.finish(never().as_fd()),
            Err(TransferError::Stalled(_))
        ));
        drop(read);
        let (read, _write) = pipe();
        let silent = Transfer::load(read, &config).expect("it starts");
        assert!(matches!(
            silent.finish(never().as_fd()),
            Err(TransferError::Stalled(_))
        ));
    }

    #[test]
    fn the_limit_holds_in_both_directions() {
        let config = config(1000, Duration::from_secs(10));
        let (read, mut write) = pipe();
        let stay = write.try_clone().expect("a descriptor");
        assert!(matches!(
            Transfer::save(stay, &[0; 1001], &config),
            Err(TransferError::TooLarge { limit: 1000 })
        ));
        write
            .write_all(&blob::seal(&[0; 1001]))
            .expect("it fits the pipe");
        let receiver = Transfer::load(read, &config).expect("it starts");
        // The writer's end is still open: the limit is not noticed only at the end.
        assert!(matches!(
            receiver.finish(never().as_fd()),
            Err(TransferError::TooLarge { limit: 1000 })
        ));
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let config = config(1000, Duration::from_mins(10));
        let (read, _write) = pipe();
        let stop = eventfd(1, EventfdFlags::CLOEXEC).expect("an eventfd");
        let receiver = Transfer::load(read, &config).expect("it starts");
        assert!(matches!(
            receiver.finish(stop.as_fd()),
            Err(TransferError::Stopped)
        ));
    }

    #[test]
    fn a_reader_that_goes_away_is_an_error() {
        let config = config(1 << 20, Duration::from_secs(10));
        let (read, write) = pipe();
        drop(read);
        let sender = Transfer::save(write, b"state", &config).expect("it starts");
        assert!(matches!(
            sender.finish(never().as_fd()),
            Err(TransferError::Pipe(_))
        ));
    }
}
