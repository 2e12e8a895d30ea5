//! What comes over a network.

use load_format::Numbered;
use uplink::Deframer;

/// A wire's bytes, in pieces whose length is the first byte: how they are cut must not matter.
///
/// # Panics
/// When it does.
pub fn frames(data: &[u8]) {
    if let [piece, stream @ ..] = data {
        let cut = frames_of(stream, usize::from(*piece) + 1);
        assert_eq!(cut, frames_of(stream, usize::MAX));
    }
}

/// The frames in `stream`, and the length for which it was given up, if it was.
fn frames_of(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<u32>) {
    let mut frames = Vec::new();
    let mut deframer = Deframer::default();
    let mut rest = stream;
    while !rest.is_empty() {
        let spare = deframer.spare();
        let (now, later) = rest.split_at(piece.min(rest.len()).min(spare.len()));
        assert!(!now.is_empty(), "no room, and no frame");
        spare[..now.len()].copy_from_slice(now);
        deframer.filled(now.len());
        rest = later;
        loop {
            match deframer.frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(too_long) => return (frames, Some(too_long.length)),
            }
            deframer.consume();
        }
    }
    (frames, None)
}

/// A wire's bytes, to the built-in peer.
pub fn peer(data: &[u8]) {
    uplink::far_side::bytes_to_the_peer(data);
}

/// The payload of a numbered packet.
///
/// # Panics
/// When what was read does not read the same once it is written.
pub fn load_packet(data: &[u8]) {
    if let Ok(packet) = Numbered::read(data) {
        let mut written = vec![0; data.len()];
        packet.write(&mut written);
        assert_eq!(Numbered::read(&written), Ok(packet));
    }
}
