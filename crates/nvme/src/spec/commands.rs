//! Submission and completion entries (sections 4.2 and 4.6), opcodes, and the fields of commands.

use super::status::Status;

/// Bytes of a submission entry.
pub const SUBMISSION_LEN: usize = 64;
/// Bytes of a completion entry.
pub const COMPLETION_LEN: usize = 16;
/// NSID of all namespaces.
pub const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// Opcodes of admin commands (section 5, figure 139).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;

    /// Those that the controller has.
    pub const SUPPORTED: [u8; 10] = [
        DELETE_SQ,
        CREATE_SQ,
        GET_LOG_PAGE,
        DELETE_CQ,
        CREATE_CQ,
        IDENTIFY,
        ABORT,
        SET_FEATURES,
        GET_FEATURES,
        ASYNC_EVENT_REQUEST,
    ];
}

/// Opcodes of NVM commands (section 6, figure 346).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;

    /// Those that the controller has and that change no block.
    pub const SUPPORTED: [u8; 3] = [FLUSH, READ, COMPARE];
    /// Those that it has and that may change blocks.
    pub const CHANGING: [u8; 3] = [WRITE, WRITE_ZEROES, DATASET_MANAGEMENT];
}

/// A submission entry: sixteen dwords (4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission(pub [u32; 16]);

impl Submission {
    /// From memory.
    pub fn parse(bytes: &[u8; SUBMISSION_LEN]) -> Self {
        let mut dwords = [0; 16];
        for (dword, bytes) in dwords.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *dword = u32::from_le_bytes(*bytes);
        }
        Self(dwords)
    }

    /// OPC.
    pub fn opcode(&self) -> u8 {
        self.0[0].to_le_bytes()[0]
    }

    /// FUSE and PSDT, which must be 0: fused commands and SGLs are not offered.
    pub fn unsupported_flags(&self) -> u8 {
        self.0[0].to_le_bytes()[1] & 0xc3
    }

    /// CID.
    pub fn cid(&self) -> u16 {
        high(self.0[0])
    }

    /// NSID.
    pub fn nsid(&self) -> u32 {
        self.0[1]
    }

    /// PRP1.
    pub fn prp1(&self) -> u64 {
        self.wide(6)
    }

    /// PRP2.
    pub fn prp2(&self) -> u64 {
        self.wide(8)
    }

    /// Command dword `n`, 10 to 15.
    pub fn cdw(&self, n: usize) -> u32 {
        self.0[n]
    }

    /// Starting LBA of a command on blocks.
    pub fn slba(&self) -> u64 {
        self.wide(10)
    }

    /// Blocks of a command on blocks; in the command it is one less.
    pub fn blocks(&self) -> u64 {
        u64::from(low(self.0[12])) + 1
    }

    fn wide(&self, dword: usize) -> u64 {
        u64::from(self.0[dword]) | u64::from(self.0[dword + 1]) << 32
    }
}

/// Read, Write, Compare and Write Zeroes, CDW12: force unit access (6.9, 6.15).
pub const FUA: u32 = 1 << 30;
/// CDW12: protection information, which is not offered.
pub const PRINFO: u32 = 0xf << 26;
/// Write Zeroes, CDW12: deallocate (6.16).
pub const DEAC: u32 = 1 << 25;
/// Dataset Management, CDW11: deallocate (6.7).
pub const DSM_DEALLOCATE: u32 = 1 << 2;
/// Dataset Management, CDW10: number of ranges, less one.
pub const DSM_RANGES: u32 = 0xff;
/// Bytes of a range of Dataset Management.
pub const DSM_RANGE_LEN: usize = 16;

/// A range of Dataset Management (6.7, figure 367).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DsmRange {
    /// Blocks.
    pub blocks: u32,
    /// Starting LBA.
    pub slba: u64,
}

impl DsmRange {
    /// From memory.
    pub fn parse(bytes: &[u8; DSM_RANGE_LEN]) -> Self {
        let value = u128::from_le_bytes(*bytes);
        // Context attributes are hints.
        Self {
            blocks: u32::try_from(value >> 32 & u128::from(u32::MAX)).expect("32 bits are left"),
            slba: u64::try_from(value >> 64).expect("64 bits are left"),
        }
    }
}

/// A completion entry (4.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// DW0: the command's result.
    pub result: u32,
    /// SQHD: the submission queue's head.
    pub sq_head: u16,
    /// SQID.
    pub sq: u16,
    /// CID.
    pub cid: u16,
    /// Status.
    pub status: Status,
    /// Phase tag.
    pub phase: bool,
}

impl Completion {
    /// The first and the second eight bytes. The phase tag is in the second, so they go last.
    pub fn halves(self) -> (u64, u64) {
        let status = self.status.field() << 1 | u16::from(self.phase);
        let words = [self.sq_head, self.sq, self.cid, status];
        let second = words.iter().rev();
        (
            self.result.into(),
            second.fold(0, |value, word| value << 16 | u64::from(*word)),
        )
    }
}

/// The low half of a dword.
pub fn low(dword: u32) -> u16 {
    (dword & 0xffff)
        .try_into()
        .expect("the high half is masked")
}

/// The high half of a dword.
pub fn high(dword: u32) -> u16 {
    low(dword >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_read_as_it_lies_in_memory() {
        let mut bytes = [0; SUBMISSION_LEN];
        bytes[..8].copy_from_slice(&[0x02, 0x41, 0x34, 0x12, 1, 0, 0, 0]);
        bytes[24..32].copy_from_slice(&0x1_2345_6000_u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0xff_0000_0001_u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&0x4000_0007_u32.to_le_bytes());
        let entry = Submission::parse(&bytes);
        assert_eq!((entry.opcode(), entry.cid(), entry.nsid()), (2, 0x1234, 1));
        assert_eq!(entry.unsupported_flags(), 0x41);
        assert_eq!(entry.prp1(), 0x1_2345_6000);
        assert_eq!((entry.slba(), entry.blocks()), (0xff_0000_0001, 8));
        assert_eq!(entry.cdw(12) & FUA, FUA);
    }

    #[test]
    fn a_completion_ends_with_status_and_phase() {
        let (first, second) = Completion {
            result: 7,
            sq_head: 0x11,
            sq: 2,
            cid: 0x3344,
            status: Status::INVALID_FIELD,
            phase: true,
        }
        .halves();
        assert_eq!((first, second), (7, 0x8005_3344_0002_0011));
    }

    #[test]
    fn a_range_has_attributes_length_and_start() {
        let mut bytes = [0xee; DSM_RANGE_LEN];
        bytes[4..8].copy_from_slice(&9_u32.to_le_bytes());
        bytes[8..].copy_from_slice(&77_u64.to_le_bytes());
        assert_eq!(
            DsmRange::parse(&bytes),
            DsmRange {
                blocks: 9,
                slba: 77
            }
        );
    }
}
