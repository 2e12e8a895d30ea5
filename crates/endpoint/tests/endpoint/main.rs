//! An endpoint as a vfio-user connection and a migration see it, with a model that does one thing:
//! a write to its register makes it store a word in guest memory and raise vector 0.

mod kept;
mod together;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use device::lifecycle::{Halted, Running};
use device::{Access, Model, Progress, Reset, State, StateError, StateRecord};
use endpoint::engine::Engine;
use endpoint::{Carry, Endpoint, EndpointError, Endpoints, Frontend};
use pci::{Bar, BarKind, ConfigSpace, Identity, MsixCapability};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use vfio_user::{Backend, DmaMap, DmaUnmap, Errno, IrqChange, IrqEvent, IrqSet};

const CONFIG: u32 = 7;
const PAGE: u64 = 4096;
/// Where the model stores.
const AT: u64 = 5 * PAGE + 8;

#[derive(Debug, Default)]
struct Store {
    wanted: Option<u64>,
    stored: u64,
    resets: u32,
    resumed: bool,
    settled: u32,
}

#[derive(Serialize, Deserialize)]
struct StoreV1 {
    wanted: Option<u64>,
    stored: u64,
}

impl State for StoreV1 {
    const NAME: &'static str = "store";
    const VERSION: u32 = 1;
}

impl Store {
    fn work(&mut self, access: &Access<'_>) {
        let Some(memory) = access.memory else { return };
        if let Some(value) = self.wanted.take()
            && memory.store_u64(AT, value).is_ok()
        {
            self.stored = value;
            access.interrupts.signal(0);
        }
    }
}

impl Model for Store {
    fn read(&mut self, _: u8, _: u64, data: &mut [u8], _: &Access<'_>) {
        let len = data.len().min(8);
        data[..len].copy_from_slice(&self.stored.to_le_bytes()[..len]);
    }

    fn write(&mut self, _: u8, _: u64, data: &[u8], access: &Access<'_>) {
        let mut value = [0; 8];
        value[..data.len().min(8)].copy_from_slice(&data[..data.len().min(8)]);
        self.wanted = Some(u64::from_le_bytes(value));
        self.work(access);
    }

    fn after_writes(&mut self, _: &Access<'_>) {
        self.settled += 1;
    }

    fn reset(&mut self, _: Reset) {
        *self = Self {
            resets: self.resets + 1,
            ..Self::default()
        };
    }

    fn poll(&mut self, access: &Access<'_>) -> Progress {
        self.work(access);
        Progress::Idle(None)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        StateRecord::pack(&StoreV1 {
            wanted: self.wanted,
            stored: self.stored,
        })
    }

    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        let StoreV1 { wanted, stored } = record.unpack()?;
        *self = Self {
            wanted,
            stored,
            ..Self::default()
        };
        Ok(())
    }

    fn resume(&mut self, access: &Access<'_>) {
        self.resumed = true;
        self.work(access);
    }

    fn live(&self, state: &mut Vec<u8>) -> bool {
        state.extend(self.stored.to_le_bytes());
        true
    }

    fn take_over(&mut self, live: &[u8]) -> Result<(), StateError> {
        self.stored = u64::from_le_bytes(live.try_into().unwrap());
        Ok(())
    }

    fn inspect(&self) -> serde_json::Value {
        serde_json::json!({
            "resets": self.resets,
            "resumed": self.resumed,
            "settled": self.settled,
        })
    }
}

/// Of no driver's.
const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 1,
    revision: 0,
    class: 0xff_00_00,
    subsystem_vendor: 0,
    subsystem: 0,
};

fn space() -> ConfigSpace {
    let bar = |index| Bar {
        index,
        size: 0x1000,
        kind: BarKind::Memory32,
    };
    let msix = MsixCapability {
        vectors: 2,
        bar: 1,
        table_offset: 0,
        pba_bar: 1,
        pba_offset: 0x800,
    };
    ConfigSpace::builder(IDENTITY)
        .bar(bar(0))
        .bar(bar(1))
        .msix(0x40, msix)
        .express(0x60)
        .build()
}

/// An endpoint with 16 pages of memory, bus mastering on, and vector 0 armed.
struct Rig {
    endpoint: Endpoint,
    frontend: Frontend,
    ram: File,
    vector: OwnedFd,
}

impl Rig {
    fn new(name: &str) -> Self {
        Self::of(Endpoint::new(name, space(), Box::new(Store::default())).unwrap())
    }

    fn of(endpoint: Endpoint) -> Self {
        let mut frontend = endpoint.frontend();
        let ram = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let ram = File::from(ram);
        ram.set_len(16 * PAGE).unwrap();
        let map = DmaMap {
            iova: 0,
            size: 16 * PAGE,
            offset: 0,
            readable: true,
            writable: true,
        };
        frontend
            .dma_map(map, Some(ram.try_clone().unwrap().into()))
            .unwrap();
        let vector = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let change = IrqChange::Connect {
            event: IrqEvent::Trigger,
            eventfds: vec![vector.try_clone().unwrap()],
        };
        frontend
            .set_irqs(IrqSet {
                index: 2,
                start: 0,
                count: 1,
                change,
            })
            .unwrap();
        let mut rig = Self {
            endpoint,
            frontend,
            ram,
            vector,
        };
        rig.command(6);
        rig
    }

    fn command(&mut self, value: u16) {
        self.frontend
            .region_write(CONFIG, 4, &value.to_le_bytes())
            .unwrap();
    }

    fn store(&mut self, value: u64) {
        self.frontend
            .region_write(0, 0, &value.to_le_bytes())
            .unwrap();
    }

    fn register(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.frontend.region_read(0, 0, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn memory(&self) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read_exact_at(&mut bytes, AT).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(self.vector.as_fd(), &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    fn devices(&self) -> Endpoints {
        Endpoints(vec![self.endpoint.clone()])
    }
}

#[test]
fn a_register_write_reaches_memory_and_raises_the_vector() {
    let mut rig = Rig::new("a");
    rig.store(7);
    assert_eq!((rig.memory(), rig.register(), rig.interrupts()), (7, 7, 1));
}

#[test]
fn without_bus_mastering_work_waits_until_it_is_on_again() {
    let mut rig = Rig::new("a");
    let _engine = Engine::start(&rig.endpoint).unwrap();
    rig.command(2);
    rig.store(7);
    assert_eq!((rig.memory(), rig.register()), (0, 0));
    rig.command(6);
    // The engine does it; the register shows when it has.
    while rig.register() != 7 {
        std::thread::yield_now();
    }
    assert_eq!((rig.memory(), rig.interrupts()), (7, 1));
}

#[test]
fn halted_registers_are_answered_and_nothing_is_written() {
    let mut rig = Rig::new("a");
    rig.store(7);
    let halted = Running::new(rig.devices()).halt().unwrap();
    rig.store(8);
    assert_eq!((rig.memory(), rig.register()), (7, 7));
    let _engine = Engine::start(&rig.endpoint).unwrap();
    let _running = halted.resume();
    while rig.register() != 8 {
        std::thread::yield_now();
    }
    assert_eq!(rig.memory(), 8);
}

#[test]
fn what_was_written_is_marked_after_the_halt_and_what_was_left_undone_is_done_elsewhere() {
    let mut source = Rig::new("a");
    source.store(7);
    let mut pages = Vec::new();
    let halted = Running::new(source.devices()).halt().unwrap();
    source.store(8);
    let marked = halted.mark(&mut |_, page| pages.push(page)).unwrap();
    assert_eq!(pages, [5]);
    let state = marked.save(&Vec::new()).unwrap();

    let mut destination = Rig::new("a");
    let arrived = Halted::waiting(destination.devices())
        .unwrap()
        .load(state)
        .unwrap();
    assert_eq!((destination.register(), destination.memory()), (7, 0));
    let _running = arrived.claim("m1").unwrap().run();
    assert_eq!((destination.register(), destination.memory()), (8, 8));
    assert_eq!(destination.endpoint.inspect()["resumed"], true);
    assert_eq!(source.memory(), 7);
}

#[test]
fn an_interrupt_that_nobody_took_goes_along() {
    let mut source = Rig::new("a");
    let all = IrqSet {
        index: 2,
        start: 0,
        count: 0,
        change: IrqChange::DisableAll,
    };
    source.frontend.set_irqs(all).unwrap();
    source.store(7);
    let state = Running::new(source.devices())
        .halt()
        .unwrap()
        .mark(&mut |_, _| {})
        .unwrap();
    let state = state.save(&Vec::new()).unwrap();
    assert_eq!(state[0].pending, [0]);
    let destination = Rig::new("a");
    let _arrived = Halted::waiting(destination.devices())
        .unwrap()
        .load(state)
        .unwrap();
    assert_eq!(destination.interrupts(), 1);
}

#[test]
fn a_device_that_is_left_to_its_driver_arrives_blank_with_its_configuration() {
    let mut source = Rig::new("a");
    source.store(7);
    let marked = Running::new(source.devices())
        .halt()
        .unwrap()
        .mark(&mut |_, _| {})
        .unwrap();
    let state = marked.save(&vec![Carry::Configuration]).unwrap();
    assert_eq!((&state[0].model, &state[0].pending), (&None, &vec![]));

    let mut destination = Rig::new("a");
    destination.store(9);
    let arrived = Halted::waiting(destination.devices())
        .unwrap()
        .load(state)
        .unwrap();
    let _running = arrived.claim("m1").unwrap().run();
    assert_eq!(destination.register(), 0);
    let image = source.endpoint.config_image();
    assert_eq!(destination.endpoint.config_image(), image);
}

#[test]
fn a_device_without_a_log_marks_nothing() {
    let endpoint = Endpoint::without_log("a", space(), Box::new(Store::default()));
    let mut source = Rig::of(endpoint.unwrap());
    source.store(7);
    let mut pages = Vec::new();
    let halted = Running::new(source.devices()).halt().unwrap();
    let _marked = halted.mark(&mut |_, page| pages.push(page)).unwrap();
    assert_eq!(source.memory(), 7);
    assert_eq!(pages, [0; 0]);
}

#[test]
fn what_a_device_without_a_log_can_write_is_known_by_what_is_mapped_for_it() {
    let endpoint = Endpoint::without_log("a", space(), Box::new(Store::default()));
    let mut source = Rig::of(endpoint.unwrap());
    source.store(7);
    let endpoint = source.endpoint.clone();
    let halted = Running::new(source.devices()).halt().unwrap();
    let mut pages = Vec::new();
    endpoint.mark_mapped(&halted, &mut |_, page| pages.push(page));
    assert!(pages.contains(&5), "{pages:?}");
}

#[test]
fn a_state_of_other_devices_is_refused_and_nothing_changed() {
    let source = Rig::new("a");
    let marked = Running::new(source.devices())
        .halt()
        .unwrap()
        .mark(&mut |_, _| {})
        .unwrap();
    let mut state = marked.save(&Vec::new()).unwrap();
    let mut other = Rig::new("b");
    let failed = Halted::waiting(other.devices())
        .unwrap()
        .load(state.clone())
        .unwrap_err();
    assert!(
        matches!(failed.error, EndpointError::Devices { .. }),
        "{}",
        failed.error
    );

    state[0].name = "b".into();
    state[0].model.as_mut().unwrap().version = 9;
    let failed = failed.back_to.load(state).unwrap_err();
    assert!(
        failed.error.to_string().contains("version 9"),
        "{}",
        failed.error
    );
    other.store(3);
    assert_eq!(other.memory(), 0, "still waiting");
}

#[test]
fn a_function_level_reset_takes_bus_mastering_and_the_model_back() {
    let mut rig = Rig::new("a");
    rig.frontend.region_write(CONFIG, 0x68, &[0, 0x80]).unwrap();
    assert_eq!(rig.endpoint.inspect()["resets"], 1);
    assert!(!rig.endpoint.is_bus_master());
    rig.store(7);
    assert_eq!(rig.memory(), 0);
}

#[test]
fn the_model_is_told_after_writes_that_they_are_all() {
    let mut rig = Rig::new("a");
    let settled = |rig: &Rig| rig.endpoint.inspect()["settled"].clone();
    rig.frontend.settle();
    rig.frontend.region_read(0, 0, &mut [0; 4]).unwrap();
    rig.frontend.settle();
    assert_eq!(settled(&rig), 0, "nothing was written");
    for _ in 0..3 {
        rig.frontend.region_write(0, 0, &[0; 4]).unwrap();
    }
    rig.frontend.settle();
    rig.frontend.settle();
    assert_eq!(settled(&rig), 1);
}

#[test]
fn mapping_errors_are_told_as_the_specification_has_them() {
    let mut rig = Rig::new("a");
    let map = DmaMap {
        iova: PAGE,
        size: PAGE,
        offset: 0,
        readable: true,
        writable: true,
    };
    assert_eq!(rig.frontend.dma_map(map, None), Err(Errno::EXIST));
    let odd = DmaMap {
        iova: 1 << 32,
        size: 5,
        ..map
    };
    assert_eq!(rig.frontend.dma_map(odd, None), Err(Errno::INVAL));
    let range = DmaUnmap::Range {
        iova: PAGE,
        size: PAGE,
    };
    assert_eq!(rig.frontend.dma_unmap(range), Err(Errno::NOENT));
    rig.frontend.disconnected();
    rig.store(7);
    assert_eq!(rig.memory(), 0, "the client's memory is let go of");
}

#[test]
fn what_the_vmm_did_not_get_for_want_of_room_is_told() {
    let rig = Rig::new("a");
    let mut frontend = rig.endpoint.frontend();
    frontend.refused(Errno::INVAL);
    assert_eq!(rig.endpoint.lack(), None, "the VMM's own mistake");
    frontend.refused(Errno::MFILE);
    let lack = rig.endpoint.lack().unwrap();
    assert!(lack.contains("could not do what QEMU asked for"), "{lack}");
}
