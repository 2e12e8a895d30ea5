//! Where bytes of a stranger come in, for fuzzing and property tests.

use std::net::Ipv4Addr;

use crate::peer::{Host, Ledger, PeerConfig};
use crate::{Deframer, MAX_FRAME};

/// Treats `bytes` as what came over a wire to the built-in peer: cuts it into frames as a
/// [`Wire`](crate::Wire) does, gives them to the peer's protocols, lets time pass, and gives back
/// how many frames the peer sent in return. Must never panic.
pub fn bytes_to_the_peer(bytes: &[u8]) -> usize {
    /// Between two frames: enough for a few of the peer's own to become due.
    const STEP_NANOS: u64 = 1_500_000;

    let config = PeerConfig::new("", Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let mut now = STEP_NANOS;
    let mut host = Host::new(config, now);
    let mut ledger = Ledger::new(now);
    let mut deframer = Deframer::default();
    let mut sent = 0;
    for piece in bytes.chunks(MAX_FRAME) {
        deframer.spare()[..piece.len()].copy_from_slice(piece);
        deframer.filled(piece.len());
        loop {
            match deframer.frame() {
                Err(_) => return sent,
                Ok(None) => break,
                Ok(Some(frame)) => host.receive(frame, now, &mut ledger),
            }
            deframer.consume();
            now += STEP_NANOS;
            host.advance(now, &mut ledger);
            host.drain(|_| sent += 1);
        }
    }
    sent
}
