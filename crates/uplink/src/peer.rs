//! The built-in peer: a host of its own that loads the guest's NIC and measures what it sees.
//!
//! It sits on the inner port of a [`Switch`] in a thread of its own. To the guest it is an ordinary
//! neighbour: it answers ARP and ICMP echo. Besides, it
//!
//! * sends numbered, time-stamped UDP and checks the guest's, each packet's content included;
//! * sends ICMP echo requests and measures the answers;
//! * serves one TCP transfer with content in both directions that it checks byte by byte.
//!
//! All times it reports are nanoseconds of this host's `CLOCK_MONOTONIC` (see [`now_nanos`]), which
//! every process of the host shares. How long nothing reached the *guest* the peer learns from the
//! guest's own packets, which name the newest packet received and its age; so this number is never
//! too small, and too large by at most the time until the guest's next packet arrives.

mod config;
mod frames;
mod host;
mod ledger;
mod pace;
mod report;
mod tcp;
mod times;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use load_format::{Run, Silence};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};

use crate::{Switch, SwitchReport, UplinkError};
pub use config::{Load, PeerConfig};
pub(crate) use host::Host;
pub(crate) use ledger::Ledger;
pub use report::{
    Activity, IcmpReport, Loss, Moves, PeerReport, Quiet, RoundTrips, TcpReport, UdpFromGuest,
    UdpToGuest, WindowReport,
};

/// The running peer; dropping it stops it.
#[derive(Debug)]
pub struct Peer {
    shared: Arc<Shared>,
    config: PeerConfig,
    thread: Option<JoinHandle<()>>,
}

/// What the peer's thread and its owner share.
#[derive(Debug)]
struct Shared {
    books: Mutex<Books>,
    /// Told after each pass in which a frame came, while someone waits.
    progress: Condvar,
    stop: AtomicBool,
    wake: OwnedFd,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    switch: SwitchReport,
    waiting: usize,
    /// What is to be sent from the next pass on.
    load: Option<Load>,
    /// Nothing is to be sent unasked from the next pass on.
    silent: bool,
}

/// Now, in nanoseconds of this host's `CLOCK_MONOTONIC`: the time line of all reports.
pub fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

impl Peer {
    /// Listens at the configured socket and starts the peer's thread.
    ///
    /// # Errors
    ///
    /// [`UplinkError`] if the configuration contradicts itself, the socket cannot be listened at,
    /// or the thread does not start.
    pub fn start(config: PeerConfig) -> Result<Self, UplinkError> {
        config.check()?;
        let mut switch = Switch::new(config.mac);
        switch.listen(&config.socket)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
            UplinkError::Start {
                source: error.into(),
            }
        })?;
        let now = now_nanos();
        let shared = Arc::new(Shared {
            books: Mutex::new(Books {
                ledger: Ledger::new(now),
                switch: switch.report(),
                waiting: 0,
                load: None,
                silent: false,
            }),
            progress: Condvar::new(),
            stop: AtomicBool::new(false),
            wake,
        });
        let host = Host::new(config.clone(), now);
        let thread = std::thread::Builder::new()
            .name("peer".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || run(&shared, switch, host)
            })
            .map_err(|source| UplinkError::Start { source })?;
        Ok(Self {
            shared,
            config,
            thread: Some(thread),
        })
    }

    /// What was counted since the start or the last [`reset`](Self::reset).
    pub fn report(&self) -> PeerReport {
        let books = self.shared.books();
        books.ledger.report(now_nanos(), books.switch.clone())
    }

    /// Starts a new measured run: all counts are 0 again. Numbers go on, so that a loss at the very
    /// beginning is still seen, and so does the TCP transfer.
    pub fn reset(&self) {
        self.shared.books().ledger.start_window(now_nanos());
    }

    /// From now on sends this instead of what it sends, and no longer looks at TCP's content.
    pub fn set_load(&self, load: Load) {
        self.shared.books().load = Some(load);
        self.shared.wake();
    }

    /// Sends nothing unasked while `silent`, as of the next pass, and takes TCP's segments for lost; then goes
    /// on where it was.
    pub fn set_silent(&self, silent: bool) {
        self.shared.books().silent = silent;
        self.shared.wake();
    }

    /// What happened between two times, whatever was reset since; reaches back about two minutes
    /// at 2 000 packets per second. A silence that reaches into the window counts whole.
    pub fn window(&self, since_nanos: u64, until_nanos: u64) -> WindowReport {
        self.shared
            .books()
            .ledger
            .window(since_nanos, until_nanos, now_nanos())
    }

    /// Which of the packets that the guest sent and that did not come since the last reset belong
    /// to one of `outages`, each stretched by `slack` at both ends.
    pub fn loss_from_guest(&self, outages: &[Silence], slack: Duration) -> Loss {
        self.shared
            .books()
            .ledger
            .loss_from_guest(outages, nanos(slack))
    }

    /// Which of the packets sent to the guest that it says it did not get (`lost_runs` of its
    /// report) were sent in one of `outages`, each stretched by `slack` at both ends.
    pub fn loss_to_guest(&self, runs: &[Run], outages: &[Silence], slack: Duration) -> Loss {
        self.shared
            .books()
            .ledger
            .loss_to_guest(runs, outages, nanos(slack))
    }

    /// When the packet `number` was sent to the guest, if that is still known.
    pub fn sent_at(&self, number: u64) -> Option<u64> {
        self.shared.books().ledger.sent_at(number)
    }

    /// When each kind of traffic was last seen.
    pub fn activity(&self) -> Activity {
        self.shared.books().ledger.activity()
    }

    /// Waits until every kind of traffic that the configuration asks for was seen after
    /// `since_nanos`: UDP both ways, answered echoes, TCP bytes both ways.
    ///
    /// # Errors
    ///
    /// [`Quiet`] names what is still missing after `timeout`.
    pub fn wait_for_traffic(&self, since_nanos: u64, timeout: Duration) -> Result<(), Quiet> {
        let deadline = Instant::now() + timeout;
        let mut books = self.shared.books();
        books.waiting += 1;
        let result = loop {
            let missing = books
                .ledger
                .activity()
                .missing_since(since_nanos, &self.config);
            if missing.is_empty() {
                break Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(Quiet {
                    missing,
                    waited: timeout,
                });
            }
            let waited = self.shared.progress.wait_timeout(books, left);
            books = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        books.waiting -= 1;
        result
    }

    /// Stops the peer and gives its last report.
    pub fn stop(mut self) -> PeerReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the peer's thread panicked; its report ends there");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn wake(&self) {
        // Cannot fail but for a full counter, which is readable too.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peer's thread.
fn run(shared: &Shared, mut switch: Switch, mut host: Host) {
    // On a host busy with emulating the guest, time without the processor would look like an
    // outage. Needs a privilege; without it the numbers are still true, only less kind.
    if let Err(error) = rustix::process::nice(-10) {
        tracing::debug!(%error, "the peer runs without priority");
    }
    while !shared.stop.load(Ordering::Acquire) {
        let timeout = if floods(&host, &switch) {
            Duration::ZERO
        } else {
            Duration::from_nanos(host.next_due().saturating_sub(now_nanos()))
        };
        match switch.wait(timeout, shared.wake.as_fd()) {
            Ok(false) => {}
            // It has nothing to say but that it is time to look.
            Ok(true) => drop(rustix::io::read(&shared.wake, &mut [0; 8])),
            Err(error) => {
                tracing::error!(%error, "the peer cannot wait for its wires and ends");
                return;
            }
        }
        let now = now_nanos();
        let mut books = shared.books();
        if let Some(load) = books.load.take() {
            host.set_load(load, now);
        }
        host.set_silent(books.silent);
        switch.turn(|frame| host.receive(frame, now, &mut books.ledger));
        host.advance(now, &mut books.ledger);
        if let Some(port) = host.guest_mac().and_then(|mac| switch.port_of(mac)) {
            books.ledger.guest_at(port, now);
        }
        books.switch = switch.report();
        let waiting = books.waiting > 0;
        drop(books);
        if waiting {
            shared.progress.notify_all();
        }
        if floods(&host, &switch) {
            host.flood();
        }
        host.drain(|frame| switch.inject(frame));
        switch.flush();
    }
}

/// Whether the guest is to be flooded, and its wire takes more.
fn floods(host: &Host, switch: &Switch) -> bool {
    host.floods() && host.guest_mac().is_some_and(|mac| switch.takes_more(mac))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
