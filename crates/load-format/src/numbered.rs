//! The payload of a numbered, time-stamped packet (UDP either way, ICMP echo from the peer).

use thiserror::Error;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Content;

/// What a packet says of itself and of the other direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// Which run of the sender this is: another value means that the numbers start again.
    pub stream: u32,
    /// Number of this packet, from 0.
    pub number: u64,
    /// When it was sent, in nanoseconds of the sender's clock.
    pub sent_nanos: u64,
    /// What the sender has received so far.
    pub seen: Option<Seen>,
}

/// The newest packet that the sender has received from the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub number: u64,
    /// How long before sending it was received, in nanoseconds of the sender's clock.
    pub age_nanos: u64,
}

/// Why a payload is not a good numbered packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotNumbered {
    /// Too short or without the magic: someone else's packet, or badly damaged.
    #[error("not one of the load's packets: no magic number where it should be")]
    Foreign,
    /// One of ours, damaged on the way.
    #[error("packet {number} is damaged: its filling does not belong to its header")]
    Corrupt {
        /// The number it claims.
        number: u64,
    },
}

/// On the wire; all fields big endian, the rest of the payload filled from the header's values.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    stream: U32,
    number: U64,
    sent_nanos: U64,
    /// `u64::MAX`: nothing received yet.
    seen_number: U64,
    seen_age_nanos: U64,
}

const MAGIC: [u8; 4] = *b"vfNo";
const NOTHING_SEEN: u64 = u64::MAX;

impl Numbered {
    /// Shortest payload, in bytes.
    pub const MIN_LEN: usize = size_of::<Header>();

    /// Fills all of `payload`: the header, then bytes that depend on it.
    ///
    /// # Panics
    ///
    /// If `payload` is shorter than [`MIN_LEN`](Self::MIN_LEN).
    pub fn write(&self, payload: &mut [u8]) {
        let header = Header {
            magic: MAGIC,
            stream: self.stream.into(),
            number: self.number.into(),
            sent_nanos: self.sent_nanos.into(),
            seen_number: self.seen.map_or(NOTHING_SEEN, |seen| seen.number).into(),
            seen_age_nanos: self.seen.map_or(0, |seen| seen.age_nanos).into(),
        };
        let (head, filling) = payload.split_at_mut(Self::MIN_LEN);
        head.copy_from_slice(header.as_bytes());
        header.filling().fill(0, filling);
    }

    /// Reads a payload and checks its filling.
    ///
    /// # Errors
    ///
    /// [`NotNumbered`] if it is not one of ours or was damaged.
    pub fn read(payload: &[u8]) -> Result<Self, NotNumbered> {
        let (header, filling) =
            Header::ref_from_prefix(payload).map_err(|_| NotNumbered::Foreign)?;
        if header.magic != MAGIC {
            return Err(NotNumbered::Foreign);
        }
        let seen_number = header.seen_number.get();
        let packet = Self {
            stream: header.stream.get(),
            number: header.number.get(),
            sent_nanos: header.sent_nanos.get(),
            seen: (seen_number != NOTHING_SEEN).then(|| Seen {
                number: seen_number,
                age_nanos: header.seen_age_nanos.get(),
            }),
        };
        if header.filling().check(0, filling).wrong > 0 {
            return Err(NotNumbered::Corrupt {
                number: packet.number,
            });
        }
        Ok(packet)
    }
}

impl Header {
    /// Depends on every bit of the header, so that the header of one packet over the filling of
    /// another (a page that was not carried along, say) does not pass.
    fn filling(&self) -> Content {
        Content::of_header(self.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet() -> impl Strategy<Value = Numbered> {
        let seen = prop::option::of(
            (0..NOTHING_SEEN, any::<u64>())
                .prop_map(|(number, age_nanos)| Seen { number, age_nanos }),
        );
        (any::<u32>(), any::<u64>(), any::<u64>(), seen).prop_map(
            |(stream, number, sent_nanos, seen)| Numbered {
                stream,
                number,
                sent_nanos,
                seen,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(packet in packet(), len in Numbered::MIN_LEN..1500) {
            let mut payload = vec![0; len];
            packet.write(&mut payload);
            prop_assert_eq!(Numbered::read(&payload), Ok(packet));
        }

        #[test]
        fn any_damage_is_noticed(packet in packet(), at in any::<prop::sample::Index>()) {
            let mut payload = vec![0; 200];
            packet.write(&mut payload);
            payload[at.index(200)] ^= 1;
            prop_assert!(Numbered::read(&payload).is_err());
        }

        #[test]
        fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Numbered::read(&bytes).is_err());
        }
    }
}
