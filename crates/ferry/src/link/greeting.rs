//! The first words: which version of the conversation both sides know.
//!
//! Their form is frozen. A side that is newer by years must find out from them that it is, so what
//! is not known in them is ignored, and nothing known is ever taken out.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Link, LinkError, Message, Stream, printable};

/// The oldest version of the conversation that is still spoken.
pub const OLDEST: u32 = 8;
/// The newest one, spoken where the other side knows it.
pub const NEWEST: u32 = 8;
/// The last one without a greeting: it began with `check`, and a number in it.
const LAST_WITHOUT: u32 = 7;
/// How long a side that is refused may talk on before it reads that.
const PARTING: Duration = Duration::from_secs(1);
/// A first message is not longer, in bytes. A `check` of version 7 is in it.
const MAX_GREETING: usize = 64 << 10;

/// Versions of the conversation that a side knows, all from the oldest to the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Versions {
    /// This vferry's.
    pub const OURS: Self = Self {
        oldest: OLDEST,
        newest: NEWEST,
    };

    /// The newest that both know.
    ///
    /// # Errors
    /// [`LinkError::Version`], which says whose vferry is too old.
    pub fn agree(self, theirs: Self) -> Result<u32, LinkError> {
        let newest = self.newest.min(theirs.newest);
        if newest < self.oldest.max(theirs.oldest) {
            return Err(LinkError::Version { ours: self, theirs });
        }
        Ok(newest)
    }

    /// Which host's vferry has to be updated, as seen from this side.
    pub(super) fn older(self, theirs: Self) -> &'static str {
        if theirs.newest < self.newest {
            "the other host"
        } else {
            "this host"
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { oldest: 0, newest } => write!(f, "version {newest} or older"),
            Self { oldest, newest } if oldest == newest => write!(f, "version {newest}"),
            Self { oldest, newest } => write!(f, "versions {oldest} to {newest}"),
        }
    }
}

/// What both sides say first.
#[derive(Debug, Serialize)]
struct Hello {
    message: &'static str,
    oldest: u32,
    newest: u32,
}

/// What may come first.
#[derive(Debug, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
enum First {
    Hello {
        oldest: u32,
        newest: u32,
    },
    /// Of [`LAST_WITHOUT`] and before.
    Check {
        protocol: u32,
    },
    Abort {
        reason: String,
    },
}

impl Link {
    /// The source's beginning: says which versions it knows and hears which the destination does,
    /// within `limit` each.
    ///
    /// # Errors
    /// [`LinkError::Version`] if there is none that both know, or another.
    pub fn greet(stream: Box<dyn Stream>, limit: Duration) -> Result<Self, LinkError> {
        Self::greet_as(Versions::OURS, stream, limit)
    }

    /// The destination's beginning, the other end of [`greet`](Self::greet).
    ///
    /// # Errors
    /// As there; the source has been told.
    pub fn welcome(stream: Box<dyn Stream>, limit: Duration) -> Result<Self, LinkError> {
        Self::welcome_as(Versions::OURS, stream, limit)
    }

    pub(super) fn greet_as(
        ours: Versions,
        stream: Box<dyn Stream>,
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let mut link = Self::agreed(stream, ours.newest);
        link.send_hello(ours, limit)?;
        let theirs = match link.receive_first(limit)? {
            First::Hello { oldest, newest } => Versions { oldest, newest },
            First::Check { .. } => return Err(LinkError::Unexpected("check".into())),
            First::Abort { reason } if is_unknown(&reason) => Versions {
                oldest: 0,
                newest: LAST_WITHOUT,
            },
            First::Abort { reason } => return Err(LinkError::Aborted(printable(&reason))),
        };
        link.version = ours.agree(theirs)?;
        Ok(link)
    }

    pub(super) fn welcome_as(
        ours: Versions,
        stream: Box<dyn Stream>,
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let mut link = Self::agreed(stream, ours.newest);
        let first = link.receive_first(limit);
        if let Err(LinkError::Protected) = first {
            // It understands by the first byte that this is no TLS.
            let reason = "the destination's vferry speaks no TLS".into();
            link.send(&Message::Abort { reason }, limit)?;
            link.part(PARTING);
        }
        let theirs = match first? {
            First::Hello { oldest, newest } => Versions { oldest, newest },
            First::Check { protocol } => {
                let theirs = Versions {
                    oldest: protocol,
                    newest: protocol,
                };
                let reason = format!(
                    "the destination's vferry speaks {ours} of the control link, the source's \
                     {theirs}: update vferry on the source's host"
                );
                link.send(&Message::Abort { reason }, limit)?;
                return Err(LinkError::Version { ours, theirs });
            }
            First::Abort { reason } => return Err(LinkError::Aborted(printable(&reason))),
        };
        // In any case, so that the source can say who is too old as well.
        link.send_hello(ours, limit)?;
        link.version = ours.agree(theirs)?;
        Ok(link)
    }

    fn send_hello(&mut self, ours: Versions, limit: Duration) -> Result<(), LinkError> {
        let hello = Hello {
            message: "hello",
            oldest: ours.oldest,
            newest: ours.newest,
        };
        self.send_body(&hello, limit)
    }

    fn receive_first(&mut self, limit: Duration) -> Result<First, LinkError> {
        let body = self.receive_body(MAX_GREETING, limit)?;
        // It quotes the other side's own words.
        serde_json::from_slice(&body)
            .map_err(|error| LinkError::Malformed(printable(&error.to_string())))
    }
}

/// Whether that is how a vferry without greetings answers one: serde's words for what it does not
/// know.
fn is_unknown(reason: &str) -> bool {
    reason.contains("unknown variant `hello`")
}

#[cfg(test)]
mod tests;
