//! The arithmetic of rings, safe for whatever the guest wrote into their registers.

use device::{DmaError, GuestMemory};

use crate::spec::descriptors::DESCRIPTOR_LEN;
use crate::spec::registers::{RING_ADDRESS_MASK, RING_INDEX_MASK, RING_LENGTH_MASK};
use crate::state::Ring;

impl Ring {
    /// How many descriptors it has, below 65536.
    pub(crate) fn entries(&self) -> u32 {
        self.len / 16
    }

    /// How many descriptors belong to the device. 0 while head or tail lie outside of the ring.
    pub(crate) fn owned(&self) -> u32 {
        let (entries, head, tail) = (self.entries(), u32::from(self.head), u32::from(self.tail));
        if head >= entries || tail >= entries {
            return 0;
        }
        if tail >= head {
            tail - head
        } else {
            entries - head + tail
        }
    }

    /// Where the descriptor `ahead` of the head lies, for `ahead` below [`entries`](Self::entries).
    pub(crate) fn address(&self, ahead: u32) -> u64 {
        let index = self.index(ahead);
        self.base.wrapping_add(u64::from(index) * DESCRIPTOR_LEN)
    }

    /// Reads the descriptor `ahead` of the head.
    pub(crate) fn read(&self, memory: &dyn GuestMemory, ahead: u32) -> Result<[u8; 16], DmaError> {
        let mut bytes = [0; 16];
        memory.read(self.address(ahead), &mut bytes)?;
        Ok(bytes)
    }

    /// Gives the next `count` descriptors back to the driver.
    pub(crate) fn advance(&mut self, count: u32) {
        // Below the number of entries, thus below 65536.
        self.head = u16::try_from(self.index(count)).unwrap_or(0);
    }

    pub(crate) fn base_low(&self) -> u32 {
        low(self.base)
    }

    pub(crate) fn base_high(&self) -> u32 {
        high(self.base)
    }

    pub(crate) fn set_base_low(&mut self, value: u32) {
        self.base = set_low(self.base, value & RING_ADDRESS_MASK);
    }

    pub(crate) fn set_base_high(&mut self, value: u32) {
        self.base = set_high(self.base, value);
    }

    pub(crate) fn set_len(&mut self, value: u32) {
        self.len = value & RING_LENGTH_MASK;
    }

    pub(crate) fn set_head(&mut self, value: u32) {
        self.head = (value & RING_INDEX_MASK) as u16;
    }

    pub(crate) fn set_tail(&mut self, value: u32) {
        self.tail = (value & RING_INDEX_MASK) as u16;
    }

    fn index(&self, ahead: u32) -> u32 {
        (u32::from(self.head) + ahead)
            .checked_rem(self.entries())
            .unwrap_or(0)
    }
}

/// The low half of a register pair.
pub(crate) fn low(register: u64) -> u32 {
    (register & u64::from(u32::MAX))
        .try_into()
        .expect("the high half is masked")
}

/// The high half of a register pair.
pub(crate) fn high(register: u64) -> u32 {
    low(register >> 32)
}

pub(crate) fn set_low(register: u64, value: u32) -> u64 {
    register & !u64::from(u32::MAX) | u64::from(value)
}

pub(crate) fn set_high(register: u64, value: u32) -> u64 {
    register & u64::from(u32::MAX) | u64::from(value) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(len: u32, head: u32, tail: u32) -> Ring {
        let mut ring = Ring::default();
        ring.set_len(len);
        ring.set_head(head);
        ring.set_tail(tail);
        ring
    }

    #[test]
    fn a_ring_that_wraps_owns_both_ends() {
        let mut wrapped = ring(128, 6, 3);
        assert_eq!(wrapped.owned(), 5);
        assert_eq!(wrapped.address(3), 16);
        wrapped.advance(5);
        assert_eq!((wrapped.head, wrapped.owned()), (3, 0));
    }

    #[test]
    fn a_ring_of_no_length_or_with_an_index_outside_owns_nothing() {
        assert_eq!(ring(0, 0, 0).owned(), 0);
        assert_eq!(ring(0, 0, 5).owned(), 0);
        assert_eq!(ring(128, 8, 0).owned(), 0);
        assert_eq!(ring(128, 0, 8).owned(), 0);
        assert_eq!(ring(u32::MAX, 0, u32::MAX).owned(), 0);
        assert_eq!(ring(u32::MAX, 0, 65_527).owned(), 65_527);
    }

    #[test]
    fn addresses_at_the_end_of_the_bus_wrap() {
        let mut ring = ring(256, 9, 0);
        ring.set_base_low(u32::MAX);
        ring.set_base_high(u32::MAX);
        assert_eq!(ring.address(0), 16);
    }
}
