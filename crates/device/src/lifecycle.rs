//! The order of migration, as types: *halt, then mark, then hand over*.
//!
//! ```text
//!            halt                mark               hand_over
//!  Running ─────────► Halted ─────────► Marked ─────────────► HandedOver
//!     ▲                  │                  │
//!     └──────resume──────┴──────resume──────┘        Arrived ──run──► Running
//! ```
//!
//! Each step consumes the one before it, so a step that is skipped or taken early does not compile
//! (`tests/order` shows it). Whatever goes wrong on the way leaves the caller with a value from
//! which the devices can run again, at the source.
//!
//! The state of the devices can be read only from [`Marked`]: what arrives on the other host was
//! taken after the last byte of DMA was both written and marked.

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

    /// The other host has the state and may run.
    pub fn hand_over(self) -> HandedOver<D> {
        HandedOver(self.0)
    }

    /// Gives up: the devices run again where they are.
    pub fn resume(mut self) -> Running<D> {
        self.0.unhalt();
        Running(self.0)
    }
}

impl<D: Migratable> HandedOver<D> {
    /// The operator, or the protocol, is certain that the other host does not run: the devices
    /// run again here.
    pub fn take_back(mut self) -> Running<D> {
        self.0.unhalt();
        Running(self.0)
    }
}

impl<D: Migratable> Arrived<D> {
    /// The VM runs here: the devices do too.
    pub fn run(mut self) -> Running<D> {
        self.0.unhalt();
        self.0.restart();
        Running(self.0)
    }

    /// Waits for another state: this arrival came to nothing.
    pub fn discard(self) -> Halted<D> {
        Halted(self.0)
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

    fn restart(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

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
            sink.mark_words(0, &[1]);
            self.call("mark")
        }
        fn save(&self, (): &()) -> Result<u32, &'static str> {
            Ok(7)
        }
        fn load(&mut self, _: u32) -> Result<(), &'static str> {
            self.call("load")
        }
        fn restart(&mut self) {
            self.calls.push("restart");
        }
    }

    #[test]
    fn source_and_destination_pass_through_every_step() {
        let mut pages = Vec::new();
        let halted = Running::new(Recorder::default()).halt().unwrap();
        let marked = halted.mark(&mut |page| pages.push(page)).unwrap();
        let state = marked.save(&()).unwrap();
        assert_eq!(marked.hand_over().0.calls, ["halt", "mark"]);
        assert_eq!(pages, [0]);

        let arrived = Halted::waiting(Recorder::default())
            .unwrap()
            .load(state)
            .unwrap();
        assert_eq!(arrived.run().0.calls, ["halt", "load", "unhalt", "restart"]);
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
            .mark(&mut |_| {})
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
