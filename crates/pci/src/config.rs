//! The configuration space itself.

use crate::msix::MsixCapability;
use crate::registers::{self as reg, CAPABILITY_END, CONFIG_SIZE, HEADER_END};
use crate::{express, msix, power};

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, interface in bits 23:16, 15:8, 7:0.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A memory BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5; a 64-bit BAR takes the next one too.
    pub index: u8,
    /// Bytes, a power of two of at least 16.
    pub size: u64,
    /// How it is decoded.
    pub kind: BarKind,
}

/// How a BAR is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit memory, not prefetchable.
    Memory32,
    /// 32-bit memory, prefetchable.
    Memory32Prefetchable,
    /// 64-bit memory, not prefetchable.
    Memory64,
    /// 64-bit memory, prefetchable.
    Memory64Prefetchable,
}

impl BarKind {
    /// It takes two registers.
    pub const fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 | Self::Memory64Prefetchable)
    }

    /// The bits of the first register that say so.
    const fn bits(self) -> u32 {
        match self {
            Self::Memory32 => 0,
            Self::Memory32Prefetchable => reg::BAR_PREFETCHABLE,
            Self::Memory64 => reg::BAR_MEMORY_64,
            Self::Memory64Prefetchable => reg::BAR_MEMORY_64 | reg::BAR_PREFETCHABLE,
        }
    }
}

/// What a write to configuration space changed, for the function's owner to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Bus mastering was switched.
    pub bus_master: Option<bool>,
    /// A function-level reset was asked for.
    pub function_reset: bool,
}

/// The configuration space of one endpoint.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    /// Bits that a write changes.
    writable: Box<[u8; CONFIG_SIZE]>,
    power_on: Box<[u8; CONFIG_SIZE]>,
    bars: Vec<Bar>,
    msix: Option<(usize, MsixCapability)>,
    power: Option<usize>,
    express: Option<usize>,
}

impl ConfigSpace {
    /// Starts a configuration space.
    pub fn builder(identity: Identity) -> ConfigBuilder {
        ConfigBuilder::new(identity)
    }

    /// Copies from `offset` on; what lies past the end reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(CONFIG_SIZE);
        let len = data.len().min(CONFIG_SIZE - start);
        data[..len].copy_from_slice(&self.bytes[start..start + len]);
    }

    /// Writes from `offset` on; bits that are not writable and bytes past the end are ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Change {
        let was_master = self.bus_master();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(CONFIG_SIZE);
        for (at, &value) in (start..CONFIG_SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
        let function_reset = self.take_function_reset();
        let master = self.bus_master();
        Change {
            bus_master: (master != was_master).then_some(master),
            function_reset,
        }
    }

    /// As after power-on. The owner sees to bus mastering, which is off then.
    pub fn reset(&mut self) {
        *self.bytes = *self.power_on;
    }

    /// As after a function-level reset that the guest asked for: as after power-on, but for the
    /// BARs. A VMM keeps those for the guest (QEMU's `emulated_config_bits`, vfio's virtual BARs)
    /// and a reset does not touch them, so the guest sees no need to write them again
    /// (`pci_restore_config_dword`), and no write would tell us where they are.
    pub fn reset_function(&mut self) {
        let bars = reg::BAR0..reg::BAR0 + reg::BARS_LEN;
        let kept = self.bytes[bars.clone()].to_vec();
        self.reset();
        self.bytes[bars].copy_from_slice(&kept);
    }

    /// Vendor and device ID.
    pub fn ids(&self) -> (u16, u16) {
        (self.u16(reg::VENDOR_ID), self.u16(reg::DEVICE_ID))
    }

    /// Bus Master Enable.
    pub fn bus_master(&self) -> bool {
        self.command() & reg::COMMAND_BUS_MASTER != 0
    }

    /// MSI-X Enable: without it, a function that has no other interrupts has none.
    pub fn is_msix_enabled(&self) -> bool {
        let control = self.msix.map(|(at, _)| self.u16(at + msix::CONTROL));
        control.is_some_and(|control| control & msix::CONTROL_ENABLE != 0)
    }

    /// In D3hot (PCI Bus Power Management Interface 1.2, 5.4): it does nothing but answer in
    /// configuration space, whatever its Command register says.
    pub fn is_powered_down(&self) -> bool {
        let control = self.power.map(|at| self.u16(at + power::CONTROL));
        control.is_some_and(|control| control & power::CONTROL_STATE != 0)
    }

    /// The Command register.
    pub fn command(&self) -> u16 {
        self.u16(reg::COMMAND)
    }

    /// The BARs there are.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Where BAR `index` is mapped, or `None` while its address is zero, memory decoding is off,
    /// or there is no such BAR.
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bars.iter().find(|bar| bar.index == index)?;
        let at = reg::BAR0 + 4 * usize::from(index);
        let low = u64::from(self.u32(at) & !0xf);
        let high = if bar.kind.is_64_bit() {
            u64::from(self.u32(at + 4))
        } else {
            0
        };
        let address = high << 32 | low;
        let decoded = self.command() & reg::COMMAND_MEMORY != 0;
        (decoded && address != 0).then_some(address)
    }

    /// The MSI-X capability's offset and layout.
    pub fn msix(&self) -> Option<(usize, MsixCapability)> {
        self.msix
    }

    /// Offset of the power-management capability.
    pub fn power(&self) -> Option<usize> {
        self.power
    }

    /// Offset of the Express capability.
    pub fn express(&self) -> Option<usize> {
        self.express
    }

    pub(crate) fn bytes(&self) -> &[u8; CONFIG_SIZE] {
        &self.bytes
    }

    /// Takes the writable bits of `image`, if all others are as they are here.
    pub(crate) fn overlay(&mut self, image: &[u8; CONFIG_SIZE]) -> Result<(), usize> {
        let fixed = |at: &usize| (image[*at] ^ self.bytes[*at]) & !self.writable[*at] != 0;
        if let Some(at) = (0..CONFIG_SIZE).find(fixed) {
            return Err(at);
        }
        *self.bytes = *image;
        Ok(())
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// The FLR bit starts a reset and reads as zero (PCIe 7.5.3.4).
    fn take_function_reset(&mut self) -> bool {
        let Some(at) = self.express.map(|cap| cap + express::DEVICE_CONTROL) else {
            return false;
        };
        let control = self.u16(at);
        let cleared = control & !express::DEVICE_CONTROL_FLR;
        self.bytes[at..at + 2].copy_from_slice(&cleared.to_le_bytes());
        control != cleared
    }
}

/// Puts a configuration space together. Offsets are the caller's, as devices have theirs fixed.
#[derive(Debug)]
pub struct ConfigBuilder {
    space: ConfigSpace,
    last_capability: usize,
}

impl ConfigBuilder {
    fn new(identity: Identity) -> Self {
        let zero = || Box::new([0; CONFIG_SIZE]);
        let mut this = Self {
            space: ConfigSpace {
                bytes: zero(),
                writable: zero(),
                power_on: zero(),
                bars: Vec::new(),
                msix: None,
                power: None,
                express: None,
            },
            last_capability: reg::CAPABILITIES,
        };
        this.put16(reg::VENDOR_ID, identity.vendor);
        this.put16(reg::DEVICE_ID, identity.device);
        this.put32(
            reg::REVISION_ID,
            identity.class << 8 | u32::from(identity.revision),
        );
        this.put16(reg::SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor);
        this.put16(reg::SUBSYSTEM_ID, identity.subsystem);
        this.writable16(
            reg::COMMAND,
            reg::COMMAND_IO
                | reg::COMMAND_MEMORY
                | reg::COMMAND_BUS_MASTER
                | reg::COMMAND_PARITY
                | reg::COMMAND_SERR
                | reg::COMMAND_INTX_DISABLE,
        );
        this.space.writable[reg::CACHE_LINE_SIZE] = 0xff;
        this.space.writable[reg::INTERRUPT_LINE] = 0xff;
        this
    }

    /// Adds a BAR.
    ///
    /// # Panics
    /// When size or index are not those of a BAR: a mistake of the model's author.
    #[must_use]
    pub fn bar(mut self, bar: Bar) -> Self {
        assert!(
            bar.size.is_power_of_two() && bar.size >= 16 && bar.index < 6,
            "no BAR: {bar:?}"
        );
        let at = reg::BAR0 + 4 * usize::from(bar.index);
        let mask = !(bar.size - 1);
        let [low, high] = [mask & 0xffff_fff0, mask >> 32]
            .map(|half| u32::try_from(half).expect("masked or shifted to 32 bits"));
        self.put32(at, bar.kind.bits());
        self.writable32(at, low);
        if bar.kind.is_64_bit() {
            assert!(bar.index < 5, "a 64-bit BAR takes two registers");
            self.writable32(at + 4, high);
        }
        self.space.bars.push(bar);
        self
    }

    /// Adds MSI-X at offset `at`.
    #[must_use]
    pub fn msix(mut self, at: usize, layout: MsixCapability) -> Self {
        assert!(
            (1..=2048).contains(&layout.vectors),
            "MSI-X has 1 to 2048 vectors"
        );
        self.capability(at, reg::CAPABILITY_MSIX, msix::LEN);
        self.put16(at + msix::CONTROL, layout.vectors - 1);
        self.writable16(
            at + msix::CONTROL,
            msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL,
        );
        self.put32(
            at + msix::TABLE,
            layout.table_offset | u32::from(layout.bar),
        );
        self.put32(
            at + msix::PENDING,
            layout.pba_offset | u32::from(layout.pba_bar),
        );
        self.space.msix = Some((at, layout));
        self
    }

    /// Adds power management (D0 and D3hot) at offset `at`.
    #[must_use]
    pub fn power_management(mut self, at: usize) -> Self {
        self.capability(at, reg::CAPABILITY_POWER, power::LEN);
        self.put16(at + 2, power::CAPABILITIES);
        self.put16(at + power::CONTROL, power::CONTROL_NO_SOFT_RESET);
        self.writable16(at + power::CONTROL, power::CONTROL_STATE);
        self.space.power = Some(at);
        self
    }

    /// Adds the Express capability with function-level reset at offset `at`.
    #[must_use]
    pub fn express(mut self, at: usize) -> Self {
        self.capability(at, reg::CAPABILITY_EXPRESS, express::LEN);
        self.put16(at + 2, express::CAPABILITIES);
        self.put32(
            at + express::DEVICE_CAPABILITIES,
            express::DEVICE_CAPABILITIES_RBER | express::DEVICE_CAPABILITIES_FLR | 2,
        );
        self.put16(at + express::DEVICE_CONTROL, express::DEVICE_CONTROL_RESET);
        self.writable16(at + express::DEVICE_CONTROL, 0xffff);
        self.put32(
            at + express::LINK_CAPABILITIES,
            express::LINK_CAPABILITIES_5GT_X8,
        );
        self.put16(at + express::LINK_STATUS, 0x82);
        self.put32(
            at + express::DEVICE_CAPABILITIES_2,
            express::DEVICE_CAPABILITIES_2_CTO_DISABLE,
        );
        self.writable16(at + express::DEVICE_CONTROL_2, 0x001f);
        self.space.express = Some(at);
        self
    }

    /// Adds the Express capability at offset `at` as a real function has it, with function-level
    /// reset.
    ///
    /// # Panics
    /// When `capability` has not the capability's length.
    #[must_use]
    pub fn express_as(mut self, at: usize, capability: &[u8]) -> Self {
        assert_eq!(capability.len(), express::LEN);
        self.capability(at, reg::CAPABILITY_EXPRESS, express::LEN);
        self.space.bytes[at + 2..at + express::LEN].copy_from_slice(&capability[2..]);
        let offered = self.space.u32(at + express::DEVICE_CAPABILITIES);
        let offered = offered | express::DEVICE_CAPABILITIES_FLR;
        self.put32(at + express::DEVICE_CAPABILITIES, offered);
        let control = self.space.u16(at + express::DEVICE_CONTROL);
        let control = control & !express::DEVICE_CONTROL_FLR;
        self.put16(at + express::DEVICE_CONTROL, control);
        self.put16(at + express::DEVICE_STATUS, 0);
        self.writable16(at + express::DEVICE_CONTROL, 0xffff);
        self.writable16(at + express::DEVICE_CONTROL_2, 0x001f);
        self.space.express = Some(at);
        self
    }

    /// Adds capability `id` at offset `at`, of whose bytes after the link, `rest`, none can be written.
    #[must_use]
    pub fn read_only(mut self, at: usize, id: u8, rest: &[u8]) -> Self {
        self.capability(at, id, 2 + rest.len());
        self.space.bytes[at + 2..at + 2 + rest.len()].copy_from_slice(rest);
        self
    }

    /// The finished space, as after power-on.
    #[must_use]
    pub fn build(mut self) -> ConfigSpace {
        *self.space.power_on = *self.space.bytes;
        self.space
    }

    fn capability(&mut self, at: usize, id: u8, len: usize) {
        assert!(at >= HEADER_END && at.is_multiple_of(4) && at + len <= CAPABILITY_END);
        self.space.bytes[at] = id;
        let link = match self.last_capability {
            reg::CAPABILITIES => reg::CAPABILITIES,
            previous => previous + 1,
        };
        self.space.bytes[link] = u8::try_from(at).expect("asserted to be below 0x100");
        self.put16(reg::STATUS, reg::STATUS_CAPABILITIES);
        self.last_capability = at;
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.space.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.space.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn writable16(&mut self, at: usize, mask: u16) {
        self.space.writable[at..at + 2].copy_from_slice(&mask.to_le_bytes());
    }

    fn writable32(&mut self, at: usize, mask: u32) {
        self.space.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
