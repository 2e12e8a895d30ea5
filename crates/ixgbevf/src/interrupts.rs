//! From a cause to a message: VTEICR and its siblings, VTIVAR, and throttling by VTEITR
//! (datasheet section 7.3).
//!
//! A vector's message is sent when a cause arises or is unmasked, once for each such edge. Sending
//! clears the cause (VTEIAC) and masks the vector (VTEIAM) when the driver said so. It is delayed
//! to keep the interval of VTEITR after the message before: interrupts are what a virtual machine
//! pays most for.

use std::time::Duration;

use device::Access;

use crate::spec::registers::{Register, VECTOR_MASK, VECTORS, ivar, vteitr};
use crate::state::InterruptState;
use crate::stats::VectorCounters;

/// The running intervals. They are lost with the engine, which costs at most an early interrupt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Throttle {
    not_before: [Option<Duration>; VECTORS],
}

impl InterruptState {
    /// Reads one of the interrupt registers.
    pub(crate) fn read(&mut self, register: Register) -> u32 {
        match register {
            Register::Vteicr => {
                let causes = self.causes;
                self.clear_causes(causes);
                causes
            }
            Register::Vteics => self.causes,
            Register::Vteims | Register::Vteimc => self.enabled,
            Register::Vteiac => self.auto_clear,
            Register::Vteiam => self.auto_mask,
            Register::Vtivar(n) => self.ivar[n],
            Register::VtivarMisc => self.ivar_misc,
            Register::Vteitr(vector) => self.throttle[vector],
            _ => 0,
        }
    }

    /// Writes one of the interrupt registers; the caller delivers what became due.
    pub(crate) fn write(
        &mut self,
        register: Register,
        value: u32,
        throttle: &mut Throttle,
        counters: &mut [VectorCounters; VECTORS],
    ) {
        let vectors = value & VECTOR_MASK;
        match register {
            Register::Vteicr => self.clear_causes(vectors),
            Register::Vteics => self.cause(vectors),
            Register::Vteims => {
                self.enabled |= vectors;
                self.unsent |= self.causes & vectors;
                let rearmed = self.awaiting_rearm & vectors;
                self.awaiting_rearm &= !vectors;
                for (_, counter) in each(rearmed, counters) {
                    counter.rearmed += 1;
                }
            }
            Register::Vteimc => {
                self.enabled &= !vectors;
                self.awaiting_rearm &= !vectors;
            }
            Register::Vteiac => self.auto_clear = vectors,
            Register::Vteiam => self.auto_mask = vectors,
            Register::Vtivar(n) => self.ivar[n] = value & ivar::MASK,
            Register::VtivarMisc => self.ivar_misc = value & u32::from(ivar::BYTE),
            Register::Vteitr(vector) => {
                self.throttle[vector] = value & vteitr::INTERVAL;
                if value & vteitr::CNT_WDIS == 0 {
                    throttle.not_before[vector] = None;
                }
            }
            _ => {}
        }
    }

    /// Sets causes.
    pub(crate) fn cause(&mut self, vectors: u32) {
        self.causes |= vectors & VECTOR_MASK;
        self.unsent |= vectors & VECTOR_MASK;
    }

    /// The cause of a receive queue's progress.
    pub(crate) fn rx_cause(&mut self, queue: usize) {
        self.cause_of(self.ivar[queue / 2], 16 * (queue % 2));
    }

    /// The cause of a transmit queue's progress.
    pub(crate) fn tx_cause(&mut self, queue: usize) {
        self.cause_of(self.ivar[queue / 2], 16 * (queue % 2) + 8);
    }

    /// The cause of mailbox and link.
    pub(crate) fn misc_cause(&mut self) {
        self.cause_of(self.ivar_misc, 0);
    }

    fn cause_of(&mut self, register: u32, shift: usize) {
        let byte = (register >> shift & 0xff) as u8;
        if byte & ivar::VALID != 0 {
            self.cause(1 << (byte & ivar::VECTOR));
        }
    }

    fn clear_causes(&mut self, vectors: u32) {
        self.causes &= !vectors;
        self.unsent &= !vectors;
    }

    /// Vectors whose message is due but for their interval.
    pub(crate) fn due(&self) -> u32 {
        self.unsent & self.causes & self.enabled
    }

    fn interval(&self, vector: usize) -> Duration {
        let units = self.throttle[vector] >> vteitr::INTERVAL_SHIFT;
        Duration::from_nanos(u64::from(units) * vteitr::UNIT_NANOS)
    }
}

impl Throttle {
    /// Sends the messages that are due and not throttled.
    pub(crate) fn deliver(
        &mut self,
        state: &mut InterruptState,
        counters: &mut [VectorCounters; VECTORS],
        access: &Access<'_>,
    ) {
        if state.due() == 0 {
            return;
        }
        let now = access.clock.now();
        for (vector, counter) in each(state.due(), counters) {
            if self.wait(state, vector, now).is_some() {
                continue;
            }
            self.not_before[vector] = Some(now.saturating_add(state.interval(vector)));
            let bit = 1 << vector;
            state.unsent &= !bit;
            state.causes &= !(bit & state.auto_clear);
            let masked = bit & state.auto_mask;
            state.enabled &= !masked;
            state.awaiting_rearm |= masked;
            counter.raised += 1;
            access.interrupts.signal(vector_number(vector));
        }
    }

    /// How long until a message that is due may be sent.
    pub(crate) fn next(&self, state: &InterruptState, now: Duration) -> Option<Duration> {
        (0..VECTORS)
            .filter(|vector| state.due() >> vector & 1 != 0)
            .filter_map(|vector| self.wait(state, vector, now))
            .min()
    }

    /// Sends a message for every vector that the driver may be waiting for: those that are enabled,
    /// as if their cause had arisen again, and those that a message masked, since that message may
    /// be the one that was lost.
    pub(crate) fn reraise(
        &mut self,
        state: &mut InterruptState,
        counters: &mut [VectorCounters; VECTORS],
        access: &Access<'_>,
    ) {
        *self = Self::default();
        let (enabled, lost) = (state.enabled, state.awaiting_rearm);
        for (vector, counter) in each(lost & !enabled, counters) {
            counter.raised += 1;
            access.interrupts.signal(vector_number(vector));
        }
        for (_, counter) in each(lost | enabled, counters) {
            counter.reraised += 1;
        }
        state.cause(enabled);
        self.deliver(state, counters, access);
    }

    /// Forgets the running intervals.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// How long `vector` has still to wait; `None` if it need not.
    fn wait(&self, state: &InterruptState, vector: usize, now: Duration) -> Option<Duration> {
        let wait = self.not_before[vector]?.checked_sub(now)?;
        // An interval that was shortened meanwhile counts at once.
        let wait = wait.min(state.interval(vector));
        (!wait.is_zero()).then_some(wait)
    }
}

fn each(
    vectors: u32,
    counters: &mut [VectorCounters; VECTORS],
) -> impl Iterator<Item = (usize, &mut VectorCounters)> {
    counters
        .iter_mut()
        .enumerate()
        .filter(move |(vector, _)| vectors >> vector & 1 != 0)
}

fn vector_number(vector: usize) -> u16 {
    u16::try_from(vector).expect("there are three vectors")
}
