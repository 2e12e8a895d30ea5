//! What an endpoint tells a model that stands for a real device.
//!
//! Where a software model is kept from DMA by the gate, the real function is by its own bus mastering,
//! which therefore follows the gate: on while the guest has it on and nobody has halted it.

use std::io;
use std::os::fd::OwnedFd;

use device::{Hardware, MapError, MapRequest, Model};
use rustix::io::Errno;
use vfio_user::{IrqChange, IrqEvent, IrqSet, MapArea, RegionMapping};

use crate::Endpoint;

impl Endpoint {
    /// Whether the model's state can be saved at all.
    pub fn has_state(&self) -> bool {
        self.lock_model().has_state()
    }

    /// Runs `f` on the real device, if it is one.
    pub(crate) fn with_hardware<R>(&self, f: impl FnOnce(&mut dyn Hardware) -> R) -> Option<R> {
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
