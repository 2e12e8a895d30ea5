//! A device that remembers what was asked of it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vfio_user::{
    Backend, Client, DmaMap, DmaUnmap, Errno, IrqChange, IrqEvent, IrqInfo, IrqSet, MapArea,
    Migration, Region, RegionMapping,
};

pub(crate) const BAR0: u32 = 0;
pub(crate) const BAR2_SPARSE: u32 = 2;
pub(crate) const BAR3_MAPPED: u32 = 3;
pub(crate) const ROM: u32 = 6;
pub(crate) const CONFIG: u32 = 7;
pub(crate) const REGIONS: u32 = 9;

pub(crate) const MSIX: u32 = 2;
pub(crate) const ERR: u32 = 3;
pub(crate) const REQ: u32 = 4;
pub(crate) const IRQS: u32 = 5;
pub(crate) const VECTORS: u32 = 2048;

/// Where BAR 2 is in its file.
pub(crate) const BAR2_OFFSET: u64 = 0x8000;

/// A write to this offset of BAR 0 fails with `EIO`, a read too.
pub(crate) const BROKEN: u64 = 0xff0;

pub(crate) type OnWrite = Box<dyn FnMut(&Client) + Send>;

#[derive(Default)]
pub(crate) struct Device {
    pub(crate) registers: HashMap<(u32, u64), Vec<u8>>,
    pub(crate) maps: BTreeMap<u64, (DmaMap, Option<OwnedFd>)>,
    pub(crate) vectors: BTreeMap<u32, OwnedFd>,
    /// What was mapped, and done to interrupts, in words.
    pub(crate) log: Vec<String>,
    pub(crate) resets: usize,
    pub(crate) settled: usize,
    pub(crate) client: Option<Client>,
    pub(crate) connects: usize,
    pub(crate) disconnects: usize,
    pub(crate) migration: Option<Box<dyn Migration + Send>>,
    /// Called with the client on every write to BAR 0.
    pub(crate) on_write: Option<OnWrite>,
    /// Called when the client is gone.
    pub(crate) on_disconnect: Option<Box<dyn FnOnce() + Send>>,
    /// What BARs 2 and 3 are mapped from.
    pub(crate) backing: Option<Arc<OwnedFd>>,
}

impl Device {
    pub(crate) fn memory(&mut self) -> Arc<OwnedFd> {
        let memory = self.backing.get_or_insert_with(|| {
            let fd = rustix::fs::memfd_create("bar", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&fd, 0x10000).unwrap();
            Arc::new(fd)
        });
        Arc::clone(memory)
    }
}

impl Backend for Device {
    fn region_info(&self, index: u32) -> Option<Region> {
        let mapping = |offset, areas: &[(u64, u64)]| {
            let fd = self.backing.clone()?;
            let areas = areas.iter();
            let areas = areas.map(|&(offset, size)| MapArea { offset, size });
            Some(RegionMapping {
                fd,
                offset,
                areas: areas.collect(),
            })
        };
        match index {
            BAR0 | 1 => Some(Region::trapped(4096)),
            BAR2_SPARSE => Some(Region {
                mapping: mapping(BAR2_OFFSET, &[(0x2000, 0x1000), (0x4000, 0x2000)]),
                ..Region::trapped(0x8000)
            }),
            BAR3_MAPPED => Some(Region {
                mapping: mapping(0, &[]),
                ..Region::trapped(0x1000)
            }),
            ROM => Some(Region {
                writable: false,
                ..Region::trapped(0x1000)
            }),
            CONFIG => Some(Region::trapped(256)),
            _ => None,
        }
    }

    fn irq_info(&self, index: u32) -> IrqInfo {
        match index {
            MSIX => IrqInfo::msix(VECTORS),
            ERR | REQ => IrqInfo {
                count: 1,
                ..IrqInfo::default()
            },
            _ => IrqInfo::default(),
        }
    }

    fn settle(&mut self) {
        self.settled += 1;
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        assert!(
            !data.is_empty(),
            "an empty access does not reach the device"
        );
        if (region, offset) == (BAR0, BROKEN) {
            return Err(Errno::IO);
        }
        match self.registers.get(&(region, offset)) {
            Some(value) if value.len() == data.len() => data.copy_from_slice(value),
            _ => data.fill(region.to_le_bytes()[0] | 0x80),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        assert!(
            !data.is_empty(),
            "an empty access does not reach the device"
        );
        if (region, offset) == (BAR0, BROKEN) {
            return Err(Errno::IO);
        }
        self.registers.insert((region, offset), data.to_vec());
        if region == BAR0
            && let (Some(on_write), Some(client)) = (&mut self.on_write, &self.client)
        {
            on_write(client);
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let end = map.iova + map.size;
        let mut below = self.maps.range(..end);
        if below
            .next_back()
            .is_some_and(|(_, (m, _))| m.iova + m.size > map.iova)
        {
            return Err(Errno::EXIST);
        }
        let with = if fd.is_some() { "memory" } else { "nothing" };
        self.log.push(format!("map {:#x} to {with}", map.iova));
        self.maps.insert(map.iova, (map, fd));
        Ok(())
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno> {
        match unmap {
            DmaUnmap::All => self.maps.clear(),
            DmaUnmap::Range { iova, size } => match self.maps.get(&iova) {
                Some((map, _)) if map.size == size => {
                    self.maps.remove(&iova);
                }
                _ => return Err(Errno::NOENT),
            },
        }
        Ok(())
    }

    fn set_irqs(&mut self, set: IrqSet<'_>) -> Result<(), Errno> {
        let vectors = set.start..set.start + set.count;
        let IrqSet { index, change, .. } = set;
        self.log.push(match &change {
            IrqChange::DisableAll => format!("{index}: disable all"),
            IrqChange::Connect { event, eventfds } => {
                format!(
                    "{index}: {event:?} {vectors:?} to {} eventfds",
                    eventfds.len()
                )
            }
            IrqChange::Disconnect { event } => format!("{index}: {event:?} {vectors:?} to nobody"),
            IrqChange::Do { event, only } => format!("{index}: {event:?} {vectors:?} {only:?}"),
        });
        match change {
            IrqChange::DisableAll => self.vectors.clear(),
            IrqChange::Connect { eventfds, .. } => self.vectors.extend(vectors.zip(eventfds)),
            IrqChange::Disconnect { .. } => {
                for vector in vectors {
                    self.vectors.remove(&vector);
                }
            }
            IrqChange::Do { event, only } => {
                for (i, vector) in vectors.enumerate() {
                    if event == IrqEvent::Trigger
                        && only.is_none_or(|only| only[i] != 0)
                        && let Some(fd) = self.vectors.get(&vector)
                    {
                        rustix::io::write(fd, &1u64.to_ne_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.resets += 1;
        Ok(())
    }

    fn connected(&mut self, client: Client) {
        self.connects += 1;
        self.client = Some(client);
    }

    fn disconnected(&mut self) {
        self.disconnects += 1;
        if let Some(on_disconnect) = self.on_disconnect.take() {
            on_disconnect();
        }
        self.client = None;
        self.maps.clear();
        self.vectors.clear();
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        match &mut self.migration {
            Some(migration) => Some(migration.as_mut()),
            None => None,
        }
    }
}
