//! What the link had heard, said again to a driver that starts a fresh function.

use std::time::Duration;

use device::FrameLink;

/// When, from the moment on that the driver receives. It does so before it sees its link come up,
/// and what it hears until then the guest may forget.
const AFTER: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// The state of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reminder {
    /// The driver knows all there is to know.
    #[default]
    NotNeeded,
    /// The driver does not receive yet.
    Waits,
    /// Some was said.
    Begun {
        /// When the driver began to receive.
        since: Duration,
        /// How often it was said.
        times: usize,
    },
}

impl Reminder {
    /// Says again what is due, and how many frames that is; `receives` if the driver does.
    pub(crate) fn run(&mut self, link: &mut dyn FrameLink, receives: bool, now: Duration) -> u64 {
        if *self == Self::Waits && receives {
            *self = Self::Begun {
                since: now,
                times: 0,
            };
        }
        if let Self::Begun { since, times } = self
            && let Some(after) = AFTER.get(*times)
            && now >= *since + *after
        {
            *times += 1;
            let is_last = *times == AFTER.len();
            if is_last {
                *self = Self::NotNeeded;
            }
            return link.say_again(is_last) as u64;
        }
        0
    }

    /// Whether there is anything to be run for, now or later.
    pub(crate) fn is_needed(&self) -> bool {
        *self != Self::NotNeeded
    }

    /// How long until it is to be run again.
    pub(crate) fn next(&self, now: Duration) -> Option<Duration> {
        let Self::Begun { since, times } = self else {
            return None;
        };
        let after = AFTER.get(*times)?;
        Some((*since + *after).saturating_sub(now))
    }
}
