//! The least that anybody at the other end of the socket does: takes what has come, and answers.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vfio_user::wire::{HEADER_LEN, Header, command, flags, region};
use zerocopy::{FromBytes, IntoBytes};

/// Messages taken at once.
const ROOM: usize = 1 << 16;
/// Of a register.
const VALUE: [u8; 4] = [0; 4];

/// Listens in `folder` for one client, and serves it until it goes.
pub(super) fn start(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("floor.sock");
    let listener = UnixListener::bind(&path)?;
    std::thread::Builder::new()
        .name("floor".into())
        .spawn(move || serve(listener.accept()?.0))?;
    Ok(path)
}

fn serve(mut stream: UnixStream) -> Result<()> {
    let mut taken = vec![0; ROOM];
    let mut len = 0;
    loop {
        match stream.read(&mut taken[len..]) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            more => len += more?,
        }
        let mut done = 0;
        while let Ok((header, _)) = Header::read_from_prefix(&taken[done..len]) {
            let size = header.size as usize;
            if size < HEADER_LEN || done + size > len {
                break;
            }
            answer(&mut stream, header).context("the client does not take its answer")?;
            done += size;
        }
        taken.copy_within(done..len, 0);
        len -= done;
    }
}

fn answer(stream: &mut UnixStream, to: Header) -> Result<()> {
    if to.flags & flags::NO_REPLY != 0 {
        return Ok(());
    }
    // The client reads nothing of the answer to its version.
    let body = match to.command {
        command::REGION_READ => size_of::<region::Access>() + VALUE.len(),
        _ => 0,
    };
    let size = HEADER_LEN + body;
    let header = Header {
        size: u32::try_from(size)?,
        flags: flags::REPLY,
        ..to
    };
    let mut message = [0; HEADER_LEN + size_of::<region::Access>() + VALUE.len()];
    message[..HEADER_LEN].copy_from_slice(header.as_bytes());
    Ok(stream.write_all(&message[..size])?)
}
