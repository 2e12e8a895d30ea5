//! Negotiation: `VFIO_USER_VERSION`.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use crate::wire::{self, Version};
use crate::{MAX_DATA_XFER_SIZE, MAX_DMA_MAPS, MAX_MSG_FDS};

/// The only major version there is, and the minor one that QEMU proposes; it takes nothing above
/// what it proposes, and the reply may be below.
const VERSION: Version = Version { major: 0, minor: 0 };

/// DMA ranges are whole multiples of this.
const PAGE_SIZES: u64 = 4096;

/// What the two sides agreed on.
///
/// Plain data: whoever takes over a connection amid its life gives it to
/// [`Server::serve_stream`](crate::Server::serve_stream).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Negotiated {
    /// Most bytes of data in one message, either way; 1 to [`MAX_DATA_XFER_SIZE`].
    pub max_data_xfer_size: u32,
    /// File descriptors that the client takes in one message.
    pub client_max_msg_fds: u32,
    /// The client may send `VFIO_USER_REGION_WRITE_MULTI`.
    pub write_multiple: bool,
}

/// The JSON of either side. What is not known is ignored, as the specification has capabilities
/// come and go.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Data {
    #[serde(default)]
    capabilities: Capabilities,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Capabilities {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_msg_fds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_data_xfer_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_dma_maps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pgsizes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_multiple: Option<bool>,
}

/// Answers a proposal: what was agreed on, with the body of the reply appended to `reply`. Several writes in
/// one message are agreed on only with `offer_multiple`.
///
/// # Errors
/// `EINVAL` for a version that is not spoken here or capabilities that make no sense. The
/// connection is of no use then.
pub(crate) fn negotiate(
    proposal: &[u8],
    offer_multiple: bool,
    reply: &mut Vec<u8>,
) -> Result<Negotiated, Errno> {
    let (version, data) = wire::take::<Version>(proposal)?;
    if version.major != VERSION.major {
        return Err(Errno::INVAL);
    }
    let theirs = parse(data)?.capabilities;
    let negotiated = Negotiated {
        max_data_xfer_size: theirs
            .max_data_xfer_size
            .unwrap_or(MAX_DATA_XFER_SIZE)
            .min(MAX_DATA_XFER_SIZE),
        client_max_msg_fds: theirs.max_msg_fds.unwrap_or(1),
        write_multiple: offer_multiple && theirs.write_multiple.unwrap_or(false),
    };
    if negotiated.max_data_xfer_size == 0 {
        return Err(Errno::INVAL);
    }
    let ours = Data {
        capabilities: Capabilities {
            max_msg_fds: u32::try_from(MAX_MSG_FDS).ok(),
            max_data_xfer_size: Some(MAX_DATA_XFER_SIZE),
            max_dma_maps: u64::try_from(MAX_DMA_MAPS).ok(),
            pgsizes: Some(PAGE_SIZES),
            write_multiple: negotiated.write_multiple.then_some(true),
        },
    };
    reply.extend_from_slice(VERSION.as_bytes());
    serde_json::to_writer(&mut *reply, &ours).map_err(|_| Errno::IO)?;
    reply.push(0);
    Ok(negotiated)
}

/// The data after the version: none, or JSON and a NUL.
fn parse(data: &[u8]) -> Result<Data, Errno> {
    match data.split_last() {
        None => Ok(Data::default()),
        Some((0, json)) => serde_json::from_slice(json).map_err(|_| Errno::INVAL),
        Some(_) => Err(Errno::INVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn propose(major: u16, minor: u16, data: &[u8]) -> Result<(Negotiated, String), Errno> {
        let proposal = [Version { major, minor }.as_bytes(), data].concat();
        let mut reply = vec![];
        let negotiated = negotiate(&proposal, true, &mut reply)?;
        assert_eq!(reply[..4], [0; 4], "the reply is version 0.0");
        assert_eq!(reply.pop(), Some(0));
        Ok((negotiated, String::from_utf8(reply.split_off(4)).unwrap()))
    }

    #[test]
    fn what_qemu_proposes_is_answered_within_its_bounds() {
        let json = br#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16,
            "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "write_multiple": true,
            "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}}}"#;
        let (negotiated, reply) = propose(0, 0, &[json, &b"\0"[..]].concat()).unwrap();
        let expected = Negotiated {
            max_data_xfer_size: 1 << 20,
            client_max_msg_fds: 16,
            write_multiple: true,
        };
        assert_eq!(negotiated, expected);
        // QEMU refuses more than 16 descriptors (VFIO_USER_MAX_MAX_FDS).
        assert_eq!(
            reply,
            r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}"#
        );
    }

    #[test]
    fn what_is_not_offered_is_not_agreed_on() {
        let json = b"\0\0\0\0{\"capabilities\": {\"write_multiple\": true}}\0";
        let mut reply = vec![];
        let negotiated = negotiate(json, false, &mut reply).unwrap();
        assert!(!negotiated.write_multiple);
        assert!(!String::from_utf8_lossy(&reply).contains("write_multiple"));
    }

    #[test]
    fn without_data_the_defaults_of_the_specification_hold() {
        let expected = Negotiated {
            max_data_xfer_size: 1 << 20,
            client_max_msg_fds: 1,
            write_multiple: false,
        };
        for data in [&b""[..], b"{}\0", b"{\"capabilities\": {}}\0"] {
            let (negotiated, reply) = propose(0, 1, data).unwrap();
            assert_eq!(negotiated, expected);
            assert!(!reply.contains("write_multiple"), "never proposed");
        }
    }

    #[test]
    fn the_smaller_transfer_size_holds() {
        for (theirs, agreed) in [(4, 4), (u32::MAX, 1 << 20)] {
            let json = format!("{{\"capabilities\":{{\"max_data_xfer_size\":{theirs}}}}}\0");
            let (negotiated, _) = propose(0, 0, json.as_bytes()).unwrap();
            assert_eq!(negotiated.max_data_xfer_size, agreed);
        }
    }
}
