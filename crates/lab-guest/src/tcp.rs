//! The TCP transfer: checks what comes and answers it byte for byte.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use load_format::{Content, GuestTcpReport};
use rustix::net::RecvFlags;

/// What was counted; shared with those who ask.
#[derive(Debug, Default)]
pub(crate) struct Account(Mutex<GuestTcpReport>, AtomicU64);

/// Bytes waited for at once; at 2 MB/s the kernel wakes us 125 times per second.
const BLOCK: usize = 16 * 1024;

/// Between two tries to connect: the peer may not have started, or the link not be up.
const RETRY: Duration = Duration::from_millis(200);

/// Connects and transfers; starts again when a connection breaks. Never returns.
pub(crate) fn run(peer: (Ipv4Addr, u16), account: &Account) {
    loop {
        if let Ok(stream) = TcpStream::connect(peer) {
            account.connected();
            // It ends only by breaking: the peer never closes it first.
            let broken = transfer(&stream, account);
            account.broke(broken.as_ref().err());
        }
        std::thread::sleep(RETRY);
    }
}

fn transfer(mut stream: &TcpStream, account: &Account) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut block = vec![0; BLOCK];
    let mut offset = 0_u64;
    loop {
        // One call per block: the kernel waits until it is full.
        let (count, _) = rustix::net::recv(stream, &mut block[..], RecvFlags::WAITALL)?;
        if count == 0 {
            return Ok(());
        }
        let bytes = &mut block[..count];
        let checked = Content::TO_GUEST.check(offset, bytes);
        account.update(|report| {
            report.received_bytes += count as u64;
            report.wrong_bytes += checked.wrong;
            report.first_wrong = report.first_wrong.or(checked.first_wrong);
        });
        Content::FROM_GUEST.fill(offset, bytes);
        stream.write_all(bytes)?;
        account.update(|report| report.sent_bytes += count as u64);
        offset += count as u64;
    }
}

impl Account {
    pub(crate) fn report(&self) -> GuestTcpReport {
        self.lock().clone()
    }

    pub(crate) fn reset(&self) {
        self.update(|report| {
            *report = GuestTcpReport {
                connected: report.connected,
                connections: report.connections,
                ..GuestTcpReport::default()
            };
        });
    }

    fn connected(&self) {
        self.update(|report| {
            report.connected = true;
            report.connections += 1;
        });
    }

    fn broke(&self, error: Option<&io::Error>) {
        self.update(|report| {
            report.connected = false;
            report.broken += 1;
        });
        // At most one line per try to connect, and only the first few.
        if self.1.fetch_add(1, Ordering::Relaxed) < 10 {
            let reason = error.map_or_else(|| "closed by the peer".into(), ToString::to_string);
            eprintln!("lab-guest: TCP transfer broke: {reason}");
        }
    }

    fn update(&self, change: impl FnOnce(&mut GuestTcpReport)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, GuestTcpReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
