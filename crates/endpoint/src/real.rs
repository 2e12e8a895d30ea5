//! What an endpoint tells a model that stands for a real device.
//!
//! Where a software model is kept from DMA by the gate, the real function is by its own bus mastering,
//! which therefore follows the gate: on while the guest has it on and nobody has halted it. Some have
//! means of their own besides, to be halted and to log what they write.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use device::{
    BusMaster, DirtySink, GuestPageSink, Hardware, LogSource, MapError, MapRequest, Model, Run,
};
use rustix::io::Errno;
use vfio_user::{IrqChange, IrqEvent, IrqSet, MapArea, RegionMapping};

use crate::Endpoint;

impl Endpoint {
    /// Whether the model's state can be saved at all.
    pub fn has_state(&self) -> bool {
        self.lock_model().has_state()
    }

    /// Whether what the guest is connected with by it can be reached from here.
    pub fn has_link(&self) -> bool {
        self.lock_model().has_link()
    }

    /// Who logs what a real device writes; `None` if nobody does, or its model does by itself.
    pub fn log_source(&self) -> Option<LogSource> {
        self.with_hardware(|hardware| hardware.log_source())?
    }

    /// What a real device writes is logged from here on, if that is anybody's to do. Before the first page
    /// is copied.
    ///
    /// # Errors
    /// When it is not: then it [keeps no log](Endpoint::keeps_log), until the log is closed.
    pub fn open_log(&self) -> io::Result<()> {
        if !self.0.keeps_log {
            return Ok(());
        }
        let opened = self.with_hardware(|hardware| hardware.open_log());
        let opened = opened.unwrap_or(Ok(()));
        self.0.lost_log.store(opened.is_err(), Ordering::Release);
        opened
    }

    /// What a real device writes need not be logged any more.
    pub fn close_log(&self) {
        self.with_hardware(|hardware| hardware.close_log());
        self.0.lost_log.store(false, Ordering::Release);
    }

    /// Adds what was logged of a real device to what is marked.
    pub(crate) fn read_log(&self, sink: &mut dyn DirtySink) -> io::Result<()> {
        let mut pages = OnBus {
            bus: &self.0.bus,
            sink,
        };
        let read = self.with_hardware(|hardware| hardware.read_log(&mut pages));
        let read = read.unwrap_or(Ok(()));
        if read.is_err() {
            self.0.lost_log.store(true, Ordering::Release);
        }
        read
    }

    /// A step of a halt by a real device's own means.
    pub(crate) fn run_hardware(&self, run: Run) -> io::Result<()> {
        let ran = self.with_hardware(|hardware| hardware.run(run));
        ran.unwrap_or(Ok(()))
    }

    /// Runs `f` on the real device, if it is one.
    pub(crate) fn with_hardware<R>(&self, f: impl FnOnce(&mut dyn Hardware) -> R) -> Option<R> {
        if !self.0.is_real {
            return None;
        }
        self.lock_model().hardware().map(f)
    }

    /// The real function's bus mastering is made what the gate says.
    pub(crate) fn follow_gate(&self) -> io::Result<()> {
        self.follow(self.lock_model().as_mut())
    }

    /// The same, for who has the model's lock: whoever comes last finds the gate as it stays.
    pub(crate) fn follow(&self, model: &mut dyn Model) -> io::Result<()> {
        let open = self.0.bus.begin().is_some();
        model
            .hardware()
            .map_or(Ok(()), |hardware| hardware.set_bus_master(open))
    }

    pub(crate) fn map_hardware(
        &self,
        request: MapRequest,
        file: Option<OwnedFd>,
    ) -> Result<(), MapError> {
        self.with_hardware(|hardware| hardware.map(request, file))
            .unwrap_or(Ok(()))
    }

    /// What a VMM may map of BAR `index`.
    pub(crate) fn mapping(&self, index: u32) -> Option<RegionMapping> {
        let bar = u8::try_from(index).ok()?;
        let mappable = self.with_hardware(|hardware| hardware.mappable(bar))??;
        let area = |(offset, size)| MapArea { offset, size };
        Some(RegionMapping {
            fd: mappable.file,
            offset: mappable.offset,
            areas: mappable.areas.into_iter().map(area).collect(),
        })
    }
}

/// Where pages go that hardware knows by their addresses on its bus.
struct OnBus<'a> {
    bus: &'a BusMaster,
    sink: &'a mut dyn DirtySink,
}

impl GuestPageSink for OnBus<'_> {
    fn mark_words(&mut self, first_page: u64, words: &[u64]) {
        self.bus.mark_at(first_page, words, self.sink);
    }
}

/// What happens to MSI-X vectors of a real function.
pub(crate) fn set_irqs(hardware: &mut dyn Hardware, set: IrqSet<'_>) -> Result<(), Errno> {
    let IrqSet {
        start,
        count,
        change,
        ..
    } = set;
    let done = match change {
        IrqChange::DisableAll => hardware.disconnect(),
        IrqChange::Connect {
            event: IrqEvent::Trigger,
            eventfds,
        } => hardware.connect(start, eventfds.into_iter().map(Some).collect()),
        IrqChange::Disconnect {
            event: IrqEvent::Trigger,
        } => hardware.connect(start, (0..count).map(|_| None).collect()),
        IrqChange::Do {
            event: IrqEvent::Trigger,
            only,
        } => {
            let wanted = |position: &usize| {
                only.is_none_or(|only| only.get(*position).is_some_and(|&byte| byte != 0))
            };
            let vectors = (start..start.saturating_add(count)).enumerate();
            let mut vectors = vectors.filter(|(position, _)| wanted(position));
            vectors.try_for_each(|(_, vector)| hardware.raise(vector))
        }
        // The VMM masks MSI-X vectors by itself.
        _ => return Err(Errno::NOTSUP),
    };
    done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
