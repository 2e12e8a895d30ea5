//! The function's interrupts, which go from the kernel to the VMM without us.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::kernel::Handle;
use crate::vfio;

/// The interrupts of one kind, and whom they signal.
pub(crate) struct Vectors {
    index: u32,
    eventfds: Vec<Option<OwnedFd>>,
    /// How many the kernel has set up; it does so once for all, from the first on.
    enabled: usize,
}

impl Vectors {
    pub(crate) fn new(index: u32, count: u16) -> Self {
        Self {
            index,
            eventfds: (0..count).map(|_| None).collect(),
            enabled: 0,
        }
    }

    /// Vectors that the kernel has set up change one by one, and the others go on; for more, all are
    /// set up anew. None that signals somebody is needed: a function may want to see the capability
    /// switched on.
    pub(crate) fn put(
        &mut self,
        first: u32,
        eventfds: Vec<Option<OwnedFd>>,
        device: &Handle,
    ) -> Result<(), Errno> {
        let start = first;
        let first = usize::try_from(first).map_err(|_| Errno::INVAL)?;
        let end = first.checked_add(eventfds.len()).ok_or(Errno::INVAL)?;
        let slots = self.eventfds.get_mut(first..end).ok_or(Errno::INVAL)?;
        for (slot, eventfd) in slots.iter_mut().zip(eventfds) {
            *slot = eventfd;
        }
        if end <= self.enabled {
            return vfio::connect(device, self.index, start, &self.eventfds[first..end]);
        }
        if self.enabled > 0 {
            self.enabled = 0;
            vfio::disable(device, self.index)?;
        }
        vfio::connect(device, self.index, 0, &self.eventfds[..end])?;
        self.enabled = end;
        Ok(())
    }

    pub(crate) fn clear(&mut self, device: &Handle) -> Result<(), Errno> {
        self.eventfds.fill_with(|| None);
        if std::mem::take(&mut self.enabled) > 0 {
            vfio::disable(device, self.index)?;
        }
        Ok(())
    }

    pub(crate) fn raise(&self, vector: u32, device: &Handle) -> Result<(), Errno> {
        vfio::trigger(device, self.index, vector)
    }

    /// All that signal somebody.
    pub(crate) fn raise_all(&self, device: &Handle) -> Result<(), Errno> {
        let enabled = (0..).zip(&self.eventfds).take(self.enabled);
        let mut armed = enabled.filter(|(_, eventfd)| eventfd.is_some());
        armed.try_for_each(|(vector, _)| self.raise(vector, device))
    }
}
