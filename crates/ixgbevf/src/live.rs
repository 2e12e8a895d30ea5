//! The live state as it lies beside the process, for another one of this host that goes on with it.
//!
//! Written after every call, so it is plain bytes, in order and without names; [`saved`](crate::saved) is what
//! travels and keeps. It is read only by a program that knows the same version of it.

use device::plain::read_whole;
use device::{PlainReader, PlainWriter, StateError};

use crate::saved::v1;
use crate::spec::descriptors::TxContext;
use crate::spec::mailbox::{Api, XcastMode};
use crate::state::{Admin, BitTable, Filter, InterruptState, Mailbox, Ring, Statistics, VfState};

/// Changes with every change of the form.
const VERSION: u32 = 1;

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
    let mut out = PlainWriter::new(bytes);
    out.u32(VERSION);
    out.bytes(mac);
    out.u8(*queue_pairs);
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
    out.u8(filter.macvlan_count);
    out.bytes(filter.macvlans.as_flattened());
    out.words(&filter.multicast.0);
    out.words(&filter.vlans.0);
    for queue in rx {
        write_ring(&mut out, &queue.ring);
        out.u32(queue.srrctl);
    }
    for queue in tx {
        write_ring(&mut out, &queue.ring);
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
    let state = read_whole(bytes, VERSION, read_state).map_err(damaged)?;
    // What no function can be in is refused there.
    let saved = v1::Vf::from(&state);
    VfState::try_from(&saved).map_err(|why| damaged(&why.to_string()))
}

fn write_ring(out: &mut PlainWriter<'_>, ring: &Ring) {
    out.u64(ring.base);
    out.u32(ring.len);
    out.u32(u32::from(ring.head) | u32::from(ring.tail) << 16);
    out.u32(ring.control);
    out.u32(ring.dca);
}

fn read_state(from: &mut PlainReader<'_>) -> Option<VfState> {
    let mac = from.bytes()?;
    let [queue_pairs] = from.bytes()?;
    let link_up = from.flag()?;
    let mut state = VfState::new(Admin { mac, queue_pairs }, link_up);
    state.psrtype = from.u32()?;
    state.mailbox = Mailbox {
        memory: from.words()?,
        events: from.u32()?,
        owned_by_vf: from.flag()?,
        unread: from.flag()?,
        clear_to_send: from.flag()?,
        link_change_due: from.flag()?,
        api: Api::from_word(from.u32()?)?,
    };
    let [causes, enabled, auto_clear, auto_mask] = from.words()?;
    let (ivar, throttle) = (from.words()?, from.words()?);
    let [ivar_misc, unsent, awaiting_rearm] = from.words()?;
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
    state.filter = read_filter(from)?;
    for queue in &mut state.rx {
        queue.ring = read_ring(from)?;
        queue.srrctl = from.u32()?;
    }
    for queue in &mut state.tx {
        queue.ring = read_ring(from)?;
        queue.head_write_back = from.u64()?;
        for context in &mut queue.contexts {
            let [vlan_macip_lens, type_tucmd, mss_l4len_idx] = from.words()?;
            *context = TxContext {
                vlan_macip_lens,
                type_tucmd,
                mss_l4len_idx,
            };
        }
        queue.segments_sent = from.u32()?;
        queue.discarding = from.flag()?;
    }
    let [rx_frames, rx_multicast, tx_frames] = from.words()?;
    state.statistics = Statistics {
        rx_frames,
        rx_bytes: from.u64()?,
        rx_multicast,
        tx_frames,
        tx_bytes: from.u64()?,
    };
    Some(state)
}

fn read_filter(from: &mut PlainReader<'_>) -> Option<Filter> {
    let [mode, max_frame] = from.words()?;
    let [macvlan_count] = from.bytes()?;
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
        *mac = from.bytes()?;
    }
    filter.multicast = BitTable(from.words()?);
    filter.vlans = BitTable(from.words()?);
    Some(filter)
}

fn read_ring(from: &mut PlainReader<'_>) -> Option<Ring> {
    let (base, [len, indices, control, dca]) = (from.u64()?, from.words()?);
    Some(Ring {
        base,
        len,
        head: (indices & 0xffff) as u16,
        tail: (indices >> 16) as u16,
        control,
        dca,
    })
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
