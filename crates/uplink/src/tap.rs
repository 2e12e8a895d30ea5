//! A TAP interface of this host.

mod header;

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use device::{FrameLink, Offloads, RxFrame, Sent, TxFrame};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{self, IntegerSetter, Opcode, Updater, opcode};

use crate::framing::{MAX_FRAME, MIN_FRAME};
use crate::{UplinkError, rarp};
use header::Header;

/// The host's end of a TAP interface, with the virtio-net header before each frame.
///
/// What is sent may need its checksum or be one long TCP segment: the kernel finishes either. What
/// is received is never longer than the interface's MTU allows, with its checksums complete.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    /// One received frame behind its header.
    buffer: Box<[u8]>,
    frame: Option<Received>,
    /// The kernel had no room for the last frame.
    full: bool,
    /// The interface was deleted.
    gone: bool,
}

#[derive(Debug, Clone, Copy)]
struct Received {
    /// Header and frame, in bytes.
    len: usize,
    checksums_good: bool,
}

impl Tap {
    /// Attaches to the TAP interface `name` in this thread's network namespace; makes it if it is
    /// not there, and then it goes when this is dropped. A `%d` in the name becomes a free number.
    ///
    /// # Errors
    ///
    /// [`UplinkError::InterfaceName`], [`UplinkError::TunDevice`] or [`UplinkError::Attach`].
    pub fn open(name: &str) -> Result<Self, UplinkError> {
        let mut request = InterfaceRequest::new(name)
            .ok_or_else(|| UplinkError::InterfaceName { name: name.into() })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/net/tun")
            .map_err(|source| UplinkError::TunDevice { source })?;
        attach(&file, &mut request).map_err(|error| UplinkError::Attach {
            name: name.into(),
            source: error.into(),
        })?;
        let name = request.name();
        if let Err(error) = accept_partial_checksums(&file) {
            tracing::info!(tap = %name, %error, "the kernel completes all checksums itself");
        }
        Ok(Self {
            file,
            name,
            buffer: vec![0; Header::LEN + MAX_FRAME].into_boxed_slice(),
            frame: None,
            full: false,
            gone: false,
        })
    }

    /// One whose descriptor another process has opened, and left. What the kernel has for it is still there.
    pub fn from_left(fd: OwnedFd, name: &str) -> Self {
        Self {
            file: File::from(fd),
            name: name.into(),
            buffer: vec![0; Header::LEN + MAX_FRAME].into_boxed_slice(),
            frame: None,
            full: false,
            gone: false,
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn receive(&mut self) -> Option<Received> {
        if self.gone {
            return None;
        }
        loop {
            match rustix::io::read(&self.file, &mut self.buffer[..]) {
                Ok(len) if len >= Header::LEN + MIN_FRAME => {
                    let (header, frame) = self.buffer[..len].split_at_mut(Header::LEN);
                    let checksums_good = Header::finish(header, frame);
                    return Some(Received {
                        len,
                        checksums_good,
                    });
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(error) => {
                    self.note(error);
                    return None;
                }
            }
        }
    }

    /// `EBADFD` is `drivers/net/tun.c`'s word for an interface that was deleted.
    fn note(&mut self, error: Errno) {
        if error == Errno::BADFD && !self.gone {
            tracing::warn!(tap = %self.name, "the TAP interface was deleted: link down for good");
            self.gone = true;
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameLink for Tap {
    fn peek(&mut self) -> Option<RxFrame<'_>> {
        if self.frame.is_none() {
            self.frame = self.receive();
        }
        let Received {
            len,
            checksums_good,
        } = self.frame?;
        Some(RxFrame {
            bytes: &self.buffer[Header::LEN..len],
            checksums_good,
        })
    }

    fn consume(&mut self) {
        self.frame = None;
    }

    fn send(&mut self, frame: TxFrame<'_>) -> Sent {
        self.full = false;
        if self.gone || frame.bytes.len() > MAX_FRAME {
            return Sent::Taken;
        }
        let header = Header::for_sending(frame.offload);
        let pieces = [IoSlice::new(header.bytes()), IoSlice::new(frame.bytes)];
        loop {
            match rustix::io::writev(&self.file, &pieces) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    self.full = true;
                    return Sent::Full;
                }
                // Dropped: the interface is down (EIO), or the guest's driver asked for an offload
                // that its frame does not fit (EINVAL). A cable would not say either.
                Err(error) => {
                    self.note(error);
                    return Sent::Taken;
                }
                Ok(_) => return Sent::Taken,
            }
        }
    }

    fn flush(&mut self) {
        // Each frame is written when it is sent: a TAP takes one per call.
        self.full = false;
    }

    fn is_up(&self) -> bool {
        !self.gone
    }

    fn offloads(&self) -> Offloads {
        Offloads {
            checksum: true,
            tcp_segments: true,
        }
    }

    fn announce(&mut self, mac: [u8; 6]) {
        let frame = rarp(mac);
        let _ = self.send(TxFrame {
            bytes: &frame,
            offload: device::TxOffload::None,
        });
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.gone).then(|| self.file.as_fd())
    }

    fn wants_write(&self) -> bool {
        self.full
    }
}

/// `struct ifreq` as `TUNSETIFF` reads and writes it (`linux/if.h`).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &str) -> Option<Self> {
        /// `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR` of `linux/if_tun.h`.
        const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;
        let mut bytes = [0; 16];
        let good = (1..bytes.len()).contains(&name.len())
            && !name
                .bytes()
                .any(|byte| byte == 0 || byte == b'/' || byte.is_ascii_whitespace());
        bytes
            .get_mut(..name.len())
            .filter(|_| good)?
            .copy_from_slice(name.as_bytes());
        Some(Self {
            name: bytes,
            flags: FLAGS,
            rest: [0; 22],
        })
    }

    fn name(&self) -> String {
        let end = self
            .name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn attach(file: &File, request: &mut InterfaceRequest) -> Result<(), Errno> {
    const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `InterfaceRequest` mirrors in
    // size and layout (despite the `int` in its number).
    unsafe { ioctl::ioctl(file, Updater::<TUNSETIFF, InterfaceRequest>::new(request)) }
}

/// Lets the kernel hand over frames whose checksum is still to be completed, which [`Header`] does:
/// the guest then need not check it. Segments longer than the MTU stay forbidden, since a NIC model
/// could not pass them on.
#[expect(unsafe_code, reason = "TUNSETOFFLOAD has no safe wrapper")]
fn accept_partial_checksums(file: &File) -> Result<(), Errno> {
    const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
    const TUN_F_CSUM: usize = 1;
    // SAFETY: TUNSETOFFLOAD takes a set of flags as its argument and touches no memory.
    unsafe { ioctl::ioctl(file, IntegerSetter::<TUNSETOFFLOAD>::new_usize(TUN_F_CSUM)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_an_interface_is_refused() {
        for name in ["", "a-name-of-16-byt", "a/b", "a b", "a\0b"] {
            assert!(
                matches!(Tap::open(name), Err(UplinkError::InterfaceName { .. })),
                "{name:?}"
            );
        }
        assert!(InterfaceRequest::new("a-name-of-15-by").is_some());
    }

    #[test]
    fn the_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }
}
