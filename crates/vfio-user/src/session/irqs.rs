//! `VFIO_USER_DEVICE_SET_IRQS`.

use rustix::io::Errno;

use super::{all_fds, room};
use crate::backend::{Backend, IrqChange, IrqEvent, IrqSet};
use crate::frame::Frame;
use crate::wire::{self, device};

const DATA: u32 = device::SET_DATA_NONE | device::SET_DATA_BOOL | device::SET_DATA_EVENTFD;

/// `VFIO_PCI_ERR_IRQ_INDEX` and `VFIO_PCI_REQ_IRQ_INDEX`, which can only be triggered.
const UNMASKABLE: [u32; 2] = [3, 4];

pub(super) fn set(frame: Frame<'_>, backend: &mut dyn Backend) -> Result<(), Errno> {
    let (asked, data) = wire::take::<device::IrqSet>(frame.body)?;
    room(asked.argsz, frame.body.len())?;
    let event = event(asked.flags)?;
    if asked.index >= backend.device_info().irqs {
        return Err(Errno::INVAL);
    }
    if UNMASKABLE.contains(&asked.index) && event != IrqEvent::Trigger {
        return Err(Errno::INVAL);
    }
    let end = asked.start.checked_add(asked.count).ok_or(Errno::INVAL)?;
    if end > backend.irq_info(asked.index).count {
        return Err(Errno::INVAL);
    }
    let fds = all_fds(frame)?;
    let count = asked.count as usize;
    let change = match asked.flags & DATA {
        device::SET_DATA_NONE if count == 0 => match (asked.start, event) {
            (0, IrqEvent::Trigger) => IrqChange::DisableAll,
            _ => return Err(Errno::INVAL),
        },
        _ if count == 0 => return Err(Errno::INVAL),
        device::SET_DATA_EVENTFD if fds.is_empty() => IrqChange::Disconnect { event },
        device::SET_DATA_EVENTFD if fds.len() == count => {
            let eventfds = fds;
            IrqChange::Connect { event, eventfds }
        }
        device::SET_DATA_NONE if fds.is_empty() => IrqChange::Do { event, only: None },
        device::SET_DATA_BOOL if fds.is_empty() && data.len() == count => {
            let only = Some(data);
            IrqChange::Do { event, only }
        }
        // More or fewer descriptors or booleans than interrupts, or several kinds of data.
        _ => return Err(Errno::INVAL),
    };
    backend.set_irqs(IrqSet {
        index: asked.index,
        start: asked.start,
        count: asked.count,
        change,
    })
}

fn event(flags: u32) -> Result<IrqEvent, Errno> {
    match flags & !DATA {
        device::SET_ACTION_MASK => Ok(IrqEvent::Mask),
        device::SET_ACTION_UNMASK => Ok(IrqEvent::Unmask),
        device::SET_ACTION_TRIGGER => Ok(IrqEvent::Trigger),
        _ => Err(Errno::INVAL),
    }
}
