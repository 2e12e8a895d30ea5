//! Which address is at which port.

use std::collections::HashMap;

/// Addresses and the slots of the ports where they were last seen.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: HashMap<[u8; 6], usize>,
    /// Addresses per slot.
    counts: Vec<usize>,
}

/// Addresses kept per port. A port that claims more gets its frames, but by flooding; it cannot
/// push out the addresses of others.
const MAX_PER_PORT: usize = 256;

impl Table {
    pub(super) fn find(&self, mac: [u8; 6]) -> Option<usize> {
        self.slots.get(&mac).copied()
    }

    /// Notes that `mac` is at `slot`, and nowhere else.
    pub(super) fn learn(&mut self, mac: [u8; 6], slot: usize) {
        let before = self.find(mac);
        if before == Some(slot) {
            return;
        }
        if self.counts.len() <= slot {
            self.counts.resize(slot + 1, 0);
        }
        if let Some(before) = before {
            self.counts[before] -= 1;
        }
        if self.counts[slot] < MAX_PER_PORT {
            self.counts[slot] += 1;
            self.slots.insert(mac, slot);
        } else {
            self.slots.remove(&mac);
        }
    }

    /// Forgets all addresses at `slot`.
    pub(super) fn forget(&mut self, slot: usize) {
        self.slots.retain(|_, at| *at != slot);
        if let Some(count) = self.counts.get_mut(slot) {
            *count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: usize) -> [u8; 6] {
        let bytes = number.to_be_bytes();
        [2, 0, bytes[4], bytes[5], bytes[6], bytes[7]]
    }

    #[test]
    fn an_address_is_where_it_was_last_seen() {
        let mut table = Table::default();
        table.learn(mac(1), 0);
        assert_eq!(table.find(mac(1)), Some(0));
        table.learn(mac(1), 3);
        assert_eq!(table.find(mac(1)), Some(3));
        table.forget(3);
        assert_eq!(table.find(mac(1)), None);
    }

    #[test]
    fn one_port_cannot_fill_the_table_for_the_others() {
        let mut table = Table::default();
        for number in 0..10_000 {
            table.learn(mac(number), 0);
        }
        assert_eq!(table.slots.len(), MAX_PER_PORT);
        table.learn(mac(99_999), 1);
        assert_eq!(table.find(mac(99_999)), Some(1));
        table.forget(0);
        assert_eq!(table.slots.len(), 1);
        table.learn(mac(5), 0);
        assert_eq!(table.find(mac(5)), Some(0));
    }

    #[test]
    fn an_address_that_comes_and_goes_costs_its_ports_nothing() {
        let mut table = Table::default();
        for round in 0..10 * MAX_PER_PORT {
            table.learn(mac(1), round % 2);
        }
        table.learn(mac(2), 0);
        table.learn(mac(3), 1);
        assert_eq!((table.find(mac(2)), table.find(mac(3))), (Some(0), Some(1)));
    }
}
