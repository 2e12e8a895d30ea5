//! What becomes of real devices' logs in a migration.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use device::{
    Access, GuestPageSink, Hardware, LogSource, MapError, MapRequest, Mappable, Model, Progress,
    Reset, StateError, StateRecord,
};
use endpoint::Endpoint;
use pci::ConfigSpace;
use sidecar::Sidecar;

use super::*;
use crate::link::DigestKey;

fn secret() -> Secret {
    Secret::of(&DigestKey::of(1))
}

/// A real device, as far as its log goes.
#[derive(Default)]
struct Real {
    has_state: bool,
    log: Arc<Log>,
    file: Option<File>,
}

#[derive(Default)]
struct Log {
    is_open: AtomicBool,
    /// It does not open.
    refuses: AtomicBool,
}

impl Log {
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::SeqCst)
    }
}

impl Model for Real {
    fn read(&mut self, _: u8, _: u64, _: &mut [u8], _: &Access<'_>) {}
    fn write(&mut self, _: u8, _: u64, _: &[u8], _: &Access<'_>) {}
    fn reset(&mut self, _: Reset) {}
    fn poll(&mut self, _: &Access<'_>) -> Progress {
        Progress::Idle(None)
    }
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        Some(self)
    }
    fn has_state(&self) -> bool {
        self.has_state
    }
    fn files(&self) -> Vec<File> {
        let file = self.file.as_ref();
        file.and_then(|file| file.try_clone().ok())
            .into_iter()
            .collect()
    }
    fn save(&self) -> Result<StateRecord, StateError> {
        Err(StateError::NotReadable("real"))
    }
    fn load(&mut self, _: &StateRecord) -> Result<(), StateError> {
        Err(StateError::NotReadable("real"))
    }
    fn resume(&mut self, _: &Access<'_>) {}
}

impl Hardware for Real {
    fn limit_memory(&mut self, _: u64) {}

    fn mappable(&self, _: u8) -> Option<Mappable> {
        None
    }
    fn map(&mut self, _: MapRequest, _: Option<OwnedFd>) -> Result<(), MapError> {
        Ok(())
    }
    fn unmap(&mut self, _: u64, _: u64) -> Result<(), MapError> {
        Ok(())
    }
    fn unmap_all(&mut self) {}
    fn set_bus_master(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn raise_what_was_lost(&mut self) {}
    fn connect(&mut self, _: u32, _: Vec<Option<OwnedFd>>) -> io::Result<()> {
        Ok(())
    }
    fn disconnect(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn raise(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn abandon(&mut self) {}
    fn is_untouched(&self) -> bool {
        true
    }
    fn log_source(&self) -> Option<LogSource> {
        Some(LogSource::Iommu)
    }
    fn open_log(&mut self) -> io::Result<()> {
        let refuses = self.log.refuses.load(Ordering::SeqCst);
        self.log.is_open.store(!refuses, Ordering::SeqCst);
        if refuses {
            Err(io::ErrorKind::OutOfMemory.into())
        } else {
            Ok(())
        }
    }
    fn read_log(&mut self, _: &mut dyn GuestPageSink) -> io::Result<()> {
        Ok(())
    }
    fn close_log(&mut self) {
        self.log.is_open.store(false, Ordering::SeqCst);
    }
}

fn vm(devices: Vec<Endpoint>) -> Vm {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::bind(folder.path().join("sidecar"), sidecar::Config::default());
    let log = sidecar.unwrap().marker_handle();
    Vm::new(Endpoints(devices), false, log, None, Controls::default())
}

fn real(has_state: bool) -> (Endpoint, Arc<Log>) {
    let log = Arc::default();
    let model = Real {
        has_state,
        log: Arc::clone(&log),
        file: None,
    };
    (endpoint_of(model), log)
}

fn endpoint_of(model: Real) -> Endpoint {
    let space = ConfigSpace::of(&control_device::spec::pci::LAYOUT);
    Endpoint::new("real", space, Box::new(model)).unwrap()
}

/// The thread that does has the VM as long.
#[test]
fn files_are_written_back_until_nobody_wants_it() {
    let has_thread = |vm: &Vm| Arc::strong_count(&vm.0) > 2;
    let without = vm(vec![real(false).0]);
    let write_back = without.write_back();
    assert!(!has_thread(&without), "there is nothing to write back");
    drop(write_back);
    let model = Real {
        file: Some(tempfile::tempfile().unwrap()),
        ..Real::default()
    };
    let vm = vm(vec![endpoint_of(model)]);
    let write_back = vm.write_back();
    assert!(has_thread(&vm));
    drop(write_back);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&vm.0) > 1 {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(1));
    }
    // As an arriving VM's host does.
    vm.forget_files();
}

#[test]
fn a_real_devices_log_is_open_from_before_the_first_page_to_the_end() {
    let (device, log) = real(false);
    let vm = vm(vec![device]);
    vm.begin_migration("m1", secret());
    assert!(!log.is_open(), "nothing is touched by a check");
    assert!(vm.without_log().is_empty(), "but it has one");
    vm.open_logs();
    assert!(log.is_open());
    vm.end_migration();
    assert!(!log.is_open());
}

#[test]
fn one_whose_log_does_not_open_has_none_in_this_migration_and_may_in_the_next() {
    let (device, log) = real(false);
    let vm = vm(vec![device]);
    log.refuses.store(true, Ordering::SeqCst);
    vm.begin_migration("m1", secret());
    vm.open_logs();
    assert_eq!(vm.without_log(), [(0, "real".to_owned())]);
    assert!(
        vm.unknown_writer().is_some(),
        "others must know, or compare"
    );
    vm.end_migration();
    log.refuses.store(false, Ordering::SeqCst);
    vm.begin_migration("m2", secret());
    assert!(vm.without_log().is_empty());
    vm.open_logs();
    assert!(log.is_open() && vm.without_log().is_empty());
}

#[test]
fn a_real_device_with_a_state_is_left_to_nobody() {
    let devices = vec![real(true).0, real(false).0];
    assert_eq!(vm(devices).without_state(), [1]);
}
