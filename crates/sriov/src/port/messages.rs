//! The two messages, and the answers (`include/uapi/linux/rtnetlink.h`, `if_link.h`; filled in by
//! `rtnl_fill_vfinfo` and read by `do_setvfinfo`).

use std::io;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoMac, VfInfoSpoofCheck,
    VfInfoTrust, VfVlan, VfVlanInfo,
};

use super::{Mac, Port, Setting, Vlan};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;
const ETH_P_8021Q: u16 = 0x8100;

/// Asks for an interface with its virtual functions, without their statistics.
pub(super) fn question(interface: u32, sequence: u32) -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.attributes.push(LinkAttribute::ExtMask(vec![
        LinkExtentMask::Vf,
        LinkExtentMask::SkipStats,
    ]));
    bytes(RouteNetlinkMessage::GetLink(link), sequence, 0)
}

/// Changes one setting of one virtual function. The VLAN by its list, as only that has the kind of tag.
pub(super) fn order(interface: u32, sequence: u32, number: u16, setting: Setting) -> Vec<u8> {
    let number = u32::from(number);
    let setting = match setting {
        Setting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(number, &mac.0)),
        Setting::Vlan(Vlan { id, qos, protocol }) => VfInfo::VlanList(vec![VfVlan::Info(
            VfVlanInfo::new(number, id.into(), qos.into(), protocol.into()),
        )]),
        Setting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(number, on)),
        Setting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(number, on)),
    };
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.attributes
        .push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![setting])]));
    bytes(RouteNetlinkMessage::SetLink(link), sequence, NLM_F_ACK)
}

fn bytes(message: RouteNetlinkMessage, sequence: u32, flags: u16) -> Vec<u8> {
    let payload = NetlinkPayload::InnerMessage(message);
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// What the kernel answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// To another question.
    Other,
    /// An order was carried out.
    Done,
    /// The attributes of an interface.
    Link(&'a [u8]),
}

/// The first message of a datagram, which holds one only, as nothing is dumped.
///
/// # Errors
/// What the kernel says, or that it cannot be understood.
pub(super) fn answer(datagram: &[u8], sequence: u32) -> io::Result<Answer<'_>> {
    let message = NetlinkBuffer::new_checked(datagram).map_err(io::Error::other)?;
    if message.sequence_number() != sequence {
        return Ok(Answer::Other);
    }
    match message.message_type() {
        NLMSG_ERROR => {
            let error = ErrorBuffer::new_checked(message.payload()).map_err(io::Error::other)?;
            match error.code() {
                None => Ok(Answer::Done),
                Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
            }
        }
        RTM_NEWLINK => {
            let link = message.payload().get(IFINFOMSG..);
            link.map(Answer::Link).ok_or_else(short)
        }
        _ => Ok(Answer::Other),
    }
}

/// The settings of virtual function `number`, of an interface's attributes. Read here and not by the
/// crate, to which a switch that a driver does not know (−1) is one that is on, and which refuses an
/// interface whole for one attribute that it does not understand.
pub(super) fn port(attributes: &[u8], number: u16) -> io::Result<Port> {
    let lists = all(attributes, IFLA_VFINFO_LIST)?;
    for list in lists {
        for function in all(list, IFLA_VF_INFO)? {
            let mac = first(function, IFLA_VF_MAC)?;
            if mac.map(|mac| word(mac, 0)).transpose()? != Some(number.into()) {
                continue;
            }
            let mac = mac.and_then(|mac| mac.get(4..10)?.try_into().ok());
            return Ok(Port {
                mac: mac.map(Mac).ok_or_else(short)?,
                vlan: vlan(function)?,
                spoof_check: switch(function, IFLA_VF_SPOOFCHK)?,
                trust: switch(function, IFLA_VF_TRUST)?,
            });
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("it has no virtual function {number}"),
    ))
}

fn vlan(function: &[u8]) -> io::Result<Vlan> {
    let list = first(function, IFLA_VF_VLAN_LIST)?;
    let info = list
        .map(|list| first(list, IFLA_VF_VLAN_INFO))
        .transpose()?;
    let (value, protocol) = if let Some(info) = info.flatten() {
        let protocol = info.get(12..14).and_then(|bytes| bytes.try_into().ok());
        (info, protocol.map(u16::from_be_bytes).ok_or_else(short)?)
    } else {
        let plain = first(function, IFLA_VF_VLAN)?;
        (plain.ok_or_else(short)?, ETH_P_8021Q)
    };
    Ok(Vlan {
        id: word(value, 4)?.try_into().map_err(io::Error::other)?,
        qos: word(value, 8)?.try_into().map_err(io::Error::other)?,
        protocol,
    })
}

/// A driver that does not know leaves −1 there.
fn switch(function: &[u8], kind: u16) -> io::Result<Option<bool>> {
    let value = first(function, kind)?;
    let value = value.map(|value| word(value, 4)).transpose()?;
    Ok(match value {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    })
}

fn all(attributes: &[u8], kind: u16) -> io::Result<Vec<&[u8]>> {
    let mut values = Vec::new();
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<&[u8]> = attribute.map_err(io::Error::other)?;
        if attribute.kind() == kind {
            values.push(attribute.into_inner());
        }
    }
    Ok(values.into_iter().filter_map(payload).collect())
}

/// What is behind an attribute's header; its length counts that and no padding.
fn payload(attribute: &[u8]) -> Option<&[u8]> {
    let length = u16::from_ne_bytes(attribute.get(..2)?.try_into().ok()?);
    attribute.get(4..length.into())
}

fn first(attributes: &[u8], kind: u16) -> io::Result<Option<&[u8]>> {
    Ok(all(attributes, kind)?.into_iter().next())
}

fn word(value: &[u8], at: usize) -> io::Result<u32> {
    let bytes = value
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(short)
}

fn short() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is not of the form that it should have",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    /// As `struct nlmsghdr` and `struct ifinfomsg` have them.
    fn header(len: u32, kind: u16, flags: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(len.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes()); // nlmsg_seq
        bytes.extend(0_u32.to_ne_bytes()); // nlmsg_pid
        bytes.extend([0; 4]); // ifi_family, padding, ifi_type
        bytes.extend(3_u32.to_ne_bytes()); // ifi_index
        bytes.extend([0; 8]); // ifi_flags, ifi_change
        bytes
    }

    /// As `struct nlattr` has it, padded to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// `struct ifla_vf_mac`: 4 bytes and 32.
    fn mac(number: u32, mac: Mac) -> Vec<u8> {
        let mut bytes = words(&[number]);
        bytes.extend(mac.0);
        bytes.resize(36, 0);
        attribute(IFLA_VF_MAC, &bytes)
    }

    /// `struct ifla_vf_vlan_info`, 16 bytes; the ethertype in network order.
    fn vlan_list(number: u32, id: u32, qos: u32) -> Vec<u8> {
        let mut bytes = words(&[number, id, qos]);
        bytes.extend([0x88, 0xa8, 0, 0]);
        attribute(IFLA_VF_VLAN_LIST, &attribute(1, &bytes))
    }

    #[test]
    fn a_question_is_what_the_kernels_header_says() {
        let mut expected = header(40, 18, 1); // RTM_GETLINK, NLM_F_REQUEST
        // IFLA_EXT_MASK: RTEXT_FILTER_VF and RTEXT_FILTER_SKIP_STATS
        expected.extend(attribute(29, &9_u32.to_ne_bytes()));
        assert_eq!(question(3, 7), expected);
    }

    #[test]
    fn an_order_is_what_the_kernels_header_says() {
        let vlan = Vlan {
            id: 100,
            qos: 5,
            protocol: 0x88a8,
        };
        for (setting, value) in [
            (Setting::Mac(MAC), mac(2, MAC)),
            (Setting::Vlan(vlan), vlan_list(2, 100, 5)),
            (Setting::SpoofCheck(false), attribute(4, &words(&[2, 0]))),
            (Setting::Trust(true), attribute(9, &words(&[2, 1]))),
        ] {
            let list = attribute(22, &attribute(1, &value));
            let len = u32::try_from(32 + list.len()).unwrap();
            let mut expected = header(len, 19, 5); // RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK
            expected.extend(list);
            assert_eq!(order(3, 7, 2, setting), expected, "{setting}");
        }
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let mut message = header(36, NLMSG_ERROR, 0);
        message.extend([0; 4]);
        assert_eq!(answer(&message, 7).unwrap(), Answer::Done);
        assert_eq!(answer(&message, 8).unwrap(), Answer::Other);
        message[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        let error = answer(&message, 7).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(1));
        assert!(answer(&message[..10], 7).is_err());
        assert!(answer(&[], 7).is_err());
    }

    #[test]
    fn the_settings_of_one_function_are_found() {
        let function = |number: u32, address, switches: [u32; 2]| {
            let attributes = [
                mac(number, address),
                vlan_list(number, 9, 3),
                attribute(IFLA_VF_SPOOFCHK, &words(&[number, switches[0]])),
                // One that is not known here.
                attribute(99, &[1, 2, 3]),
                attribute(IFLA_VF_TRUST, &words(&[number, switches[1]])),
            ];
            attribute(IFLA_VF_INFO, &attributes.concat())
        };
        let other = Mac([2, 0, 0, 0, 0, 9]);
        let list = [function(0, other, [0, 1]), function(1, MAC, [1, u32::MAX])].concat();
        let link = [attribute(3, b"eth0\0"), attribute(22, &list)].concat();
        let expected = Port {
            mac: MAC,
            vlan: Vlan {
                id: 9,
                qos: 3,
                protocol: 0x88a8,
            },
            spoof_check: Some(true),
            trust: None,
        };
        assert_eq!(port(&link, 1).unwrap(), expected);
        assert_eq!(port(&link, 0).unwrap().trust, Some(true));
        assert_eq!(port(&link, 2).unwrap_err().kind(), io::ErrorKind::NotFound);
        // Cut anywhere, it is refused or what is left of it; it never panics.
        for len in 0..link.len() {
            let _ = port(&link[..len], 1);
        }
    }

    #[test]
    fn a_vlan_of_an_older_kernel_is_a_customers() {
        let attributes = [mac(0, MAC), attribute(IFLA_VF_VLAN, &words(&[0, 7, 1]))];
        let link = attribute(22, &attribute(IFLA_VF_INFO, &attributes.concat()));
        let vlan = port(&link, 0).unwrap().vlan;
        assert_eq!((vlan.id, vlan.qos, vlan.protocol), (7, 1, 0x8100));
    }
}
