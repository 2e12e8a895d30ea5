//! libvfio-user's sample device: pins whose levels are read from a register.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::{Guarded, Lab, LibvfioUser, progress_on_stderr};

use super::Registers;
use crate::bench::doorbell::client::Client;

/// Its pins.
pub(super) const SAMPLE: Registers = Registers {
    name: "libvfio-user's sample",
    region: 2,
    read: 0,
    write: 0,
};
/// How long it may take to listen.
const START: Duration = Duration::from_secs(10);

/// Built from the checkout, or from Debian's sources, or else why there is none.
pub(super) fn program(
    checkout: Option<&Path>,
    quick: bool,
    folder: &Path,
) -> Result<Result<LibvfioUser, String>> {
    if let Some(checkout) = checkout {
        let program = folder.join("sample");
        return lab::libvfio_user_from(checkout, &program, &progress_on_stderr).map(Ok);
    }
    if quick {
        return Ok(Err("for which a quick run has no time".to_owned()));
    }
    let fetched = Lab::ensure(&progress_on_stderr)?.libvfio_user(&progress_on_stderr);
    Ok(fetched.map_err(|why| format!("{why:#}")))
}

/// It ends when what is returned first is dropped.
pub(super) fn start(program: &Path, folder: &Path) -> Result<(Guarded, Client)> {
    let socket = folder.join("sample.sock");
    let mut command = Command::new(program);
    command.arg(&socket);
    let process = Guarded::spawn(command, &File::create(folder.join("sample.log"))?)?;
    let deadline = Instant::now() + START;
    // The socket is there before anybody listens at it.
    let client = loop {
        match Client::connect(&socket) {
            Ok(client) => break client,
            Err(error) => {
                if let Some(status) = process.exit_status() {
                    bail!("libvfio-user's sample ended ({status})");
                }
                let late = || format!("libvfio-user's sample does not listen within {START:?}");
                if Instant::now() > deadline {
                    return Err(error).with_context(late);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok((process, client))
}
