//! The order of migration, as types: *halt, then mark, then hand over*.
//!
//! ```text
//!            halt                mark               hand_over
//!  Running ─────────► Halted ─────────► Marked ◄────────────► HandedOver
//!     ▲                  │                  │       take_back
//!     └──────resume──────┴──────resume──────┘
//!
//!                 load              claim              run
//!  Halted ──────────────► Arrived ◄────────► Ready ─────────► Running
//!                                  give_back
//! ```
//!
//! Each step consumes the one before it, so a step that is skipped or taken early does not compile
//! (`tests/order` shows it). Whatever goes wrong on the way leaves the caller with a value from
//! which the devices can run again, at the source.
//!
//! The state of the devices can be read only from [`Marked`]: what arrives on the other host was
//! taken after the last byte of DMA was both written and marked.
//!
//! What only one host may have, such as a disk, changes hands with the last step: [`HandedOver`]
//! devices have let go of it, and only devices that have got it are [`Ready`] to run.

use crate::Claim;
use crate::memory::DirtySink;

/// What the life cycle acts on: one device, or all devices of a VM.
pub trait Migratable {
    /// What is saved and loaded.
    type State;
    /// What of it is saved: a device may be left to its driver, which starts it anew.
    type Carry;
    /// Why an action failed.
    type Error;

    /// Stops DMA. When this returns `Ok`, no write is in flight and none will start; register
    /// accesses are still answered.
    ///
    /// # Errors
    /// When the devices cannot be proved to be still; they run on then.
    fn halt(&mut self) -> Result<(), Self::Error>;

    /// Undoes `halt`.
    fn unhalt(&mut self);

    /// Reports every page that was written and not yet reported.
    ///
    /// # Errors
    /// When a page could not be reported: it would arrive stale.
    fn mark(&mut self, sink: &mut dyn DirtySink) -> Result<(), Self::Error>;

    /// The state to go on from elsewhere, as far as `carry` says.
    ///
    /// # Errors
    /// When a device is in a state that cannot be carried.
    fn save(&self, carry: &Self::Carry) -> Result<Self::State, Self::Error>;

    /// Takes over a state, while halted.
    ///
    /// # Errors
    /// When the state does not fit these devices. What was loaded of it is of no use then: they
    /// must load another before they run.
    fn load(&mut self, state: Self::State) -> Result<(), Self::Error>;

    /// Lets go of what only one host may have, for the other side of this migration. All or nothing.
    ///
    /// # Errors
    /// When a device cannot; all have it still.
    fn release(&mut self, migration: &str) -> Result<(), Self::Error>;

    /// Takes that. All or nothing.
    ///
    /// # Errors
    /// When somebody else has it: these devices must not run.
    fn acquire(&mut self, claim: Claim<'_>) -> Result<(), Self::Error>;

    /// Starts work again after `load`: raises what interrupts may have been lost, announces
    /// addresses.
    fn restart(&mut self);
}

/// Devices that run: they do DMA as the guest has told them.
#[derive(Debug)]
pub struct Running<D>(D);

/// Devices whose DMA is off and drained.
#[derive(Debug)]
pub struct Halted<D>(D);

/// Halted devices, every page of whose writes has been marked.
#[derive(Debug)]
pub struct Marked<D>(D);

/// Devices whose state has left for another host. They do not run here again by themselves.
#[derive(Debug)]
pub struct HandedOver<D>(D);

/// Devices at the destination that have loaded their state and wait for the VM.
#[derive(Debug)]
pub struct Arrived<D>(D);

/// Devices at the destination that have all they need to run.
#[derive(Debug)]
pub struct Ready<D>(D);

/// A step that failed, with the devices as they were before it.
#[derive(Debug)]
pub struct Failed<T, E> {
    /// Where the devices are now.
    pub back_to: T,
    /// What went wrong.
    pub error: E,
}

impl<D: Migratable> Running<D> {
    /// Devices that are running already.
    pub fn new(devices: D) -> Self {
        Self(devices)
    }

    /// Stops all DMA.
    ///
    /// # Errors
    /// When a device cannot be proved still; all run on.
    pub fn halt(mut self) -> Result<Halted<D>, Failed<Self, D::Error>> {
        match self.0.halt() {
            Ok(()) => Ok(Halted(self.0)),
            Err(error) => {
                self.0.unhalt();
                Err(Failed {
                    back_to: self,
                    error,
                })
            }
        }
    }
}

impl<D: Migratable> Halted<D> {
    /// Devices that wait at a destination: halted until a state arrives.
    ///
    /// # Errors
    /// When a device cannot be proved still.
    pub fn waiting(mut devices: D) -> Result<Self, Failed<D, D::Error>> {
        match devices.halt() {
            Ok(()) => Ok(Self(devices)),
            Err(error) => Err(Failed {
                back_to: devices,
                error,
            }),
        }
    }

    /// Marks everything that was written and not yet carried.
    ///
    /// # Errors
    /// When a page could not be marked.
    pub fn mark(mut self, sink: &mut dyn DirtySink) -> Result<Marked<D>, Failed<Self, D::Error>> {
        match self.0.mark(sink) {
            Ok(()) => Ok(Marked(self.0)),
            Err(error) => Err(Failed {
                back_to: self,
                error,
            }),
        }
    }

    /// Takes over the state that arrived.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn load(mut self, state: D::State) -> Result<Arrived<D>, Failed<Self, D::Error>> {
        match self.0.load(state) {
            Ok(()) => Ok(Arrived(self.0)),
            Err(error) => Err(Failed {
                back_to: self,
                error,
            }),
        }
    }

    /// Gives up: the devices run again where they are.
    pub fn resume(mut self) -> Running<D> {
        self.0.unhalt();
        Running(self.0)
    }
}

impl<D: Migratable> Marked<D> {
    /// The devices' state, on which the other host goes on.
    ///
    /// # Errors
    /// When a device is in a state that cannot be carried.
    pub fn save(&self, carry: &D::Carry) -> Result<D::State, D::Error> {
        self.0.save(carry)
    }

    /// The other host has the state and may run: it may have whatever only one can have.
    ///
    /// # Errors
    /// When a device cannot let go of that.
    pub fn hand_over(mut self, migration: &str) -> Result<HandedOver<D>, Failed<Self, D::Error>> {
        match self.0.release(migration) {
            Ok(()) => Ok(HandedOver(self.0)),
            Err(error) => Err(Failed {
                back_to: self,
                error,
            }),
        }
    }

    /// Gives up: the devices run again where they are.
    pub fn resume(mut self) -> Running<D> {
        self.0.unhalt();
        Running(self.0)
    }
}

impl<D: Migratable> HandedOver<D> {
    /// The operator, or the protocol, is certain that the other host does not run: the devices
    /// stay here.
    ///
    /// # Errors
    /// When the other host has taken what these had let go of, so that the VM may run there.
    pub fn take_back(mut self, migration: &str) -> Result<Marked<D>, Failed<Self, D::Error>> {
        match self.0.acquire(Claim::TakeBack(migration)) {
            Ok(()) => Ok(Marked(self.0)),
            Err(error) => Err(Failed {
                back_to: self,
                error,
            }),
        }
    }
}

impl<D: Migratable> Arrived<D> {
    /// The source says that the VM may run here: takes what it has let go of.
    ///
    /// # Errors
    /// When it has not, or has taken it back: the VM must not run here.
    pub fn claim(mut self, migration: &str) -> Result<Ready<D>, Failed<Self, D::Error>> {
        match self.0.acquire(Claim::Arrive(migration)) {
            Ok(()) => Ok(Ready(self.0)),
            Err(error) => Err(Failed {
                back_to: self,
                error,
            }),
        }
    }

    /// Waits for another state: this arrival came to nothing.
    pub fn discard(self) -> Halted<D> {
        Halted(self.0)
    }
}

impl<D: Migratable> Ready<D> {
    /// The VM runs here: the devices do too.
    pub fn run(mut self) -> Running<D> {
        self.0.unhalt();
        self.0.restart();
        Running(self.0)
    }

    /// It is certain that the VM does not run here: the source may have it back.
    ///
    /// # Errors
    /// When a device cannot let go.
    pub fn give_back(mut self, migration: &str) -> Result<Arrived<D>, Failed<Self, D::Error>> {
        match self.0.release(migration) {
            Ok(()) => Ok(Arrived(self.0)),
            Err(error) => Err(Failed {
                back_to: self,
                error,
            }),
        }
    }
}

/// No devices at all: still, and nothing to mark.
impl Migratable for () {
    type State = ();
    type Carry = ();
    type Error = std::convert::Infallible;

    fn halt(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn unhalt(&mut self) {}

    fn mark(&mut self, _: &mut dyn DirtySink) -> Result<(), Self::Error> {
        Ok(())
    }

    fn save(&self, (): &()) -> Result<(), Self::Error> {
        Ok(())
    }

    fn load(&mut self, (): ()) -> Result<(), Self::Error> {
        Ok(())
    }

    fn release(&mut self, _: &str) -> Result<(), Self::Error> {
        Ok(())
    }

    fn acquire(&mut self, _: Claim<'_>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn restart(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryId;

    const FILE: MemoryId = MemoryId {
        device: 0,
        inode: 0,
    };

    #[derive(Debug, Default)]
    struct Recorder {
        calls: Vec<&'static str>,
        refuse: Option<&'static str>,
    }

    impl Recorder {
        fn call(&mut self, name: &'static str) -> Result<(), &'static str> {
            self.calls.push(name);
            if self.refuse == Some(name) {
                Err(name)
            } else {
                Ok(())
            }
        }
    }

    impl Migratable for Recorder {
        type State = u32;
        type Carry = ();
        type Error = &'static str;

        fn halt(&mut self) -> Result<(), &'static str> {
            self.call("halt")
        }
        fn unhalt(&mut self) {
            self.calls.push("unhalt");
        }
        fn mark(&mut self, sink: &mut dyn DirtySink) -> Result<(), &'static str> {
            sink.mark_words(FILE, 0, &[1]);
            self.call("mark")
        }
        fn save(&self, (): &()) -> Result<u32, &'static str> {
            Ok(7)
        }
        fn load(&mut self, _: u32) -> Result<(), &'static str> {
            self.call("load")
        }
        fn release(&mut self, migration: &str) -> Result<(), &'static str> {
            assert_eq!(migration, "m1");
            self.call("release")
        }
        fn acquire(&mut self, claim: Claim<'_>) -> Result<(), &'static str> {
            self.call(match claim {
                Claim::Start => "start",
                Claim::Arrive("m1") => "arrive",
                Claim::TakeBack("m1") => "take back",
                Claim::Arrive(_) | Claim::TakeBack(_) => panic!("{claim:?}"),
            })
        }
        fn restart(&mut self) {
            self.calls.push("restart");
        }
    }

    #[test]
    fn source_and_destination_pass_through_every_step() {
        let mut pages = Vec::new();
        let halted = Running::new(Recorder::default()).halt().unwrap();
        let marked = halted.mark(&mut |_, page| pages.push(page)).unwrap();
        let state = marked.save(&()).unwrap();
        let gone = marked.hand_over("m1").unwrap();
        assert_eq!(gone.0.calls, ["halt", "mark", "release"]);
        assert_eq!(pages, [0]);

        let arrived = Halted::waiting(Recorder::default())
            .unwrap()
            .load(state)
            .unwrap();
        assert_eq!(
            arrived.claim("m1").unwrap().run().0.calls,
            ["halt", "load", "arrive", "unhalt", "restart"]
        );
    }

    #[test]
    fn what_was_let_go_of_is_taken_back_before_devices_run_again() {
        let marked = Running::new(Recorder::default()).halt().unwrap();
        let marked = marked.mark(&mut |_, _| {}).unwrap();
        let back = marked.hand_over("m1").unwrap().take_back("m1").unwrap();
        assert_eq!(
            back.resume().0.calls,
            ["halt", "mark", "release", "take back", "unhalt"]
        );
    }

    #[test]
    fn devices_that_do_not_get_what_they_need_do_not_run() {
        let refusing = |refuse| Recorder {
            refuse: Some(refuse),
            ..Recorder::default()
        };
        let arrived = Halted::waiting(refusing("arrive"))
            .unwrap()
            .load(1)
            .unwrap();
        let failed = arrived.claim("m1").unwrap_err();
        assert_eq!(failed.back_to.0.calls, ["halt", "load", "arrive"]);

        let marked = Running::new(refusing("take back")).halt().unwrap();
        let gone = marked
            .mark(&mut |_, _| {})
            .unwrap()
            .hand_over("m1")
            .unwrap();
        let failed = gone.take_back("m1").unwrap_err();
        assert_eq!(
            failed.back_to.0.calls,
            ["halt", "mark", "release", "take back"]
        );
    }

    #[test]
    fn devices_that_cannot_let_go_stay() {
        let devices = Recorder {
            refuse: Some("release"),
            ..Recorder::default()
        };
        let marked = Running::new(devices).halt().unwrap();
        let failed = marked
            .mark(&mut |_, _| {})
            .unwrap()
            .hand_over("m1")
            .unwrap_err();
        let calls = failed.back_to.resume().0.calls;
        assert_eq!(calls, ["halt", "mark", "release", "unhalt"]);
    }

    #[test]
    fn a_halt_that_fails_leaves_the_devices_running() {
        let devices = Recorder {
            refuse: Some("halt"),
            ..Recorder::default()
        };
        let failed = Running::new(devices).halt().unwrap_err();
        assert_eq!(failed.error, "halt");
        assert_eq!(failed.back_to.0.calls, ["halt", "unhalt"]);
    }

    #[test]
    fn a_mark_that_fails_can_only_go_back_to_running() {
        let devices = Recorder {
            refuse: Some("mark"),
            ..Recorder::default()
        };
        let failed = Running::new(devices)
            .halt()
            .unwrap()
            .mark(&mut |_, _| {})
            .unwrap_err();
        assert_eq!(failed.back_to.resume().0.calls, ["halt", "mark", "unhalt"]);
    }

    #[test]
    fn a_state_that_does_not_fit_leaves_the_destination_waiting() {
        let devices = Recorder {
            refuse: Some("load"),
            ..Recorder::default()
        };
        let failed = Halted::waiting(devices).unwrap().load(1).unwrap_err();
        assert_eq!(failed.back_to.0.calls, ["halt", "load"]);
    }
}
