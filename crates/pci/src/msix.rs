//! MSI-X (PCI 6.8.2): the capability, and a copy of the table that the VMM keeps.

use serde::{Deserialize, Serialize};

/// Length of the capability in bytes.
pub const LEN: usize = 12;
/// Offset of Message Control in the capability.
pub const CONTROL: usize = 2;
/// Message Control: MSI-X is on.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Message Control: all vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Message Control: number of vectors less one.
pub const CONTROL_SIZE: u16 = 0x7ff;
/// Offset of the register that says where the table is.
pub const TABLE: usize = 4;
/// Offset of the register that says where the pending-bit array is.
pub const PENDING: usize = 8;
/// The part of both that is the BAR; the rest is the offset in it.
pub const BAR: u32 = 0b111;
/// Bytes of a table entry.
pub const ENTRY_LEN: usize = 16;

/// Where a function keeps its MSI-X structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixCapability {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR of the table.
    pub bar: u8,
    /// Offset of the table in the BAR, in units of 8 bytes as the register has it.
    pub table_offset: u32,
    /// BAR of the pending-bit array.
    pub pba_bar: u8,
    /// Offset of the pending-bit array in its BAR.
    pub pba_offset: u32,
}

/// One vector's entry (PCI 6.8.2.4 to 6.8.2.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixEntry {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control; bit 0 masks the vector.
    pub control: u32,
}

impl MsixEntry {
    /// As in the table, little endian.
    pub fn to_bytes(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    /// From the table's bytes.
    pub fn from_bytes(bytes: [u8; ENTRY_LEN]) -> Self {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| {
            u32::from_le_bytes([
                bytes[4 * i],
                bytes[4 * i + 1],
                bytes[4 * i + 2],
                bytes[4 * i + 3],
            ])
        });
        Self {
            address: u64::from(b) << 32 | u64::from(a),
            data: c,
            control: d,
        }
    }
}

/// A copy of a function's MSI-X table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MsixTable(pub Vec<MsixEntry>);

impl MsixTable {
    /// From the table's bytes; a rest that is no whole entry is left out.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(
            bytes
                .as_chunks::<ENTRY_LEN>()
                .0
                .iter()
                .map(|b| MsixEntry::from_bytes(*b))
                .collect(),
        )
    }

    /// The table's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|entry| entry.to_bytes()).collect()
    }
}
