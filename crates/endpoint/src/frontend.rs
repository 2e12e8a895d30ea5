//! What a vfio-user connection asks of an endpoint.

use std::os::fd::OwnedFd;

use device::{MapError, MapRequest, Reset};
use keeper::Message;
use rustix::io::Errno;
use vfio_user::{
    Backend, Client, DeviceInfo, DmaMap, DmaUnmap, Done, IrqChange, IrqEvent, IrqInfo, IrqSet,
    Region,
};

use crate::{Endpoint, presence, real};

/// `VFIO_PCI_CONFIG_REGION_INDEX` (linux/vfio.h).
const CONFIG_REGION: u32 = 7;
/// `VFIO_PCI_MSIX_IRQ_INDEX`.
const MSIX_INDEX: u32 = 2;

/// The endpoint, on the thread of its connection.
#[derive(Debug)]
pub struct Frontend(Endpoint, Since);

/// What was done since the model was last told that this was [all](device::Model::after_writes).
#[derive(Debug, Default, PartialEq, Eq)]
enum Since {
    #[default]
    Nothing,
    Writes,
}

impl Frontend {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self(endpoint, Since::default())
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.0.note_change();
        let change = self.0.lock_config().write(offset, data);
        if change.function_reset {
            self.0.reset(Reset::Function);
        } else if let Some(on) = change.bus_master {
            self.0.0.bus.set_enabled(on);
            if let Err(error) = self.0.follow_gate() {
                tracing::error!(device = self.0.name(), %error, "bus mastering not switched");
            }
            // What was left undone for want of bus mastering may go on now.
            self.0.0.kick.kick();
        }
    }
}

impl Backend for Frontend {
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::default()
    }

    fn region_info(&self, index: u32) -> Option<Region> {
        if index == CONFIG_REGION {
            return Some(Region::trapped(pci::registers::CONFIG_SIZE as u64));
        }
        let bars = self.0.lock_config().bars().to_vec();
        let bar = bars.iter().find(|bar| u32::from(bar.index) == index)?;
        Some(Region {
            mapping: self.0.mapping(index),
            ..Region::trapped(bar.size)
        })
    }

    fn irq_info(&self, index: u32) -> IrqInfo {
        if index == MSIX_INDEX {
            IrqInfo::msix(self.0.0.vectors.count())
        } else {
            IrqInfo::default()
        }
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let absent = self.0.0.presence.is_absent();
        if region == CONFIG_REGION {
            self.0.lock_config().read(offset, data);
            if absent {
                presence::hide(offset, data);
            }
        } else if absent {
            data.fill(0xff);
        } else {
            let bar = u8::try_from(region).map_err(|_| Errno::INVAL)?;
            self.0
                .with_model(|model, access| model.read(bar, offset, data, access));
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if self.0.0.presence.is_absent() {
            return Ok(());
        }
        if region == CONFIG_REGION {
            self.write_config(offset, data);
        } else {
            let bar = u8::try_from(region).map_err(|_| Errno::INVAL)?;
            self.0
                .with_model(|model, access| model.write(bar, offset, data, access));
            self.1 = Since::Writes;
        }
        Ok(())
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.1) == Since::Writes {
            self.0
                .with_model(|model, access| model.after_writes(access));
        }
    }

    fn dma_map(&mut self, map: DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let DmaMap {
            iova,
            size,
            offset,
            readable: _,
            writable,
        } = map;
        let request = MapRequest {
            iova,
            size,
            offset,
            writable,
        };
        let refused = |error: MapError| {
            tracing::warn!(device = self.0.name(), %error, "guest memory not mapped");
            match error {
                MapError::Overlap(_) => Errno::EXIST,
                MapError::System(_) => Errno::NOMEM,
                _ => Errno::INVAL,
            }
        };
        let bus = &self.0.0.bus;
        let is_needed = self.0.0.is_real || self.0.0.kept.get().is_some();
        let same = fd.as_ref().filter(|_| is_needed);
        let same = same.map(OwnedFd::try_clone).transpose();
        let same = same.map_err(|_| Errno::MFILE)?;
        bus.map(request, fd).map_err(refused)?;
        if let Some(kept) = self.0.0.kept.get()
            && let Err(error) = kept.map(request, same.as_ref())
        {
            tracing::error!(device = self.0.name(), %error, "guest memory is not kept");
            // It was mapped just now.
            let _ = bus.unmap(iova, size);
            return Err(Errno::NOMEM);
        }
        self.0.map_hardware(request, same).map_err(|error| {
            if let Err(error) = bus.unmap(iova, size) {
                tracing::warn!(device = self.0.name(), %error, "guest memory stays mapped");
            }
            refused(error)
        })
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno> {
        if let Some(kept) = self.0.0.kept.get() {
            kept.unmap(|at, len| match unmap {
                DmaUnmap::All => true,
                DmaUnmap::Range { iova, size } => (at, len) == (iova, size),
            });
        }
        // Where a real device does not let go, nobody else does.
        match unmap {
            DmaUnmap::All => {
                self.0.with_hardware(|hardware| hardware.unmap_all());
                self.0.0.bus.unmap_all();
            }
            DmaUnmap::Range { iova, size } => {
                let unmapped = self.0.with_hardware(|hardware| hardware.unmap(iova, size));
                unmapped.unwrap_or(Ok(())).map_err(|error| match error {
                    MapError::NotMapped { .. } => Errno::NOENT,
                    _ => Errno::IO,
                })?;
                self.0.0.bus.unmap(iova, size).map_err(|_| Errno::NOENT)?;
            }
        }
        Ok(())
    }

    fn set_irqs(&mut self, set: IrqSet<'_>) -> Result<(), Errno> {
        // QEMU connects the error and request interrupts where a device has them; this has none.
        if set.index != MSIX_INDEX {
            return Err(Errno::INVAL);
        }
        if let Some(hardware) = self.0.lock_model().hardware() {
            return real::set_irqs(hardware, set);
        }
        let IrqSet {
            start,
            count,
            change,
            ..
        } = set;
        let vectors = &self.0.0.vectors;
        let all = start..start.saturating_add(count).min(vectors.count());
        let keep = |vector, eventfd: Option<&OwnedFd>| {
            let kept = self.0.0.kept.get();
            let told = kept.map(|kept| kept.vector(vector, eventfd));
            told.unwrap_or(Ok(())).map_err(|_| Errno::NOMEM)
        };
        match change {
            IrqChange::DisableAll => {
                vectors.clear();
                (0..vectors.count()).try_for_each(|vector| keep(vector, None))?;
            }
            IrqChange::Connect {
                event: IrqEvent::Trigger,
                eventfds,
            } => {
                for (vector, eventfd) in all.zip(eventfds) {
                    keep(vector, Some(&eventfd))?;
                    vectors.set(vector, Some(eventfd));
                }
            }
            IrqChange::Disconnect {
                event: IrqEvent::Trigger,
            } => {
                for vector in all {
                    keep(vector, None)?;
                    vectors.set(vector, None);
                }
            }
            IrqChange::Do {
                event: IrqEvent::Trigger,
                only,
            } => {
                for (position, vector) in all.enumerate() {
                    let wanted =
                        only.is_none_or(|only| only.get(position).is_some_and(|&b| b != 0));
                    if wanted && let Ok(vector) = u16::try_from(vector) {
                        device::Interrupts::signal(vectors, vector);
                    }
                }
            }
            // The VMM masks MSI-X vectors by itself.
            _ => return Err(Errno::NOTSUP),
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.0.reset(Reset::Bus);
        self.0.0.presence.reset();
        Ok(())
    }

    fn begin(&mut self) {
        if let Some(kept) = self.0.0.kept.get() {
            kept.turn().begin();
        }
    }

    fn commit(&mut self, done: Done<'_>) -> Result<(), Errno> {
        let Some(kept) = self.0.0.kept.get() else {
            return Ok(());
        };
        if let Some(negotiated) = done.agreed {
            kept.agree(negotiated);
        }
        let message = Message {
            len: done.len,
            reply: done.reply,
        };
        let committed = kept.commit(&self.0, Some(message));
        kept.turn().end();
        committed.map_err(|error| {
            tracing::error!(device = self.0.name(), %error, "no other process can go on from here");
            Errno::NOSPC
        })
    }

    fn connected(&mut self, client: Client) {
        tracing::info!(device = self.0.name(), "VMM connected");
        self.0.set_client(Some(client));
    }

    fn refused(&mut self, errno: Errno) {
        if matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM) {
            self.0.set_lack(Some(errno));
        }
    }

    fn disconnected(&mut self) {
        tracing::info!(device = self.0.name(), "VMM gone");
        self.0.set_client(None);
        self.0.set_lack(None);
        self.0.with_hardware(|hardware| hardware.abandon());
        self.0.0.bus.unmap_all();
        self.0.0.vectors.clear();
    }
}
