//! A cable between two processes: a unix stream socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use device::{FrameLink, RxFrame, Sent, TxFrame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::framing::{Deframer, MAX_FRAME, Outbox};
use crate::{UplinkError, rarp};

/// One end of a wire.
///
/// Frames go as QEMU's `-netdev stream` and passt send them: each behind its length, 32 bits big
/// endian. One read takes as many frames as have come, one write sends as many as are queued, and
/// both buffers are bounded. A wire that broke is [down](FrameLink::is_up) for good: it takes and
/// drops what is sent, and still shows the frames that came before.
#[derive(Debug)]
pub struct Wire {
    /// Until the far side's last byte was read.
    stream: Option<UnixStream>,
    /// Until a write failed.
    writable: bool,
    deframer: Deframer,
    outbox: Outbox,
}

impl Wire {
    /// Connects to the unix socket at `path` (which answers at once or not at all, unless its
    /// backlog is full).
    ///
    /// # Errors
    ///
    /// [`UplinkError::Connect`] if nobody listens there.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, UplinkError> {
        let path = path.as_ref();
        UnixStream::connect(path)
            .map(Self::from_stream)
            .map_err(|source| UplinkError::Connect {
                path: path.into(),
                source,
            })
    }

    /// One that is plugged in nowhere: it is down for good.
    pub fn unplugged() -> Self {
        Self {
            stream: None,
            writable: false,
            deframer: Deframer::default(),
            outbox: Outbox::default(),
        }
    }

    /// A wire over a connected stream socket, which need not be non-blocking.
    pub fn from_stream(stream: UnixStream) -> Self {
        Self {
            stream: Some(stream),
            writable: true,
            deframer: Deframer::default(),
            outbox: Outbox::default(),
        }
    }

    /// Reads once, into the room there is. Tells whether anything came.
    fn receive(&mut self) -> bool {
        let Some(stream) = &self.stream else {
            return false;
        };
        let end = match rustix::net::recv(stream, self.deframer.spare(), RecvFlags::DONTWAIT) {
            Ok((_, 0)) => "closed by the other end".to_owned(),
            Ok((_, count)) => {
                self.deframer.filled(count);
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(error) => io::Error::from(error).to_string(),
        };
        tracing::info!(reason = %end, "wire is down");
        self.close();
        false
    }

    fn close(&mut self) {
        self.stream = None;
        self.writable = false;
        self.outbox.clear();
    }
}

impl FrameLink for Wire {
    fn peek(&mut self) -> Option<RxFrame<'_>> {
        let range = loop {
            match self.deframer.locate() {
                Ok(Some(range)) => break range,
                Ok(None) if self.receive() => {}
                Ok(None) => return None,
                Err(error) => {
                    // Logged once only: the wire does not come back.
                    tracing::warn!(%error, "wire closed");
                    self.close();
                    self.deframer = Deframer::default();
                    return None;
                }
            }
        };
        // The far side of a unix socket is memory: nothing can damage a frame on the way, but
        // only its sender knows whether it filled in the checksums.
        Some(RxFrame {
            bytes: self.deframer.bytes(range),
            checksums_good: false,
        })
    }

    fn consume(&mut self) {
        self.deframer.consume();
    }

    fn send(&mut self, frame: TxFrame<'_>) -> Sent {
        if !self.writable || frame.bytes.len() > MAX_FRAME {
            return Sent::Taken;
        }
        if self.outbox.push(frame.bytes) {
            return Sent::Taken;
        }
        self.flush();
        if !self.writable || self.outbox.push(frame.bytes) {
            Sent::Taken
        } else {
            Sent::Full
        }
    }

    fn flush(&mut self) {
        while let Some(stream) = self.stream.as_ref().filter(|_| !self.outbox.is_empty()) {
            // Not a plain writev: that would raise SIGPIPE when the other end is gone.
            let result = rustix::net::sendmsg(
                stream,
                &self.outbox.pieces(),
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            match result {
                Ok(count) => self.outbox.sent(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // What the far side sent before it went can still be read.
                    self.writable = false;
                    self.outbox.clear();
                }
            }
        }
    }

    fn is_up(&self) -> bool {
        self.writable
    }

    fn announce(&mut self, mac: [u8; 6]) {
        // Once is enough: a stream loses nothing.
        if self.writable {
            let _ = self.outbox.push_urgent(&rarp(mac));
            self.flush();
        }
    }

    fn look_for_end(&mut self) {
        let Some(stream) = &self.stream else { return };
        // Both are told of whatever is still to be read.
        let end = PollFlags::HUP | PollFlags::RDHUP;
        let mut stream = [PollFd::new(stream, PollFlags::RDHUP)];
        let now = Timespec::default();
        if poll(&mut stream, Some(&now)).is_ok() && stream[0].revents().intersects(end) {
            self.writable = false;
            self.outbox.clear();
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use device::TxOffload;

    use super::*;

    fn pair() -> (Wire, UnixStream) {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        (Wire::from_stream(near), far)
    }

    fn send(wire: &mut Wire, bytes: &[u8]) -> Sent {
        wire.send(TxFrame {
            bytes,
            offload: TxOffload::None,
        })
    }

    fn received(wire: &mut Wire) -> Option<Vec<u8>> {
        let frame = wire.peek()?.bytes.to_vec();
        wire.consume();
        Some(frame)
    }

    #[test]
    fn a_frame_goes_behind_its_length_as_qemu_has_it() {
        let (mut wire, mut far) = pair();
        assert_eq!(send(&mut wire, &[7; 60]), Sent::Taken);
        wire.flush();
        let mut bytes = [0; 64];
        far.read_exact(&mut bytes).expect("flushed");
        assert_eq!(bytes[..4], [0, 0, 0, 60]);
        assert_eq!(bytes[4..], [7; 60]);

        far.write_all(&[0, 0, 0, 20]).expect("open");
        assert_eq!(received(&mut wire), None);
        far.write_all(&[9; 20]).expect("open");
        assert_eq!(wire.peek().expect("whole now").bytes, [9; 20]);
        assert_eq!(received(&mut wire).as_deref(), Some(&[9; 20][..]));
        assert_eq!(received(&mut wire), None);
    }

    #[test]
    fn a_reader_that_sleeps_makes_the_wire_full_and_loses_nothing() {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let (mut near, mut far) = (Wire::from_stream(near), Wire::from_stream(far));
        let mut sent = 0_u32;
        let frame = |number: u32| {
            let mut frame = [0; 1000];
            frame[..4].copy_from_slice(&number.to_le_bytes());
            frame
        };
        while send(&mut near, &frame(sent)) == Sent::Taken {
            sent += 1;
        }
        assert!(near.wants_write());
        let mut expected = 0;
        while expected < sent {
            let got = received(&mut far).expect("nothing is lost");
            assert_eq!(got, frame(expected));
            expected += 1;
            near.flush();
        }
        assert!(!near.wants_write());
        assert_eq!(received(&mut far), None);
    }

    #[test]
    fn a_dead_wire_drops_and_still_shows_what_came_before() {
        let (mut wire, mut far) = pair();
        far.write_all(&[0, 0, 0, 14]).expect("open");
        far.write_all(&[5; 14]).expect("open");
        drop(far);
        assert_eq!(send(&mut wire, &[1; 60]), Sent::Taken);
        wire.flush();
        assert!(!wire.is_up());
        assert!(!wire.wants_write());
        assert_eq!(received(&mut wire).as_deref(), Some(&[5; 14][..]));
        assert_eq!(received(&mut wire), None);
        assert!(wire.fd().is_none(), "a poller must not spin on it");
        assert_eq!(send(&mut wire, &[1; 60]), Sent::Taken);
    }

    #[test]
    fn an_end_behind_frames_that_nobody_has_read_is_found() {
        let (mut wire, mut far) = pair();
        let frame = [&[0, 0, 0, 14][..], &[5; 14]].concat();
        far.write_all(&frame).expect("open");
        wire.look_for_end();
        assert!(wire.is_up() && wire.peek().is_some());
        far.write_all(&frame).expect("open");
        drop(far);
        assert!(wire.peek().is_some() && wire.is_up(), "nothing is read");
        wire.look_for_end();
        assert!(!wire.is_up());
        for _ in 0..2 {
            assert_eq!(received(&mut wire).as_deref(), Some(&[5; 14][..]));
        }
        assert_eq!(received(&mut wire), None);
    }

    #[test]
    fn a_frame_too_long_from_the_far_side_closes_the_wire() {
        let (mut wire, mut far) = pair();
        far.write_all(&[0, 2, 0, 0]).expect("open");
        assert_eq!(received(&mut wire), None);
        assert!(!wire.is_up());
        assert!(far.write_all(&[0]).is_err());
    }

    #[test]
    fn a_frame_too_long_to_send_is_dropped() {
        let (mut wire, _far) = pair();
        assert_eq!(send(&mut wire, &vec![0; MAX_FRAME + 1]), Sent::Taken);
        assert!(!wire.wants_write());
        assert!(wire.is_up());
    }

    #[test]
    fn an_announcement_passes_a_full_queue() {
        let (mut wire, far) = pair();
        for len in [1514, 14] {
            while send(&mut wire, &vec![0; len]) == Sent::Taken {}
        }
        wire.announce([2, 0, 0, 0, 0, 1]);
        let mut far = Wire::from_stream(far);
        let mut last = Vec::new();
        while let Some(frame) = received(&mut far) {
            last = frame;
            wire.flush();
        }
        assert_eq!(last, rarp([2, 0, 0, 0, 0, 1]));
    }
}
