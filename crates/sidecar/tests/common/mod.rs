//! A sidecar with hooks that record, and QEMU's part played by the `vhost` crate's own front-end.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of this"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use keeper::{Held, Worker};
use sidecar::{Config, Error, Hooks, LogHandle, LogStart, Sidecar, Stop, Stopped, Stopper, Veto};
use tempfile::TempDir;
use vhost::vhost_user::message::{
    VhostTransferStateDirection as Direction, VhostTransferStatePhase, VhostUserHeaderFlag,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const PAGE: u64 = 4096;
pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const LOG_ALL: u64 = 1 << 26;

/// Far longer than anything takes; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Connected,
    LogStarted(LogStart),
    LogStopped,
    Stopping { logged: bool },
    Restarted,
    Save(Stopped),
    Load(Vec<u8>),
    Refused(String),
    Disconnected { error: bool },
}

/// What the recording hooks do beside recording.
#[derive(Debug, Default)]
pub struct Script {
    /// Pages that the stop hook marks.
    pub marks: Vec<u64>,
    /// The stop hook waits for this.
    pub gate: Option<Receiver<()>>,
    pub veto_stop: bool,
    pub veto_save: bool,
    pub veto_load: bool,
    pub state: Vec<u8>,
}

struct Recorder {
    events: Sender<Event>,
    script: Script,
}

impl Recorder {
    fn record(&self, event: Event) {
        // A test that has seen enough no longer listens.
        let _ = self.events.send(event);
    }
}

fn veto(when: bool) -> Result<(), Veto> {
    if when { Err(Veto::new("no")) } else { Ok(()) }
}

impl Hooks for Recorder {
    fn connected(&mut self) {
        self.record(Event::Connected);
    }

    fn log_started(&mut self, start: LogStart) {
        self.record(Event::LogStarted(start));
    }

    fn log_stopped(&mut self) {
        self.record(Event::LogStopped);
    }

    fn stopping(&mut self, stop: Stop<'_>) -> Result<(), Veto> {
        let logged = matches!(stop, Stop::Logged(_));
        self.record(Event::Stopping { logged });
        if let Some(gate) = &self.script.gate {
            gate.recv_timeout(PATIENCE)
                .expect("the test opens the gate");
        }
        if let Stop::Logged(mut marker) = stop {
            for page in &self.script.marks {
                marker.mark_page(page * PAGE);
            }
        }
        veto(std::mem::take(&mut self.script.veto_stop))
    }

    fn restarted(&mut self) {
        self.record(Event::Restarted);
    }

    fn save(&mut self, stopped: Stopped) -> Result<Vec<u8>, Veto> {
        self.record(Event::Save(stopped));
        veto(self.script.veto_save)?;
        Ok(self.script.state.clone())
    }

    fn load(&mut self, blob: Vec<u8>) -> Result<(), Veto> {
        self.record(Event::Load(blob));
        veto(self.script.veto_load)
    }

    fn refused(&mut self, why: &Veto) {
        self.record(Event::Refused(why.to_string()));
    }

    fn disconnected(&mut self, why: Option<&Error>) {
        let error = why.is_some();
        self.record(Event::Disconnected { error });
    }
}

/// A served sidecar.
pub struct Served {
    pub path: PathBuf,
    pub log: LogHandle,
    pub stopper: Stopper,
    events: Receiver<Event>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    _dir: TempDir,
}

impl Served {
    pub fn new(script: Script) -> Self {
        Self::with(script, Config::default())
    }

    pub fn with(script: Script, config: Config) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sidecar.sock");
        let sidecar = Sidecar::bind(&path, config).expect("the path is free");
        Self::serve(sidecar, path, dir, script)
    }

    /// One whose connection outlives the process, and goes on with what is `held`.
    pub fn kept(worker: &Arc<Worker>, held: &mut Held) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sidecar.sock");
        let mut sidecar = Sidecar::bind(&path, Config::default()).expect("the path is free");
        let kept = sidecar.keep(Arc::clone(worker), held);
        kept.expect("what is held can be gone on with");
        Self::serve(sidecar, path, dir, Script::default())
    }

    fn serve(mut sidecar: Sidecar, path: PathBuf, dir: TempDir, script: Script) -> Self {
        let (sender, events) = mpsc::channel();
        let mut recorder = Recorder {
            events: sender,
            script,
        };
        Self {
            path,
            log: sidecar.marker_handle(),
            stopper: sidecar.stopper(),
            events,
            thread: Some(std::thread::spawn(move || sidecar.serve(&mut recorder))),
            _dir: dir,
        }
    }

    /// The next event.
    #[track_caller]
    pub fn event(&self) -> Event {
        self.events
            .recv_timeout(PATIENCE)
            .expect("an event should come")
    }

    #[track_caller]
    pub fn expect(&self, events: &[Event]) {
        for event in events {
            assert_eq!(self.event(), *event);
        }
    }

    /// Nothing was called beyond what was expected. Meaningful after an answer to QEMU.
    #[track_caller]
    pub fn expect_silence(&self) {
        assert_eq!(self.events.try_recv().ok(), None);
    }

    /// Stops serving and returns how it ended.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.stopper.stop();
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("serving never panics")
    }

    pub fn qemu(&self) -> Qemu {
        let qemu = Qemu::connect(self);
        self.expect(&[Event::Connected]);
        qemu
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// QEMU's side: the order of its messages, with the `vhost` crate's front-end.
pub struct Qemu {
    pub front: Frontend,
    pub memory: File,
    pub kick: EventFd,
    pub call: EventFd,
}

/// Where QEMU has guest address 0 in its own address space.
pub const USER_BASE: u64 = 0x7f00_0000_0000;
pub const MEMORY_LEN: u64 = 1 << 20;
pub const DESCRIPTORS: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x2000;
pub const USED: u64 = 0x3000;
pub const RING_SIZE: u16 = 8;

impl Qemu {
    pub fn connect(served: &Served) -> Self {
        let mut front = Frontend::connect(&served.path, 2).expect("the sidecar listens");
        let offered = front.get_features().expect("the first message");
        assert_eq!(offered, VERSION_1 | PROTOCOL_FEATURES | LOG_ALL);
        front
            .set_features(PROTOCOL_FEATURES | VERSION_1)
            .expect("features that were offered");
        let protocol = front.get_protocol_features().expect("they are offered");
        assert!(protocol.contains(
            VhostUserProtocolFeatures::LOG_SHMFD
                | VhostUserProtocolFeatures::DEVICE_STATE
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        ));
        front
            .set_protocol_features(protocol)
            .expect("features that were offered");
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_owner().expect("always allowed");
        assert_eq!(front.get_queue_num().expect("MQ is offered"), 2);
        Self {
            front,
            memory: memfd(MEMORY_LEN),
            kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            call: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
        }
    }

    /// `vhost_dev_start` of a device whose driver has set up ring 1, as far as the log.
    pub fn prepare(&mut self, log_all: bool) {
        self.set_log_all(log_all);
        self.front
            .set_mem_table(&[self.region()])
            .expect("a good region");
        self.front.set_vring_num(1, RING_SIZE).expect("a good size");
        self.front.set_vring_base(1, 0).expect("a good base");
        self.set_ring_address(log_all);
        self.front
            .set_vring_kick(1, &self.kick)
            .expect("an eventfd");
        self.front
            .set_vring_call(1, &self.call)
            .expect("an eventfd");
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_LEN,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        }
    }

    pub fn set_log_all(&mut self, on: bool) {
        let log_all = if on { LOG_ALL } else { 0 };
        self.front
            .set_features(VERSION_1 | PROTOCOL_FEATURES | log_all)
            .expect("features that were offered");
    }

    pub fn set_ring_address(&mut self, log: bool) {
        let address = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: u32::from(log),
            desc_table_addr: USER_BASE + DESCRIPTORS,
            used_ring_addr: USER_BASE + USED,
            avail_ring_addr: USER_BASE + AVAILABLE,
            log_addr: Some(USED),
        };
        self.front
            .set_vring_addr(1, &address)
            .expect("the ring is in memory");
    }

    pub fn enable(&mut self, on: bool) {
        for ring in 0..2 {
            self.front
                .set_vring_enable(ring, on)
                .expect("the ring exists");
        }
    }

    pub fn start(&mut self) {
        self.prepare(false);
        self.enable(true);
    }

    /// As at the begin of a migration: `vhost_migration_log`.
    pub fn open_log(&mut self, pages: u64) -> Log {
        let log = self.set_log_base(pages);
        self.set_log_all(true);
        self.set_ring_address(true);
        log
    }

    pub fn set_log_base(&mut self, pages: u64) -> Log {
        let log = Log::new(pages);
        self.give_log(&log);
        log
    }

    pub fn give_log(&mut self, log: &Log) {
        let region = VhostUserDirtyLogRegion {
            mmap_size: log.0.metadata().expect("a memfd").len(),
            mmap_offset: 0,
            mmap_handle: log.0.as_raw_fd(),
        };
        self.front
            .set_log_base(0, Some(region))
            .expect("a good log");
    }

    /// `vhost_dev_stop`.
    pub fn stop(&mut self) {
        self.enable(false);
        self.front.get_vring_base(1).expect("the ring exists");
    }

    /// SAVE and CHECK, and the bytes that came out in between.
    pub fn save(&mut self) -> Result<Vec<u8>, ()> {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        self.transfer(Direction::SAVE, write.into())?;
        let mut blob = Vec::new();
        read.read_to_end(&mut blob).expect("the pipe ends");
        self.front.check_device_state().map_err(drop)?;
        Ok(blob)
    }

    /// LOAD and CHECK.
    pub fn load(&mut self, blob: &[u8]) -> Result<(), ()> {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        self.transfer(Direction::LOAD, read.into())?;
        // A sidecar that gives up early closes its end.
        let _ = write.write_all(blob);
        drop(write);
        self.front.check_device_state().map_err(drop)
    }

    pub fn transfer(&mut self, direction: Direction, pipe: OwnedFd) -> Result<(), ()> {
        let phase = VhostTransferStatePhase::STOPPED;
        match self.front.set_device_state_fd(direction, phase, pipe) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => panic!("the sidecar uses the pipe that it is given"),
            Err(_) => Err(()),
        }
    }
}

/// QEMU's dirty log.
pub struct Log(File);

impl Log {
    /// For so many pages.
    pub fn new(pages: u64) -> Self {
        Self(memfd(pages.div_ceil(64) * 8))
    }

    /// The pages marked.
    pub fn pages(&self) -> Vec<u64> {
        let len = self.0.metadata().expect("a memfd").len();
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        self.0.read_exact_at(&mut bytes, 0).expect("its length");
        (0..len * 8)
            .filter(|page| bytes[usize::try_from(page / 8).expect("small")] >> (page % 8) & 1 != 0)
            .collect()
    }
}

pub fn memfd(len: u64) -> File {
    let fd = rustix::fs::memfd_create("sidecar-test", rustix::fs::MemfdFlags::CLOEXEC)
        .expect("memfd_create works");
    let file = File::from(fd);
    file.set_len(len).expect("the size is small");
    file
}
