//! How to bring the VMM's side of a function, fresh from power-on, to where another was.
//!
//! A VMM keeps its own copy of a function's BARs, Command register and MSI-X table, and a
//! destination's knows nothing of what the guest has programmed at the source. Replaying a few
//! writes in the right order is all it takes; they can be made before the VM runs.

use crate::registers as reg;
use crate::{ConfigSpace, express, msix, power};

/// One thing to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write to configuration space.
    Config(ConfigWrite),
    /// Write the saved MSI-X table to guest-physical address `at`; memory decoding and bus
    /// mastering are on here.
    MsixTable {
        /// Address of the table.
        at: u64,
    },
}

/// A write to configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigWrite {
    /// Offset, aligned to `size`.
    pub offset: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// Value.
    pub value: u32,
}

/// The steps from power-on to the state that `space` is in. The MSI-X table is among them if it is to
/// be written, too.
pub fn plan(space: &ConfigSpace, table: bool) -> Vec<Step> {
    let mut fresh = space.clone();
    fresh.reset();
    steps(space, Some(&fresh), table)
}

/// The steps to the state that `space` is in from the one that `before` is in. The MSI-X table is
/// among them if it is to be written, too.
pub fn changes(before: &ConfigSpace, space: &ConfigSpace, table: bool) -> Vec<Step> {
    steps(space, Some(before), table)
}

fn steps(space: &ConfigSpace, before: Option<&ConfigSpace>, table: bool) -> Vec<Step> {
    let mut plan = Plan {
        space,
        before,
        steps: Vec::new(),
    };
    for bar in space.bars() {
        let at = reg::BAR0 + 4 * usize::from(bar.index);
        plan.copy32(at);
        if bar.kind.is_64_bit() {
            plan.copy32(at + 4);
        }
    }
    plan.copy8(reg::CACHE_LINE_SIZE);
    plan.copy8(reg::INTERRUPT_LINE);
    if let Some(at) = space.power() {
        plan.copy16(at + power::CONTROL);
    }
    if let Some(at) = space.express() {
        plan.copy16(at + express::DEVICE_CONTROL);
        plan.copy16(at + express::DEVICE_CONTROL_2);
    }
    if table {
        plan.msix_table();
    }
    if let Some((at, _)) = space.msix() {
        plan.copy16(at + msix::CONTROL);
    }
    plan.copy16(reg::COMMAND);
    plan.steps
}

struct Plan<'a> {
    space: &'a ConfigSpace,
    /// What is there already, as far as nothing was written yet.
    before: Option<&'a ConfigSpace>,
    steps: Vec<Step>,
}

impl Plan<'_> {
    /// The table lies in a BAR, which must answer to be written; and enabling the vectors only
    /// after the table is whole keeps the VMM from arming a half-written one.
    fn msix_table(&mut self) {
        let Some((at, layout)) = self.space.msix() else {
            return;
        };
        let Some(bar) = self.space.bar_address(layout.bar) else {
            return;
        };
        // What these change is written again.
        self.before = None;
        let control = self.space.u16(at + msix::CONTROL);
        let open = reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER;
        self.put(reg::COMMAND, 2, u32::from(self.space.command() | open));
        let masked = control | msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL;
        self.put(at + msix::CONTROL, 2, u32::from(masked));
        self.steps.push(Step::MsixTable {
            at: bar + u64::from(layout.table_offset),
        });
    }

    fn copy8(&mut self, at: usize) {
        self.put(at, 1, u32::from(self.space.bytes()[at]));
    }

    fn copy16(&mut self, at: usize) {
        self.put(at, 2, u32::from(self.space.u16(at)));
    }

    fn copy32(&mut self, at: usize) {
        self.put(at, 4, self.space.u32(at));
    }

    fn put(&mut self, offset: usize, size: u8, value: u32) {
        let bytes = offset..offset + usize::from(size);
        if let Some(before) = self.before
            && before.bytes()[bytes.clone()] == self.space.bytes()[bytes]
        {
            return;
        }
        let offset = u16::try_from(offset).expect("configuration space has 4 KiB");
        self.steps.push(Step::Config(ConfigWrite {
            offset,
            size,
            value,
        }));
    }
}
