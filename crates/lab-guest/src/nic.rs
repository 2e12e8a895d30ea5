//! Settings of an interface that busybox knows nothing of: what `ethtool -G`, `-C` and `-K` set, by the
//! same messages (`include/uapi/linux/ethtool_netlink.h`, `genetlink.h`).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use netlink_packet_core::{ErrorBuffer, NetlinkBuffer, NlaBuffer, NlasIterator};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// For attributes with others in them.
const NLA_F_NESTED: u16 = 1 << 15;
/// The family that tells of the others, and what it is asked.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Bytes of `struct nlmsghdr`, and of `struct genlmsghdr`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

const FEATURES_SET: u8 = 12;
const RINGS_SET: u8 = 16;
const COALESCE_SET: u8 = 20;
/// The first attribute of each message: which interface.
const A_HEADER: u16 = 1;
const A_HEADER_DEV_NAME: u16 = 2;
const A_RINGS_RX: u16 = 6;
const A_RINGS_TX: u16 = 9;
const A_COALESCE_RX_USECS: u16 = 2;
const A_FEATURES_WANTED: u16 = 3;
const A_BITSET_BITS: u16 = 3;
const A_BITSET_BITS_BIT: u16 = 1;
const A_BITSET_BIT_NAME: u16 = 2;
const A_BITSET_BIT_VALUE: u16 = 3;

/// A driver that allocates rings anew takes a while, on an emulated processor.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct NicOptions {
    /// The interface.
    interface: String,
    /// Descriptors in each ring for what comes.
    #[arg(long)]
    rx_ring: Option<u32>,
    /// Descriptors in each ring for what is sent.
    #[arg(long)]
    tx_ring: Option<u32>,
    /// Microseconds between two interrupts at least; 1 lets the driver choose.
    #[arg(long)]
    rx_usecs: Option<u32>,
    /// A feature by the kernel's name to have, `tx-tcp-segmentation` for one; several times.
    #[arg(long, value_name = "FEATURE")]
    on: Vec<String>,
    /// A feature not to have.
    #[arg(long, value_name = "FEATURE")]
    off: Vec<String>,
}

/// Sets what is asked for.
pub(crate) fn set(options: &NicOptions) -> Result<()> {
    let ethtool = Ethtool::open().context("the kernel's ethtool family")?;
    let name = &options.interface;
    let rings = [(A_RINGS_RX, options.rx_ring), (A_RINGS_TX, options.tx_ring)];
    let rings = rings.map(|(kind, count)| count.map(|count| number(kind, count)));
    let rings: Vec<u8> = rings.into_iter().flatten().flatten().collect();
    if !rings.is_empty() {
        let set = ethtool.order(RINGS_SET, name, &rings);
        set.with_context(|| format!("the rings of {name}"))?;
    }
    if let Some(usecs) = options.rx_usecs {
        let set = ethtool.order(COALESCE_SET, name, &number(A_COALESCE_RX_USECS, usecs));
        set.with_context(|| format!("the interrupts of {name}"))?;
    }
    let on = options.on.iter().map(|feature| (feature, true));
    let off = options.off.iter().map(|feature| (feature, false));
    let bits: Vec<u8> = on.chain(off).flat_map(|(name, on)| bit(name, on)).collect();
    if !bits.is_empty() {
        let bits = nested(A_FEATURES_WANTED, &nested(A_BITSET_BITS, &bits));
        let set = ethtool.order(FEATURES_SET, name, &bits);
        set.with_context(|| format!("the features of {name}"))?;
    }
    Ok(())
}

struct Ethtool {
    socket: OwnedFd,
    family: u16,
}

impl Ethtool {
    fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
        let name = text(CTRL_ATTR_FAMILY_NAME, "ethtool");
        let question = message(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, &name);
        let answer = ask(&socket, &question)?;
        let attributes = answer.get(GENERIC..).unwrap_or_default();
        for attribute in NlasIterator::new(attributes) {
            let attribute: NlaBuffer<&[u8]> = attribute.map_err(io::Error::other)?;
            if attribute.kind() == CTRL_ATTR_FAMILY_ID {
                let id = attribute.value().try_into().map_err(io::Error::other)?;
                let family = u16::from_ne_bytes(id);
                return Ok(Self { socket, family });
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Has `command` carried out on an interface.
    fn order(&self, command: u8, interface: &str, attributes: &[u8]) -> io::Result<()> {
        let mut all = nested(A_HEADER, &text(A_HEADER_DEV_NAME, interface));
        all.extend(attributes);
        let order = message(self.family, NLM_F_ACK, command, &all);
        ask(&self.socket, &order).map(drop)
    }
}

/// What is answered: nothing more than that, if it is an order.
fn ask(socket: &OwnedFd, request: &[u8]) -> io::Result<Vec<u8>> {
    send(socket, request, SendFlags::empty())?;
    loop {
        let mut datagram = vec![0; 64 << 10];
        let (len, _) = recv(socket, &mut datagram[..], RecvFlags::empty())?;
        let answer = NetlinkBuffer::new_checked(&datagram[..len]).map_err(io::Error::other)?;
        if answer.message_type() != NLMSG_ERROR {
            // An order to set features is answered twice.
            if request[6] & 4 != 0 {
                continue;
            }
            return Ok(answer.payload().to_vec());
        }
        let error = ErrorBuffer::new_checked(answer.payload()).map_err(io::Error::other)?;
        return match error.code() {
            None => Ok(Vec::new()),
            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
        };
    }
}

fn message(family: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and sender: the only request on its socket.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_ne_bytes())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn bit(name: &str, on: bool) -> Vec<u8> {
    let mut bit = text(A_BITSET_BIT_NAME, name);
    if on {
        bit.extend(attribute(A_BITSET_BIT_VALUE, &[]));
    }
    nested(A_BITSET_BITS_BIT, &bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the kernel that the tests run on: `lo` has no rings, and not everybody may ask for some.
    #[test]
    fn the_kernel_understands_what_it_is_asked() {
        let options = NicOptions {
            interface: "lo".into(),
            rx_ring: Some(64),
            tx_ring: Some(64),
            rx_usecs: None,
            on: Vec::new(),
            off: Vec::new(),
        };
        let error = set(&options).unwrap_err();
        let code = error.root_cause().downcast_ref::<io::Error>();
        let code = code.and_then(io::Error::raw_os_error);
        assert!(matches!(code, Some(1 | 95)), "{error:#}");
    }
}
