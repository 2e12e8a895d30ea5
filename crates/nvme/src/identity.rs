//! Who a controller is: what its operator says, and what follows from it.

use crate::backing::Backing;
use crate::spec::registers::IO_QUEUES;
use crate::state::{Identity, MAX_NAMESPACES, Namespace};

/// What a controller's operator decides.
pub struct ControllerConfig {
    /// Serial number: 1 to 20 printable ASCII characters. With it come the UUIDs of controller and
    /// namespaces, so no two controllers should have the same.
    pub serial: String,
    /// I/O queue pairs, 1 to 16. A guest with as many CPUs has one for each.
    pub queues: u16,
    /// The namespaces, 1 to 16 of them.
    pub namespaces: Vec<NamespaceConfig>,
}

/// What a namespace is made of.
pub struct NamespaceConfig {
    /// Where its blocks are kept; at least one block.
    pub backing: Box<dyn Backing>,
    /// Bytes of a block: 512, 1024, 2048 or 4096. What the backing has beyond a multiple is unused.
    pub block_size: u32,
}

/// Why a controller cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The serial number cannot be shown.
    #[error("`{0}` is no serial number: choose 1 to 20 printable ASCII characters")]
    Serial(String),
    /// There are not as many queues, or none.
    #[error("an NVMe controller here has 1 to 16 I/O queue pairs, not {0}: choose one of these")]
    Queues(u16),
    /// There are not as many namespaces, or none.
    #[error("an NVMe controller here has 1 to 16 namespaces, not {0}")]
    Namespaces(usize),
    /// Blocks cannot have this size.
    #[error("blocks of {0} bytes: choose 512, 1024, 2048 or 4096")]
    BlockSize(u32),
    /// The backing does not hold one block.
    #[error("namespace {0} holds no block: give it a file that is larger")]
    Empty(usize),
}

impl std::fmt::Debug for ControllerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControllerConfig")
            .field("serial", &self.serial)
            .field("queues", &self.queues)
            .field("namespaces", &self.namespaces)
            .finish()
    }
}

impl std::fmt::Debug for NamespaceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamespaceConfig")
            .field("bytes", &self.backing.len())
            .field("block_size", &self.block_size)
            .finish()
    }
}

type Parts = (
    Identity,
    [Option<Namespace>; MAX_NAMESPACES],
    Vec<Box<dyn Backing>>,
);

impl ControllerConfig {
    pub(crate) fn check(self) -> Result<Parts, ConfigError> {
        let serial = serial(&self.serial).ok_or(ConfigError::Serial(self.serial))?;
        if !(1..=IO_QUEUES).contains(&self.queues) {
            return Err(ConfigError::Queues(self.queues));
        }
        let count = self.namespaces.len();
        if !(1..=MAX_NAMESPACES).contains(&count) {
            return Err(ConfigError::Namespaces(count));
        }
        let mut namespaces = [None; MAX_NAMESPACES];
        let mut backings = Vec::with_capacity(count);
        for ((slot, config), nsid) in namespaces.iter_mut().zip(self.namespaces).zip(1..) {
            let block_shift = match config.block_size {
                512 => 9,
                1024 => 10,
                2048 => 11,
                4096 => 12,
                other => return Err(ConfigError::BlockSize(other)),
            };
            let blocks = config.backing.len() >> block_shift;
            if blocks == 0 {
                return Err(ConfigError::Empty(backings.len() + 1));
            }
            *slot = Some(Namespace {
                blocks,
                block_shift,
                uuid: uuid(&serial, nsid),
                changed: false,
            });
            backings.push(config.backing);
        }
        let identity = Identity {
            serial,
            queues: self.queues,
        };
        Ok((identity, namespaces, backings))
    }
}

/// Filled up with spaces; `None` if it has characters that a serial number cannot have.
fn serial(text: &str) -> Option<[u8; 20]> {
    let mut serial = [b' '; 20];
    let printable = |b: &u8| b.is_ascii_graphic() || *b == b' ';
    if text.trim().is_empty() || !text.bytes().all(|b| printable(&b)) {
        return None;
    }
    serial
        .get_mut(..text.len())?
        .copy_from_slice(text.as_bytes());
    Some(serial)
}

/// The UUID of namespace `nsid`, or of the controller itself for 0: of version 8, made of the
/// serial number by FNV-1a. It only has to be the same on every host and in every release.
pub(crate) fn uuid(serial: &[u8; 20], nsid: u32) -> [u8; 16] {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = serial.iter().copied().chain(nsid.to_le_bytes());
    let hash = bytes.fold(BASIS, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    let mut uuid = hash.to_be_bytes();
    // Version and variant (RFC 9562, 4 and 5.8).
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_filled_up_and_never_cut() {
        assert_eq!(serial("vf1").unwrap(), *b"vf1                 ");
        assert!(serial("01234567890123456789").is_some());
        assert_eq!(serial("012345678901234567890"), None);
        assert_eq!(serial(""), None);
        assert_eq!(serial("  "), None);
        assert_eq!(serial("a\n"), None);
        assert_eq!(serial("ü"), None);
    }

    /// A guest takes a namespace whose UUID changes for another one.
    #[test]
    fn a_uuid_never_changes() {
        let serial = serial("vf1").unwrap();
        let known = u128::from_be_bytes(uuid(&serial, 1));
        assert_eq!(known, UUID_OF_VF1, "{known:#034x}");
        assert_ne!(uuid(&serial, 1), uuid(&serial, 2));
    }

    /// Computed apart from the code here.
    const UUID_OF_VF1: u128 = 0xda22_d89b_265e_8ffe_983d_b350_2352_06e5;
}
