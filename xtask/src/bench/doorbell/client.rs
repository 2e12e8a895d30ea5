//! As much of a vfio-user client as a driver needs.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vfio_user::wire::{HEADER_LEN, Header, command, dma, flags, region};
use zerocopy::IntoBytes;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Version 0.0 with the capabilities that matter of those that QEMU 11.1 sends.
const PROPOSAL: &[u8] =
    b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576}}\0";

/// A client that has agreed on the version.
pub(in crate::bench) struct Client {
    stream: UnixStream,
    last_id: u16,
    /// Kept, so that a doorbell allocates nothing.
    message: Vec<u8>,
}

impl Client {
    pub(in crate::bench) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut this = Self {
            stream,
            last_id: 0,
            message: Vec::new(),
        };
        this.put(command::VERSION, 0, &[PROPOSAL])?;
        this.stream.write_all(&this.message)?;
        this.reply()?;
        Ok(this)
    }

    /// Makes all of `file` the device's memory from address 0 on.
    pub(in crate::bench) fn map(&mut self, file: BorrowedFd<'_>, size: u64) -> Result<()> {
        let map = dma::Map {
            argsz: u32::try_from(size_of::<dma::Map>())?,
            flags: dma::MAP_READ | dma::MAP_WRITE,
            offset: 0,
            iova: 0,
            size,
        };
        self.put(command::DMA_MAP, 0, &[map.as_bytes()])?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        ensure!(
            control.push(SendAncillaryMessage::ScmRights(&files)),
            "no room for a descriptor"
        );
        let message = [IoSlice::new(&self.message)];
        sendmsg(&self.stream, &message, &mut control, SendFlags::NOSIGNAL)?;
        self.reply().map(drop)
    }

    /// A posted write, as QEMU sends those to a BAR from the vCPU's thread: one system call, and
    /// nobody waits for an answer.
    pub(in crate::bench) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let count = u32::try_from(data.len())?;
        let access = region::Access {
            offset,
            region,
            count,
        };
        let body = [access.as_bytes(), data];
        self.put(command::REGION_WRITE, flags::NO_REPLY, &body)?;
        Ok(self.stream.write_all(&self.message)?)
    }

    /// Reads a register of 32 bits, after all that was written.
    pub(in crate::bench) fn read(&mut self, region: u32, offset: u64) -> Result<u32> {
        let access = region::Access {
            offset,
            region,
            count: 4,
        };
        self.put(command::REGION_READ, 0, &[access.as_bytes()])?;
        self.stream.write_all(&self.message)?;
        let reply = self.reply()?;
        let (_, value) = reply.split_last_chunk().context("a reply without data")?;
        Ok(u32::from_le_bytes(*value))
    }

    fn put(&mut self, command: u16, flags: u32, body: &[&[u8]]) -> Result<()> {
        self.last_id = self.last_id.wrapping_add(1);
        let len: usize = body.iter().map(|part| part.len()).sum();
        let header = Header {
            id: self.last_id,
            command,
            size: u32::try_from(HEADER_LEN + len)?,
            flags: flags::COMMAND | flags,
            errno: 0,
        };
        self.message.clear();
        self.message.extend_from_slice(header.as_bytes());
        for part in body {
            self.message.extend_from_slice(part);
        }
        Ok(())
    }

    /// The body of the reply to what was sent last.
    fn reply(&mut self) -> Result<Vec<u8>> {
        let mut header = Header::default();
        self.stream.read_exact(header.as_mut_bytes())?;
        if let Some(errno) = header.error() {
            anyhow::bail!("command {} was refused: {errno}", header.command);
        }
        ensure!(header.id == self.last_id, "a reply to something else");
        let len = (header.size as usize).checked_sub(HEADER_LEN);
        let mut body = vec![0; len.context("a reply without a header")?];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }
}
