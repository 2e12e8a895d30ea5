//! What can be done with the files of a VM's devices before the VM stands still.
//!
//! The source makes them durable before it lets go of them, and the destination forgets what its host has cached of
//! them once it has them. Both take the longer the more there is, and the VM stands still meanwhile. So what has been
//! written by then is written back while the VM runs, and what is cached is forgotten before it comes.
//! Neither takes the place of what is done in the end.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use endpoint::Endpoint;
use rustix::fs::{Advice, fadvise};

use super::{StageName, Vm};

/// How often they are written back: of a guest that writes a lot, what it writes within that is left for the end.
const EVERY: Duration = Duration::from_millis(100);

/// Writes them back until it is dropped, and once more when the devices have been halted. Nobody waits for it.
#[derive(Debug)]
pub(crate) struct WriteBack(Vm, Arc<AtomicBool>);

impl Vm {
    /// Begins to write back what the devices have written to their files.
    pub(crate) fn write_back(&self) -> WriteBack {
        let over = Arc::new(AtomicBool::new(false));
        let files = self.files();
        if !files.is_empty() {
            let (vm, over) = (self.clone(), Arc::clone(&over));
            let thread = std::thread::Builder::new().name("write-back".into());
            let started = thread.spawn(move || run(&vm, &files, &over));
            if let Err(error) = started {
                tracing::warn!(%error, "all that is written to disks is left for the pause");
            }
        }
        WriteBack(self.clone(), over)
    }

    /// Forgets what is cached of the files, which another host writes.
    pub(super) fn forget_files(&self) {
        for file in self.files() {
            if let Err(error) = fadvise(&file, 0, None, Advice::DontNeed) {
                tracing::debug!(%error, "what is cached of a disk is left for the pause");
            }
        }
    }

    fn files(&self) -> Vec<File> {
        let endpoints = self.0.endpoints.0.iter();
        endpoints.flat_map(Endpoint::files).collect()
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Release);
        self.0.0.changed.notify_all();
    }
}

/// These were opened for this alone, and the system tells each who has a file open of a write that failed: so what
/// fails here fails again where it counts.
fn run(vm: &Vm, files: &[File], over: &AtomicBool) {
    loop {
        let halted = vm.stage() == StageName::Marked;
        for file in files {
            if let Err(error) = file.sync_data() {
                tracing::debug!(%error, "a disk is not written back");
            }
        }
        if halted || over.load(Ordering::Acquire) {
            return;
        }
        vm.wait(EVERY, |state| {
            state.stage.name() == StageName::Marked || over.load(Ordering::Acquire)
        });
    }
}
