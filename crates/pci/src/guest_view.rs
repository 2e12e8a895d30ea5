//! The configuration space that a guest sees of a function of the host.
//!
//! What a guest needs to drive a function is shown, and what it writes there stays with us: of the
//! real function, whoever owns it changes what the guest's writes call for (bus mastering, reset,
//! interrupts), and nothing else is changed. So what the guest has programmed is known at any time,
//! can be carried to another host, and can do no harm here.
//!
//! Shown are the header, memory BARs, Power Management, MSI-X, PCI Express and, read-only, what the
//! vendor has put into capabilities of its own. Not shown: I/O BARs, expansion ROM, `INTx`, MSI (there
//! is MSI-X), VPD, and all extended capabilities.

use crate::config::ConfigBuilder;
use crate::registers::{self as reg, CAPABILITY_END, HEADER_END};
use crate::{Bar, BarKind, ConfigSpace, Identity, MsixCapability, express, msix, power};

/// The part that capabilities live in.
pub type Header = [u8; CAPABILITY_END];

/// Why a function's configuration space cannot be shown to a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotShown {
    /// A bridge, say.
    #[error(
        "its configuration space has a header of type {0}, and only endpoints, type 0, can be passed through"
    )]
    HeaderType(u8),
    /// It has none, or others.
    #[error("it has no MSI-X, and its interrupts can be handed to a guest by no other means here")]
    NoMsix,
    /// Not even that.
    #[error("it has no PCI Express capability")]
    NoExpress,
    /// The function says what cannot be.
    #[error("its configuration space does not hold together: {0}")]
    Broken(&'static str),
}

/// What a guest sees of a function whose configuration space begins with `bytes`, and whose BARs
/// have `sizes` bytes; 0 where there is none. It offers a function-level reset, whatever the function
/// itself does.
///
/// # Errors
/// When a guest could not drive it.
pub fn of(bytes: &Header, sizes: [u64; 6]) -> Result<ConfigSpace, NotShown> {
    let real = Real(bytes);
    let header_type = bytes[reg::HEADER_TYPE] & reg::HEADER_TYPE_LAYOUT;
    if header_type != 0 {
        return Err(NotShown::HeaderType(header_type));
    }
    let mut builder = ConfigSpace::builder(real.identity());
    for bar in real.bars(sizes)? {
        builder = builder.bar(bar);
    }
    let mut found = Found::default();
    for (at, id) in real.capabilities()? {
        builder = found.add(builder, real, at, id, sizes)?;
    }
    if !found.msix {
        return Err(NotShown::NoMsix);
    }
    if !found.express {
        return Err(NotShown::NoExpress);
    }
    Ok(builder.build())
}

/// What there may be one of.
#[derive(Default)]
struct Found {
    msix: bool,
    express: bool,
    power: bool,
}

impl Found {
    fn add(
        &mut self,
        builder: ConfigBuilder,
        real: Real<'_>,
        at: usize,
        id: u8,
        sizes: [u64; 6],
    ) -> Result<ConfigBuilder, NotShown> {
        let fits = |len: usize| {
            let end = at + len;
            (end <= CAPABILITY_END)
                .then_some(())
                .ok_or(NotShown::Broken("a capability passes the end"))
        };
        let twice = |seen: bool| {
            (!seen)
                .then_some(())
                .ok_or(NotShown::Broken("a capability is there twice"))
        };
        Ok(match id {
            reg::CAPABILITY_POWER => {
                twice(std::mem::replace(&mut self.power, true))?;
                fits(power::LEN)?;
                builder.power_management(at)
            }
            reg::CAPABILITY_MSIX => {
                twice(std::mem::replace(&mut self.msix, true))?;
                fits(msix::LEN)?;
                builder.msix(at, real.msix(at, sizes)?)
            }
            reg::CAPABILITY_EXPRESS => {
                twice(std::mem::replace(&mut self.express, true))?;
                fits(express::LEN)?;
                builder.express_as(at, &real.0[at..at + express::LEN])
            }
            reg::CAPABILITY_VENDOR => {
                let len = usize::from(real.0[at + 2]);
                if len < 3 {
                    return Err(NotShown::Broken("a vendor's capability has no length"));
                }
                fits(len)?;
                builder.read_only(at, id, &real.0[at + 2..at + len])
            }
            _ => builder,
        })
    }
}

#[derive(Clone, Copy)]
struct Real<'a>(&'a Header);

impl Real<'_> {
    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn identity(self) -> Identity {
        let [revision, ..] = self.u32(reg::REVISION_ID).to_le_bytes();
        Identity {
            vendor: self.u16(reg::VENDOR_ID),
            device: self.u16(reg::DEVICE_ID),
            revision,
            class: self.u32(reg::REVISION_ID) >> 8,
            subsystem_vendor: self.u16(reg::SUBSYSTEM_VENDOR_ID),
            subsystem: self.u16(reg::SUBSYSTEM_ID),
        }
    }

    fn bars(self, sizes: [u64; 6]) -> Result<Vec<Bar>, NotShown> {
        let mut bars = Vec::new();
        let mut indices = (0_u8..).zip(sizes);
        while let Some((index, size)) = indices.next() {
            let low = self.u32(reg::BAR0 + 4 * usize::from(index));
            if size == 0 || low & reg::BAR_IO != 0 {
                continue;
            }
            if !size.is_power_of_two() || size < 16 {
                return Err(NotShown::Broken("a BAR's size is no power of two"));
            }
            let is_64_bit = low & reg::BAR_TYPE == reg::BAR_MEMORY_64;
            let kind = match (is_64_bit, low & reg::BAR_PREFETCHABLE != 0) {
                (false, false) => BarKind::Memory32,
                (false, true) => BarKind::Memory32Prefetchable,
                (true, false) => BarKind::Memory64,
                (true, true) => BarKind::Memory64Prefetchable,
            };
            if is_64_bit && indices.next().is_none_or(|(_, size)| size != 0) {
                return Err(NotShown::Broken("a 64-bit BAR has no second register"));
            }
            if !is_64_bit && size > 1 << 31 {
                return Err(NotShown::Broken("a 32-bit BAR is too large"));
            }
            bars.push(Bar { index, size, kind });
        }
        Ok(bars)
    }

    /// Offset and ID of each, in the list's order.
    fn capabilities(self) -> Result<Vec<(usize, u8)>, NotShown> {
        let mut list = Vec::new();
        if self.u16(reg::STATUS) & reg::STATUS_CAPABILITIES == 0 {
            return Ok(list);
        }
        let mut next = self.0[reg::CAPABILITIES];
        loop {
            // The two low bits are reserved (PCI 6.7).
            let at = usize::from(next & !0b11);
            if at == 0 {
                return Ok(list);
            }
            if at < HEADER_END {
                return Err(NotShown::Broken("a capability lies in the header"));
            }
            if list.iter().any(|(seen, _)| *seen == at) {
                return Err(NotShown::Broken("the capabilities have no end"));
            }
            list.push((at, self.0[at]));
            next = self.0[at + 1];
        }
    }

    fn msix(self, at: usize, sizes: [u64; 6]) -> Result<MsixCapability, NotShown> {
        let vectors = (self.u16(at + msix::CONTROL) & msix::CONTROL_SIZE) + 1;
        let place = |word: u32| {
            let [bar, ..] = (word & msix::BAR).to_le_bytes();
            (bar, word & !msix::BAR)
        };
        let (bar, table_offset) = place(self.u32(at + msix::TABLE));
        let (pba_bar, pba_offset) = place(self.u32(at + msix::PENDING));
        let bits = u64::from(vectors).next_multiple_of(64);
        let within = |bar: u8, offset: u32, len: u64| {
            let size = sizes.get(usize::from(bar)).copied().unwrap_or(0);
            u64::from(offset) + len <= size
        };
        let table_len = u64::from(vectors) * msix::ENTRY_LEN as u64;
        if !within(bar, table_offset, table_len) || !within(pba_bar, pba_offset, bits / 8) {
            return Err(NotShown::Broken("its MSI-X structures lie in no BAR"));
        }
        Ok(MsixCapability {
            vectors,
            bar,
            table_offset,
            pba_bar,
            pba_offset,
        })
    }
}

#[cfg(test)]
mod tests;
