//! The thread that carries dirty bits from the devices to QEMU's log during precopy.
//!
//! Each DMA write sets a bit in the device's own map; every few milliseconds the bits move on. It
//! keeps the rest that is left for the halt small, and lets QEMU see how much the devices write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::lifecycle::Migratable;
use device::{DirtySink, MemoryId};
use sidecar::{FileId, Marker};

use super::Vm;

/// How often. A page that is written all the time is sent again at most once per pass of QEMU's,
/// so more often gains nothing; less often leaves more for the halt.
const INTERVAL: Duration = Duration::from_millis(20);
/// What hardware has logged may take long to read (an IOMMU's bits are in all of its tables): no more of a
/// processor's time than the twentieth part goes there.
const SHARE: u32 = 20;
/// Nor is it left for longer.
const LONGEST: Duration = Duration::from_secs(1);

/// The running thread; stops and joins when dropped.
#[derive(Debug)]
pub struct Drainer {
    vm: Vm,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drainer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(vm: &Vm) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("drain".into()).spawn({
            let (vm, stop) = (vm.clone(), Arc::clone(&stop));
            move || run(&vm, &stop)
        })?;
        Ok(Self {
            vm: vm.clone(),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.vm.0.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(vm: &Vm, stop: &AtomicBool) {
    let stopped = || stop.load(Ordering::Acquire);
    while !stopped() {
        // Sleeps without a timer while no migration is under way.
        vm.wait(Duration::from_hours(1), |state| state.logging || stopped());
        let began = Instant::now();
        if vm.is_logging() && !vm.0.controls.no_log {
            drain(vm);
        }
        let pause = if logs_hardware(vm) {
            (began.elapsed() * SHARE).clamp(INTERVAL, LONGEST)
        } else {
            INTERVAL
        };
        vm.wait(pause, |state| !state.logging || stopped());
    }
}

fn logs_hardware(vm: &Vm) -> bool {
    let mut endpoints = vm.0.endpoints.0.iter();
    endpoints.any(|endpoint| endpoint.keeps_log() && endpoint.log_source().is_some())
}

fn drain(vm: &Vm) {
    let mut endpoints = vm.0.endpoints.clone();
    let (mut marked, mut released) = (0, 0);
    vm.0.log.with(|marker| {
        let mut sink = Sink(marker);
        if vm.0.iommu {
            let devices = endpoints.0.iter();
            for device in devices.filter(|device| !device.keeps_log()) {
                device.bus().drain_released(&mut sink);
            }
            released = sink.0.tally().newly_marked;
        }
        if let Err(error) = endpoints.mark(&mut sink) {
            tracing::warn!(%error, "dirty pages not carried over yet");
        }
        marked = sink.0.tally().newly_marked - released;
    });
    let mut state = vm.lock();
    state.marks.precopy += marked;
    state.marks_by_iommu.precopy += released;
}

struct Sink<'a, 'b>(&'a mut Marker<'b>);

impl DirtySink for Sink<'_, '_> {
    fn mark_words(&mut self, file: MemoryId, first_page: u64, words: &[u64]) {
        self.0.mark_file_words(of_sidecar(file), first_page, words);
    }
}

/// The same file, by the sidecar's name for it.
pub(super) fn of_sidecar(MemoryId { device, inode }: MemoryId) -> FileId {
    FileId { device, inode }
}
