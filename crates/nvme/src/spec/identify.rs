//! The data structures of Identify (section 5.15.2): where their fields lie, and their bits.

/// Bytes of each.
pub const IDENTIFY_LEN: usize = 4096;

/// CNS: what is asked for (figure 244).
pub mod cns {
    /// A namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// The controller.
    pub const CONTROLLER: u8 = 0x01;
    /// The active namespaces above a number.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// The identifiers of a namespace.
    pub const DESCRIPTORS: u8 = 0x03;
}

/// Offsets in the controller's structure (figure 247).
pub mod controller {
    /// VID, two bytes.
    pub const VID: usize = 0;
    /// SSVID, two bytes.
    pub const SSVID: usize = 2;
    /// SN, 20 characters.
    pub const SN: usize = 4;
    /// MN, 40 characters.
    pub const MN: usize = 24;
    /// FR, 8 characters.
    pub const FR: usize = 64;
    /// RAB, binary logarithm of the recommended arbitration burst.
    pub const RAB: usize = 72;
    /// MDTS, binary logarithm of the largest transfer in pages.
    pub const MDTS: usize = 77;
    /// VER, four bytes.
    pub const VER: usize = 80;
    /// OAES, four bytes: optional events.
    pub const OAES: usize = 92;
    /// CNTRLTYPE: 1 is an I/O controller.
    pub const CNTRLTYPE: usize = 111;
    /// ACL: Abort commands at a time, less one.
    pub const ACL: usize = 258;
    /// AERL: Asynchronous Event Requests at a time, less one.
    pub const AERL: usize = 259;
    /// FRMW: firmware slots.
    pub const FRMW: usize = 260;
    /// LPA: log page attributes.
    pub const LPA: usize = 261;
    /// ELPE: error log entries, less one.
    pub const ELPE: usize = 262;
    /// WCTEMP, two bytes: warning temperature in kelvins.
    pub const WCTEMP: usize = 266;
    /// CCTEMP, two bytes: critical temperature in kelvins.
    pub const CCTEMP: usize = 268;
    /// SQES: sizes of submission entries.
    pub const SQES: usize = 512;
    /// CQES: sizes of completion entries.
    pub const CQES: usize = 513;
    /// NN, four bytes: namespaces.
    pub const NN: usize = 516;
    /// ONCS, two bytes: optional NVM commands.
    pub const ONCS: usize = 520;
    /// VWC: volatile write cache.
    pub const VWC: usize = 525;
    /// SUBNQN, 256 characters.
    pub const SUBNQN: usize = 768;
    /// MP of the only power state, two bytes: centiwatts.
    pub const PSD0_MP: usize = 2048;
}

/// FRMW: slot 1 only, read only.
pub const FRMW_ONE_READ_ONLY: u8 = 1 << 1 | 1;
/// LPA: there is the log Commands Supported and Effects.
pub const LPA_COMMAND_EFFECTS: u8 = 1 << 1;
/// LPA: Get Log Page takes an offset and long lengths.
pub const LPA_EXTENDED: u8 = 1 << 2;
/// OAES: namespace attribute notices.
pub const OAES_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// SQES: 64 bytes, least and most.
pub const SQES_64: u8 = 0x66;
/// CQES: 16 bytes, least and most.
pub const CQES_16: u8 = 0x44;
/// ONCS: Compare.
pub const ONCS_COMPARE: u16 = 1;
/// ONCS: Dataset Management.
pub const ONCS_DSM: u16 = 1 << 2;
/// ONCS: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// VWC: there is one, and Flush may name all namespaces at once.
pub const VWC_PRESENT_FLUSH_ALL: u8 = 3 << 1 | 1;

/// Offsets in a namespace's structure (figure 245).
pub mod namespace {
    /// NSZE, eight bytes: blocks.
    pub const NSZE: usize = 0;
    /// NCAP, eight bytes: blocks that may be allocated.
    pub const NCAP: usize = 8;
    /// NUSE, eight bytes: blocks that are allocated.
    pub const NUSE: usize = 16;
    /// DLFEAT: what deallocated blocks read as.
    pub const DLFEAT: usize = 33;
    /// LBAF0, four bytes: the only format.
    pub const LBAF0: usize = 128;
    /// Where LBADS begins in it: binary logarithm of a block's size.
    pub const LBADS_SHIFT: u32 = 16;
}

/// DLFEAT: deallocated blocks read as zeros, and Write Zeroes may deallocate.
pub const DLFEAT_ZEROS_AND_DEAC: u8 = 1 << 3 | 1;

/// Namespace identification descriptor: type UUID (figure 249).
pub const NIDT_UUID: u8 = 3;
/// Its length.
pub const NIDL_UUID: u8 = 16;
/// Where its content begins.
pub const NID: usize = 4;
