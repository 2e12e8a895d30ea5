//! The live state as it lies beside the process, for another one of this host that goes on with it.
//!
//! Written after every call, so it is plain bytes; [`saved`](crate::saved) is what travels and keeps. It is read
//! only by a program that knows the same version of it.

use device::plain::read_whole;
use device::{PlainReader, PlainWriter, StateError};

use crate::saved::{body, v1};
use crate::spec::commands::Submission;
use crate::state::{
    Command, CompletionQueue, ControllerState, ErrorEntry, ErrorLog, Events, Features, Identity,
    Namespace, Registers, Shutdown, SubmissionQueue, Usage,
};

/// Changes with every change of the form.
const VERSION: u32 = 1;

/// What a successor goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) state: ControllerState,
    /// Backings that have failed in a way that the guest has yet to be told of, one bit for each.
    pub(crate) failed: u32,
}

/// Appends `state` to `bytes`, and which backings have `failed`.
pub(crate) fn write(state: &ControllerState, failed: u32, bytes: &mut Vec<u8>) {
    let ControllerState {
        identity: Identity { serial, queues },
        namespaces,
        registers,
        submission,
        completion,
        features,
        events,
        commands,
        errors: ErrorLog { count, entries },
        usage,
    } = state;
    let mut out = PlainWriter::new(bytes);
    out.u32(VERSION);
    out.u32(failed);
    out.bytes(serial);
    out.u16(*queues);
    write_registers(&mut out, registers);
    write_features(&mut out, features);
    let Events {
        requests,
        pending,
        masked,
    } = events;
    write_slots(&mut out, requests, |out, cid| out.u16(*cid));
    out.bytes(&[*pending, *masked]);
    write_slots(&mut out, namespaces, write_namespace);
    write_slots(&mut out, submission, write_submission);
    write_slots(&mut out, completion, write_completion);
    write_slots(&mut out, commands, |out, command| {
        out.u16(command.sq);
        out.words(&command.entry.0);
        out.u64(command.done);
    });
    out.u64(*count);
    write_slots(&mut out, entries, write_error);
    let Usage {
        sectors_read,
        sectors_written,
        reads,
        writes,
        media_errors,
        power_cycles,
    } = *usage;
    for count in [
        sectors_read,
        sectors_written,
        reads,
        writes,
        media_errors,
        power_cycles,
    ] {
        out.u64(count);
    }
}

/// What was written.
///
/// # Errors
/// When it is of another version, or no controller can be in such a state.
pub(crate) fn read(bytes: &[u8]) -> Result<Live, StateError> {
    let live = read_whole(bytes, VERSION, read_live);
    let Live { state, failed } = live.map_err(|why| body(&why))?;
    // What no controller can be in is refused there.
    let saved = v1::Controller::from(&state);
    let state = ControllerState::try_from(&saved).map_err(|why| body(&why))?;
    Ok(Live { state, failed })
}

fn read_live(from: &mut PlainReader<'_>) -> Option<Live> {
    let failed = from.u32()?;
    let identity = Identity {
        serial: from.bytes()?,
        queues: from.u16()?,
    };
    let registers = read_registers(from)?;
    let features = read_features(from)?;
    let requests = read_slots(from, PlainReader::u16)?;
    let [pending, masked] = from.bytes()?;
    let state = ControllerState {
        identity,
        registers,
        features,
        events: Events {
            requests,
            pending,
            masked,
        },
        namespaces: read_slots(from, read_namespace)?,
        submission: read_slots(from, read_submission)?,
        completion: read_slots(from, read_completion)?,
        commands: read_slots(from, |from| {
            Some(Command {
                sq: from.u16()?,
                entry: Submission(from.words()?),
                done: from.u64()?,
            })
        })?,
        errors: ErrorLog {
            count: from.u64()?,
            entries: read_slots(from, read_error)?,
        },
        usage: Usage {
            sectors_read: from.u64()?,
            sectors_written: from.u64()?,
            reads: from.u64()?,
            writes: from.u64()?,
            media_errors: from.u64()?,
            power_cycles: from.u64()?,
        },
    };
    Some(Live { state, failed })
}

/// Each with whether it is there.
fn write_slots<T>(
    out: &mut PlainWriter<'_>,
    slots: &[Option<T>],
    write: impl Fn(&mut PlainWriter<'_>, &T),
) {
    for slot in slots {
        out.flag(slot.is_some());
        if let Some(value) = slot {
            write(out, value);
        }
    }
}

fn read_slots<'a, T: Copy, const N: usize>(
    from: &mut PlainReader<'a>,
    read: impl Fn(&mut PlainReader<'a>) -> Option<T>,
) -> Option<[Option<T>; N]> {
    let mut slots = [None; N];
    for slot in &mut slots {
        if from.flag()? {
            *slot = Some(read(from)?);
        }
    }
    Some(slots)
}

fn write_registers(out: &mut PlainWriter<'_>, registers: &Registers) {
    let Registers {
        cc,
        ready,
        fatal,
        shutdown,
        aqa,
        asq,
        acq,
    } = *registers;
    out.u32(cc);
    out.flag(ready);
    out.flag(fatal);
    out.u8(match shutdown {
        Shutdown::None => 0,
        Shutdown::Occurring => 1,
        Shutdown::Complete => 2,
    });
    out.u32(aqa);
    out.u64(asq);
    out.u64(acq);
}

fn read_registers(from: &mut PlainReader<'_>) -> Option<Registers> {
    Some(Registers {
        cc: from.u32()?,
        ready: from.flag()?,
        fatal: from.flag()?,
        shutdown: match from.u8()? {
            0 => Shutdown::None,
            1 => Shutdown::Occurring,
            2 => Shutdown::Complete,
            _ => return None,
        },
        aqa: from.u32()?,
        asq: from.u64()?,
        acq: from.u64()?,
    })
}

fn write_features(out: &mut PlainWriter<'_>, features: &Features) {
    let Features {
        arbitration,
        temperature: [over, under],
        error_recovery,
        write_cache,
        coalescing,
        coalescing_disabled,
        disable_normal,
        async_events,
    } = *features;
    out.u16(over);
    out.u16(under);
    out.flag(write_cache);
    out.flag(disable_normal);
    out.words(&[
        arbitration,
        error_recovery,
        coalescing,
        coalescing_disabled,
        async_events,
    ]);
}

fn read_features(from: &mut PlainReader<'_>) -> Option<Features> {
    let temperature = [from.u16()?, from.u16()?];
    let (write_cache, disable_normal) = (from.flag()?, from.flag()?);
    let [
        arbitration,
        error_recovery,
        coalescing,
        coalescing_disabled,
        async_events,
    ] = from.words()?;
    Some(Features {
        arbitration,
        temperature,
        error_recovery,
        write_cache,
        coalescing,
        coalescing_disabled,
        disable_normal,
        async_events,
    })
}

fn write_namespace(out: &mut PlainWriter<'_>, namespace: &Namespace) {
    let Namespace {
        blocks,
        block_shift,
        uuid,
        changed,
    } = namespace;
    out.u64(*blocks);
    out.u8(*block_shift);
    out.bytes(uuid);
    out.flag(*changed);
}

fn read_namespace(from: &mut PlainReader<'_>) -> Option<Namespace> {
    Some(Namespace {
        blocks: from.u64()?,
        block_shift: from.u8()?,
        uuid: from.bytes()?,
        changed: from.flag()?,
    })
}

fn write_submission(out: &mut PlainWriter<'_>, queue: &SubmissionQueue) {
    let SubmissionQueue {
        base,
        entries,
        head,
        tail,
        completion,
    } = *queue;
    out.u64(base);
    for value in [entries, head, tail, completion] {
        out.u16(value);
    }
}

fn read_submission(from: &mut PlainReader<'_>) -> Option<SubmissionQueue> {
    Some(SubmissionQueue {
        base: from.u64()?,
        entries: from.u16()?,
        head: from.u16()?,
        tail: from.u16()?,
        completion: from.u16()?,
    })
}

fn write_completion(out: &mut PlainWriter<'_>, queue: &CompletionQueue) {
    let CompletionQueue {
        base,
        entries,
        head,
        tail,
        phase,
        vector,
    } = *queue;
    out.u64(base);
    for value in [entries, head, tail] {
        out.u16(value);
    }
    out.flag(phase);
    write_slots(out, &[vector], |out, vector| out.u16(*vector));
}

fn read_completion(from: &mut PlainReader<'_>) -> Option<CompletionQueue> {
    Some(CompletionQueue {
        base: from.u64()?,
        entries: from.u16()?,
        head: from.u16()?,
        tail: from.u16()?,
        phase: from.flag()?,
        vector: read_slots::<_, 1>(from, PlainReader::u16)?[0],
    })
}

fn write_error(out: &mut PlainWriter<'_>, entry: &ErrorEntry) {
    let ErrorEntry {
        number,
        sq,
        cid,
        status,
        lba,
        nsid,
    } = *entry;
    out.u64(number);
    for value in [sq, cid, status] {
        out.u16(value);
    }
    out.u64(lba);
    out.u32(nsid);
}

fn read_error(from: &mut PlainReader<'_>) -> Option<ErrorEntry> {
    Some(ErrorEntry {
        number: from.u64()?,
        sq: from.u16()?,
        cid: from.u16()?,
        status: from.u16()?,
        lba: from.u64()?,
        nsid: from.u32()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::COMMANDS;

    /// What a ledger has room for, beside the completions of one call.
    const ROOM: usize = 8 << 10;

    fn state() -> ControllerState {
        let record = include_str!("../tests/golden/nvme-v1.json");
        crate::saved::load(&serde_json::from_str(record).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        write(&state(), 5, &mut bytes);
        let live = Live {
            state: state(),
            failed: 5,
        };
        assert_eq!(read(&bytes).unwrap(), live);
    }

    #[test]
    fn what_is_cut_short_or_of_another_version_is_refused() {
        let mut bytes = Vec::new();
        write(&state(), 0, &mut bytes);
        assert!((0..bytes.len()).all(|len| read(&bytes[..len]).is_err()));
        bytes.push(0);
        assert!(read(&bytes).is_err());
        bytes.pop();
        bytes[0] ^= 1;
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn what_no_controller_can_be_in_is_refused() {
        let mut impossible = state();
        impossible.submission[1].as_mut().unwrap().head = u16::MAX;
        let mut bytes = Vec::new();
        write(&impossible, 0, &mut bytes);
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn a_controller_that_has_all_it_can_have_is_not_too_long() {
        let mut full = state();
        let command = full.commands.iter().flatten().next().copied();
        full.commands = [command; COMMANDS];
        full.namespaces = [full.namespaces[0]; _];
        full.submission = [full.submission[0]; _];
        full.completion = [full.completion[0]; _];
        full.events.requests = [Some(1); _];
        full.errors.entries = [Some(ErrorEntry {
            number: 1,
            sq: 1,
            cid: 1,
            status: 1,
            lba: 1,
            nsid: 1,
        }); _];
        let mut bytes = Vec::new();
        write(&full, 0, &mut bytes);
        assert!(bytes.len() <= ROOM, "{}", bytes.len());
    }
}
