//! The live state as it lies beside the process, for another one of this host that goes on with it.
//!
//! Written after every call, so it is plain bytes, in order and without names; [`saved`](crate::saved) is what
//! travels and keeps. It is read only by a program that knows the same version of it.

use device::{DmaError, GuestMemory, Ledger, StateError, Writes};

use crate::saved::v1;
use crate::spec::descriptors::TxContext;
use crate::spec::mailbox::{Api, XcastMode};
use crate::state::{Admin, BitTable, Filter, InterruptState, Mailbox, Ring, Statistics, VfState};

/// Changes with every change of the form.
const VERSION: u32 = 1;

/// What the driver is about to be told, and where it is put down before; kept from frame to frame.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    pub(crate) writes: Writes,
    state: Vec<u8>,
}

impl Ahead {
    /// Makes the writes, of which `state` comes.
    pub(crate) fn make(
        &mut self,
        state: &VfState,
        memory: &dyn GuestMemory,
        ledger: Option<&dyn Ledger>,
    ) -> Result<(), DmaError> {
        if ledger.is_some() {
            self.state.clear();
            write(state, &mut self.state);
        }
        self.writes.make(memory, ledger, &self.state)
    }
}

/// Appends `state` to `bytes`.
pub(crate) fn write(state: &VfState, bytes: &mut Vec<u8>) {
    let VfState {
        admin: Admin { mac, queue_pairs },
        mailbox,
        interrupts,
        filter,
        psrtype,
        rx,
        tx,
        statistics,
        link_up,
    } = state;
    let mut out = Out(bytes);
    out.u32(VERSION);
    out.0.extend(mac);
    out.0.push(*queue_pairs);
    out.flag(*link_up);
    out.u32(*psrtype);
    out.words(&mailbox.memory);
    out.u32(mailbox.events);
    out.flag(mailbox.owned_by_vf);
    out.flag(mailbox.unread);
    out.flag(mailbox.clear_to_send);
    out.flag(mailbox.link_change_due);
    out.u32(mailbox.api.word());
    let InterruptState {
        causes,
        enabled,
        auto_clear,
        auto_mask,
        ivar,
        ivar_misc,
        throttle,
        unsent,
        awaiting_rearm,
    } = interrupts;
    out.words(&[*causes, *enabled, *auto_clear, *auto_mask]);
    out.words(ivar);
    out.words(throttle);
    out.words(&[*ivar_misc, *unsent, *awaiting_rearm]);
    out.words(&[filter.mode.word(), filter.max_frame]);
    out.0.push(filter.macvlan_count);
    out.0.extend(filter.macvlans.as_flattened());
    out.words(&filter.multicast.0);
    out.words(&filter.vlans.0);
    for queue in rx {
        out.ring(&queue.ring);
        out.u32(queue.srrctl);
    }
    for queue in tx {
        out.ring(&queue.ring);
        out.u64(queue.head_write_back);
        for context in &queue.contexts {
            let TxContext {
                vlan_macip_lens,
                type_tucmd,
                mss_l4len_idx,
            } = *context;
            out.words(&[vlan_macip_lens, type_tucmd, mss_l4len_idx]);
        }
        out.u32(queue.segments_sent);
        out.flag(queue.discarding);
    }
    out.words(&[
        statistics.rx_frames,
        statistics.rx_multicast,
        statistics.tx_frames,
    ]);
    out.u64(statistics.rx_bytes);
    out.u64(statistics.tx_bytes);
}

/// What was written.
///
/// # Errors
/// When it is of another version, or no function can be in such a state.
pub(crate) fn read(bytes: &[u8]) -> Result<VfState, StateError> {
    let damaged = |why: &str| StateError::Body {
        name: <v1::Vf as device::State>::NAME,
        why: why.into(),
    };
    let mut from = From(bytes);
    if from.u32() != Some(VERSION) {
        return Err(damaged("another version of vferry left it"));
    }
    let state = from.state().filter(|_| from.0.is_empty());
    let state = state.ok_or_else(|| damaged("it is cut short"))?;
    // What no function can be in is refused there.
    let saved = v1::Vf::from(&state);
    VfState::try_from(&saved).map_err(|why| damaged(&why.to_string()))
}

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn flag(&mut self, value: bool) {
        self.0.push(value.into());
    }

    fn words(&mut self, values: &[u32]) {
        self.0
            .extend(values.iter().flat_map(|word| word.to_le_bytes()));
    }

    fn ring(&mut self, ring: &Ring) {
        self.u64(ring.base);
        self.u32(ring.len);
        self.u32(u32::from(ring.head) | u32::from(ring.tail) << 16);
        self.u32(ring.control);
        self.u32(ring.dca);
    }
}

struct From<'a>(&'a [u8]);

impl From<'_> {
    fn state(&mut self) -> Option<VfState> {
        let mac = self.bytes()?;
        let [queue_pairs] = self.bytes()?;
        let link_up = self.flag()?;
        let mut state = VfState::new(Admin { mac, queue_pairs }, link_up);
        state.psrtype = self.u32()?;
        state.mailbox = Mailbox {
            memory: self.words()?,
            events: self.u32()?,
            owned_by_vf: self.flag()?,
            unread: self.flag()?,
            clear_to_send: self.flag()?,
            link_change_due: self.flag()?,
            api: Api::from_word(self.u32()?)?,
        };
        let [causes, enabled, auto_clear, auto_mask] = self.words()?;
        let (ivar, throttle) = (self.words()?, self.words()?);
        let [ivar_misc, unsent, awaiting_rearm] = self.words()?;
        state.interrupts = InterruptState {
            causes,
            enabled,
            auto_clear,
            auto_mask,
            ivar,
            ivar_misc,
            throttle,
            unsent,
            awaiting_rearm,
        };
        state.filter = self.filter()?;
        for queue in &mut state.rx {
            queue.ring = self.ring()?;
            queue.srrctl = self.u32()?;
        }
        for queue in &mut state.tx {
            queue.ring = self.ring()?;
            queue.head_write_back = self.u64()?;
            for context in &mut queue.contexts {
                let [vlan_macip_lens, type_tucmd, mss_l4len_idx] = self.words()?;
                *context = TxContext {
                    vlan_macip_lens,
                    type_tucmd,
                    mss_l4len_idx,
                };
            }
            queue.segments_sent = self.u32()?;
            queue.discarding = self.flag()?;
        }
        let [rx_frames, rx_multicast, tx_frames] = self.words()?;
        state.statistics = Statistics {
            rx_frames,
            rx_bytes: self.u64()?,
            rx_multicast,
            tx_frames,
            tx_bytes: self.u64()?,
        };
        Some(state)
    }

    fn filter(&mut self) -> Option<Filter> {
        let [mode, max_frame] = self.words()?;
        let [macvlan_count] = self.bytes()?;
        let mut filter = Filter {
            mode: XcastMode::from_word(mode)?,
            max_frame,
            macvlan_count,
            ..Filter::default()
        };
        if usize::from(macvlan_count) > filter.macvlans.len() {
            return None;
        }
        for mac in &mut filter.macvlans {
            *mac = self.bytes()?;
        }
        filter.multicast = BitTable(self.words()?);
        filter.vlans = BitTable(self.words()?);
        Some(filter)
    }

    fn ring(&mut self) -> Option<Ring> {
        let (base, [len, indices, control, dca]) = (self.u64()?, self.words()?);
        Some(Ring {
            base,
            len,
            head: (indices & 0xffff) as u16,
            tail: (indices >> 16) as u16,
            control,
            dca,
        })
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        let [byte] = self.bytes()?;
        (byte <= 1).then_some(byte != 0)
    }

    fn words<const N: usize>(&mut self) -> Option<[u32; N]> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VfState {
        let record = include_str!("../tests/golden/ixgbevf-v1.json");
        crate::saved::load(&serde_json::from_str(record).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        write(&state(), &mut bytes);
        assert_eq!(read(&bytes).unwrap(), state());
    }

    #[test]
    fn what_is_cut_short_or_of_another_version_is_refused() {
        let mut bytes = Vec::new();
        write(&state(), &mut bytes);
        assert!((0..bytes.len()).all(|len| read(&bytes[..len]).is_err()));
        bytes.push(0);
        assert!(read(&bytes).is_err());
        bytes.pop();
        bytes[0] ^= 1;
        assert!(read(&bytes).is_err());
    }
}
