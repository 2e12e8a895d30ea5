//! What a guest does with the control device while the host speaks with it.

use std::collections::BTreeSet;
use std::time::Duration;

use control_device::spec::pci::REGISTER_BAR;
use control_device::spec::registers::{ACK, DEVICE_BASE, DEVICE_STRIDE, REQUEST};
use control_device::{Asked, Control, ControlDevice, End, Quiesce, Quiesced, Stopped};
use control_device::{Track, Tracked};
use device::lifecycle::Running;
use device::{Access, FlatMemory, GuestMemory, Interrupts, ManualClock, Model, Reset};

/// Bytes of guest memory.
const MEMORY: u64 = 64 << 10;
const DEVICES: [(u16, u16); 2] = [(0x8086, 0x10ed), (0x1b36, 0x0010)];

/// Steps of guest and host, one after the other; the first byte of each says which:
///
/// | byte | step | what follows |
/// |---|---|---|
/// | `w` | register write | offset, 2 bytes; value, 4 bytes |
/// | `a` | an answer to the current request | device; result |
/// | `m` | memory is written | offset, 2 bytes; value, 8 bytes |
/// | `r` | function-level reset | |
/// | `h` | the host goes a step further in a migration | |
/// | `e` | the host gives up | |
/// | `s` | the device is saved, and loaded as its own successor | |
///
/// Anything else rings.
///
/// # Panics
/// When a device counts as stopped that was not answered for, when a page outside of memory is
/// marked, when a saved state does not load, or when more than the one vector is signalled.
pub fn control_device(data: &[u8]) {
    let (device, control) = control_device::new(&DEVICES).expect("a descriptor is left");
    let mut vm = Vm {
        device,
        memory: FlatMemory::new(0, usize::try_from(MEMORY).expect("it is small")),
        clock: ManualClock::default(),
        written: BTreeSet::new(),
    };
    let mut host = Host::Idle;
    let mut steps = Steps(data);
    while let Some(step) = steps.number(1) {
        match u8::try_from(step).unwrap_or(0) {
            b'w' => vm.write(steps.next(2), steps.next(4)),
            b'a' => {
                let at = DEVICE_BASE + DEVICE_STRIDE * steps.next(1) + ACK;
                let request = u64::from(vm.request());
                vm.write(at, request | steps.next(1));
            }
            b'm' => {
                let (at, value) = (steps.next(2), steps.next(8));
                // What lies outside is not there.
                let _ = vm.memory.write(at, &value.to_le_bytes());
            }
            b'r' => vm.device.reset(Reset::Function),
            b'h' => host = host.step(&vm, &control),
            b'e' => host = Host::Idle,
            b's' => {
                let saved = vm.device.save().expect("every state can be saved");
                vm.device.load(&saved).expect("what was saved loads");
                assert_eq!(vm.device.save().expect("still"), saved);
            }
            _ => drop(vm.call(Model::poll)),
        }
    }
}

struct Vm {
    device: ControlDevice,
    memory: FlatMemory,
    clock: ManualClock,
    /// Every word that was written as an answer: place and value.
    written: BTreeSet<(u64, u32)>,
}

impl Vm {
    fn write(&mut self, at: u64, value: u64) {
        let value = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        self.written.insert((at, value));
        self.call(|device, access| {
            device.write(REGISTER_BAR, at, &value.to_le_bytes(), access);
        });
    }

    fn request(&mut self) -> u32 {
        let mut word = [0; 4];
        self.call(|device, access| device.read(REGISTER_BAR, REQUEST, &mut word, access));
        u32::from_le_bytes(word)
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut ControlDevice, &Access<'_>) -> R) -> R {
        let access = Access {
            memory: Some(&self.memory),
            interrupts: &Doorbell,
            clock: &self.clock,
            ledger: None,
        };
        f(&mut self.device, &access)
    }
}

struct Doorbell;

impl Interrupts for Doorbell {
    fn signal(&self, vector: u16) {
        assert_eq!(vector, 0, "there is one vector");
    }
}

/// Where the host is in a migration. It never waits.
enum Host {
    Idle,
    Tracking(Asked<Track>),
    Tracked(Tracked),
    /// With the word that says that a device is stopped.
    Quiescing(Asked<Quiesce>, u32),
    Quiesced(Quiesced),
    Ending(Asked<End>),
}

impl Host {
    fn step(self, vm: &Vm, control: &Control) -> Self {
        const NOW: Duration = Duration::ZERO;
        match self {
            Self::Idle => match control.track(NOW) {
                Ok(asked) => Self::Tracking(asked),
                Err(_) => control.quiesce(NOW).map_or(Self::Idle, |asked| {
                    Self::Quiescing(asked, vm.device.state().request.word() | 1)
                }),
            },
            Self::Tracking(asked) => Self::Tracked(asked.wait(MEMORY, || Some(copy(&vm.memory)))),
            Self::Tracked(tracked) => tracked.quiesce(NOW).map_or(Self::Idle, |asked| {
                Self::Quiescing(asked, vm.device.state().request.word() | 1)
            }),
            Self::Quiescing(asked, done) => {
                let quiesced = asked.wait(|_| Stopped::Verified);
                for (index, at) in (DEVICE_BASE + ACK..).step_by(0x20).take(2).enumerate() {
                    let said = vm.written.contains(&(at, done));
                    assert!(said || !quiesced.is_stopped(index), "device {index}");
                }
                Self::Quiesced(quiesced)
            }
            Self::Quiesced(quiesced) => {
                // A refused table is what most inputs have.
                let Ok(halted) = Running::new(()).halt();
                let _ = quiesced.mark(&halted, &vm.memory, &mut |page| {
                    assert!(page < MEMORY / device::PAGE_SIZE, "page {page}");
                });
                Self::Ending(quiesced.end(NOW))
            }
            Self::Ending(asked) => {
                asked.wait();
                Self::Idle
            }
        }
    }
}

fn copy(memory: &FlatMemory) -> FlatMemory {
    let mut bytes = vec![0; usize::try_from(MEMORY).expect("it is small")];
    let copy = FlatMemory::new(0, bytes.len());
    memory.read(0, &mut bytes).expect("it is all there");
    copy.write(0, &bytes).expect("it has the same length");
    copy
}

/// Bytes that have not been used yet.
struct Steps<'a>(&'a [u8]);

impl Steps<'_> {
    /// A little-endian number, if a byte of it is left.
    fn number(&mut self, len: usize) -> Option<u64> {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        let mut bytes = [0; 8];
        bytes[..now.len()].copy_from_slice(now);
        (!now.is_empty()).then(|| u64::from_le_bytes(bytes))
    }

    fn next(&mut self, len: usize) -> u64 {
        self.number(len).unwrap_or(0)
    }
}
