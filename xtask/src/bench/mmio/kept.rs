//! A network card with which another process can go on, and one that ends with its process: what lies between them
//! is what it costs that all an access has done is put down before it is answered.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use endpoint::{Endpoint, kept};
use ixgbevf::{Vf, VfConfig};
use keeper::{KeeperHere, Line};
use pci::ConfigSpace;
use uplink::Wire;
use vfio_user::Server;

use super::Registers;

const NAME: &str = "net0";
/// `VFSTATUS`, and the first word of `VFMBMEM` (Intel 82599 datasheet, section 9).
const READ: u64 = 0x8;
const WRITE: u64 = 0x200;

pub(super) const ENDS: Registers = Registers {
    name: "vferry's network card",
    region: 0,
    read: READ,
    write: WRITE,
};
pub(super) const KEPT: Registers = Registers {
    name: "the same, with a keeper",
    ..ENDS
};

/// One that ends with its process; its connection ends with the client.
pub(super) fn serve_alone(folder: &Path) -> Result<PathBuf> {
    let socket = folder.join("net0.sock");
    let (server, endpoint) = (Server::bind(&socket)?, endpoint()?);
    let serve = move || server.serve_one(&mut endpoint.frontend());
    std::thread::Builder::new()
        .name("vfio-net0".into())
        .spawn(serve)?;
    Ok(socket)
}

/// One with which another process can go on. The keeper is a thread, and is not heard from while registers are
/// read and written.
pub(super) fn serve_kept(folder: &Path) -> Result<PathBuf> {
    let socket = folder.join("net0-kept.sock");
    let (server, endpoint) = (Server::bind(&socket)?, endpoint()?);
    let worker = Arc::new(KeeperHere::new().worker()?);
    let serve = move || -> Result<()> {
        let stream = server.accept()?.context("nobody stops it")?;
        let line = Line::new(stream, kept::LIMITS)?;
        endpoint.keep(Arc::clone(line.journal()), Arc::clone(&worker))?;
        line.hold(&kept::prefix(NAME), &worker)?;
        server.serve_kept(line.resume()?, None, &mut endpoint.frontend())?;
        Ok(())
    };
    std::thread::Builder::new()
        .name("vfio-net0-kept".into())
        .spawn(serve)?;
    Ok(socket)
}

fn endpoint() -> Result<Endpoint> {
    let settings = VfConfig {
        mac: [2, 0, 0, 0, 0, 1],
        queue_pairs: 1,
    };
    let card = Vf::new(settings, Box::new(Wire::unplugged()))?;
    let space = ConfigSpace::of(&ixgbevf::spec::pci::LAYOUT);
    Ok(Endpoint::new(NAME, space, Box::new(card))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::doorbell::client::Client;

    #[test]
    fn both_cards_are_read_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = [serve_alone(folder.path()), serve_kept(folder.path())];
        for socket in sockets.map(Result::unwrap) {
            let mut client = Client::connect(&socket).unwrap();
            for value in 1..100_u32 {
                let at = ENDS.write;
                client.write(ENDS.region, at, &value.to_le_bytes()).unwrap();
                assert_eq!(client.read(ENDS.region, at).unwrap(), value);
            }
            client.read(ENDS.region, ENDS.read).unwrap();
        }
    }
}
