//! The protocol's messages as they lie on the wire.
//!
//! Layouts and numbers are those of the vfio-user specification (QEMU's
//! `docs/interop/vfio-user.rst`), section by section; everything is in the byte order of the host.
//! The structures are copied out of and into byte buffers, so nothing here needs alignment.

pub mod device;
pub mod dma;
pub mod feature;
pub mod region;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = size_of::<Header>();

/// What every message begins with ("Header").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command, and echoed in its reply.
    pub id: u16,
    /// A [`command`].
    pub command: u16,
    /// Bytes of the whole message, this header included.
    pub size: u32,
    /// [`flags`].
    pub flags: u32,
    /// In a reply with [`flags::ERROR`]: what went wrong, 0 if the peer does not say.
    pub errno: u32,
}

impl Header {
    /// Whether this is a command, as opposed to a reply or something unknown.
    pub fn is_command(&self) -> bool {
        self.flags & flags::TYPE == flags::COMMAND
    }

    /// Whether this answers a command.
    pub fn is_reply(&self) -> bool {
        self.flags & flags::TYPE == flags::REPLY
    }

    /// Whether the sender of this command wants no reply.
    pub fn no_reply(&self) -> bool {
        self.flags & flags::NO_REPLY != 0
    }

    /// The error that this reply carries. One that is not an errno becomes `EIO`.
    pub fn error(&self) -> Option<Errno> {
        (self.flags & flags::ERROR != 0).then(|| match i32::try_from(self.errno) {
            Ok(raw @ 1..=4095) => Errno::from_raw_os_error(raw),
            _ => Errno::IO,
        })
    }

    /// The header of a reply with `body_len` bytes after it.
    pub(crate) fn reply(&self, body_len: usize) -> Self {
        Self {
            size: message_size(body_len),
            flags: flags::REPLY,
            errno: 0,
            ..*self
        }
    }

    /// The header, which is all there is, of a reply that says `errno`.
    pub(crate) fn error_reply(&self, errno: Errno) -> Self {
        Self {
            flags: flags::REPLY | flags::ERROR,
            errno: errno.raw_os_error().cast_unsigned(),
            ..self.reply(0)
        }
    }
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// The bits that hold the type.
    pub const TYPE: u32 = 0xf;
    /// Type of a command.
    pub const COMMAND: u32 = 0;
    /// Type of a reply.
    pub const REPLY: u32 = 1;
    /// The command is not to be answered.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The reply says that the command failed.
    pub const ERROR: u32 = 1 << 5;
}

/// Numbers of commands ("Commands"). The comment says who sends them.
pub mod command {
    /// Client: negotiation, always first.
    pub const VERSION: u16 = 1;
    /// Client.
    pub const DMA_MAP: u16 = 2;
    /// Client.
    pub const DMA_UNMAP: u16 = 3;
    /// Client.
    pub const DEVICE_GET_INFO: u16 = 4;
    /// Client.
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    /// Client; no known VMM sends it.
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    /// Client.
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    /// Client.
    pub const DEVICE_SET_IRQS: u16 = 8;
    /// Client.
    pub const REGION_READ: u16 = 9;
    /// Client.
    pub const REGION_WRITE: u16 = 10;
    /// Server.
    pub const DMA_READ: u16 = 11;
    /// Server.
    pub const DMA_WRITE: u16 = 12;
    /// Client.
    pub const DEVICE_RESET: u16 = 13;
    /// Client; gone from the specification.
    pub const DIRTY_PAGES: u16 = 14;
    /// Client, if the server offers `write_multiple`.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// Client.
    pub const DEVICE_FEATURE: u16 = 16;
    /// Client.
    pub const MIG_DATA_READ: u16 = 17;
    /// Client.
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// The fixed part of `VFIO_USER_VERSION`; NUL-terminated JSON may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Version {
    /// Only 0 exists.
    pub major: u16,
    /// At most what the other side proposed.
    pub minor: u16,
}

/// Takes a `T` off the front of `body`.
///
/// # Errors
/// `EINVAL` when `body` is shorter than that.
pub(crate) fn take<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::INVAL)
}

/// What [`Header::size`] is for a body of `body_len` bytes.
pub(crate) fn message_size(body_len: usize) -> u32 {
    u32::try_from(HEADER_LEN + body_len).expect("no message comes near 4 GiB: all are bounded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_lies_as_specified() {
        let header = Header {
            id: 0x0201,
            command: command::REGION_READ,
            size: 32,
            flags: flags::REPLY | flags::ERROR,
            errno: 22,
        };
        let bytes = [1, 2, 9, 0, 32, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0];
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(header.error(), Some(Errno::INVAL));
    }

    #[test]
    fn an_error_that_is_no_errno_is_an_io_error() {
        for raw in [0, 4096, 0xbeef, u32::MAX] {
            let header = Header {
                flags: flags::REPLY | flags::ERROR,
                errno: raw,
                ..Header::default()
            };
            assert_eq!(header.error(), Some(Errno::IO), "{raw}");
        }
    }
}
