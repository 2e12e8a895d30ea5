//! How a physical function treats the traffic of one of its virtual ones.

mod messages;
mod netlink;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub(crate) use netlink::Netlink;

/// A MAC address; all zero where the host has set none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A VLAN that the physical function puts all traffic into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// 0 (none) to 4094.
    pub id: u16,
    /// Priority, 0 to 7.
    pub qos: u8,
    /// Ethertype of the tag: 0x8100 or, for service tags, 0x88a8.
    pub protocol: u16,
}

impl Vlan {
    /// VLAN `id` as most have it: a customer's tag (802.1Q), lowest priority.
    pub fn new(id: u16) -> Self {
        Self {
            id,
            qos: 0,
            protocol: 0x8100,
        }
    }
}

/// The settings of one virtual function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The address that it is to have.
    pub mac: Mac,
    /// Its VLAN.
    pub vlan: Vlan,
    /// Whether frames with another sender's address are dropped. `None` if the driver does not tell.
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and hear everything. `None` if the driver does not tell.
    pub trust: Option<bool>,
}

/// What is wished of a port; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortWish {
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its VLAN's id; 0 is none.
    pub vlan: Option<u16>,
    /// Whether frames with another sender's address are dropped.
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and hear everything.
    pub trust: Option<bool>,
}

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// Its MAC address.
    Mac(Mac),
    /// Its VLAN.
    Vlan(Vlan),
    /// Whether frames with another sender's address are dropped.
    SpoofCheck(bool),
    /// Whether it may change its address and hear everything.
    Trust(bool),
}

/// Reads and sets them. Tests have a card of their own behind it.
pub(crate) trait Ports: fmt::Debug + Send + Sync {
    /// Of virtual function `number` of the interface with this index.
    fn read(&self, interface: u32, number: u16) -> io::Result<Port>;

    fn set(&self, interface: u32, number: u16, setting: Setting) -> io::Result<()>;
}

impl PortWish {
    /// Whether nothing is wished.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What there is of what is wished, and that, where it is not the same. Trust comes first, and so is
    /// taken back last: it tells whether the guest itself may have changed its address.
    pub(crate) fn differences(&self, port: &Port) -> Vec<(Setting, Setting)> {
        let trust = self.trust.map(Setting::Trust);
        let vlan = self.vlan.map(|id| Setting::Vlan(Vlan::new(id)));
        let wishes = [
            trust,
            self.mac.map(Setting::Mac),
            vlan,
            self.spoof_check.map(Setting::SpoofCheck),
        ];
        let pairs = wishes.into_iter().flatten().map(|is| (port.like(is), is));
        pairs.filter(|(was, is)| was != is).collect()
    }
}

impl Port {
    /// The setting of the same kind as `other`. A driver that tells nothing of a switch has it off.
    pub(crate) fn like(&self, other: Setting) -> Setting {
        match other {
            Setting::Mac(_) => Setting::Mac(self.mac),
            Setting::Vlan(_) => Setting::Vlan(self.vlan),
            Setting::SpoofCheck(_) => Setting::SpoofCheck(self.spoof_check.unwrap_or_default()),
            Setting::Trust(_) => Setting::Trust(self.trust.unwrap_or_default()),
        }
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let byte = |part: &str| {
            let is_hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| format!("`{text}` is not a MAC address"));
        bytes.map(Self)
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

/// As the configuration has them.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Vlan(vlan) if vlan.qos != 0 => write!(f, "vlan {} qos {}", vlan.id, vlan.qos),
            Self::Vlan(vlan) => write!(f, "vlan {}", vlan.id),
            Self::SpoofCheck(on) => write!(f, "spoof-check {on}"),
            Self::Trust(on) => write!(f, "trust {on}"),
        }
    }
}
