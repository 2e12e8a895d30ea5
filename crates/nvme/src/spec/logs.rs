//! Log pages (section 5.14.1) and asynchronous events (section 5.2).

/// Error Information (5.14.1.1).
pub const ERROR_INFORMATION: u8 = 0x01;
/// SMART / Health Information (5.14.1.2).
pub const SMART: u8 = 0x02;
/// Firmware Slot Information (5.14.1.3).
pub const FIRMWARE_SLOT: u8 = 0x03;
/// Changed Namespace List (5.14.1.4).
pub const CHANGED_NAMESPACES: u8 = 0x04;

/// Commands Supported and Effects (5.14.1.5).
pub const COMMAND_EFFECTS: u8 = 0x05;

/// CDW10 of Get Log Page: the page.
pub const LID: u32 = 0xff;
/// CDW10: RAE, leave the event masked.
pub const RETAIN_EVENT: u32 = 1 << 15;

/// Bytes of an Error Information entry.
pub const ERROR_ENTRY_LEN: usize = 64;
/// Bytes of SMART and of Firmware Slot Information.
pub const SHORT_PAGE_LEN: usize = 512;
/// Bytes of the Changed Namespace List.
pub const CHANGED_NAMESPACES_LEN: usize = 4096;
/// Bytes of Commands Supported and Effects.
pub const COMMAND_EFFECTS_LEN: usize = 4096;
/// Where the I/O commands begin in it; admin commands are first. Four bytes for each opcode.
pub const IO_COMMAND_EFFECTS: usize = 1024;
/// CSUPP: the command is supported.
pub const CSUPP: u32 = 1;
/// LBCC: it may change the content of blocks.
pub const LBCC: u32 = 1 << 1;

/// An event's type: bits 2:0 of its completion's DW0 (5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Error status; cleared by reading Error Information.
    Error,
    /// Notice; cleared by reading the notice's page.
    Notice,
}

/// What a controller may report without being asked (5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A doorbell of a queue that does not exist was written.
    InvalidDoorbellRegister,
    /// A doorbell was written with a value that it cannot have.
    InvalidDoorbellValue,
    /// A namespace has another size than before.
    NamespaceAttributeChanged,
}

impl Event {
    /// All there are, in the order in which they are reported.
    pub const ALL: [Self; 3] = [
        Self::InvalidDoorbellRegister,
        Self::InvalidDoorbellValue,
        Self::NamespaceAttributeChanged,
    ];

    /// Its type.
    pub fn kind(self) -> EventType {
        match self {
            Self::InvalidDoorbellRegister | Self::InvalidDoorbellValue => EventType::Error,
            Self::NamespaceAttributeChanged => EventType::Notice,
        }
    }

    /// DW0 of its completion: type, information, log page.
    pub fn result(self) -> u32 {
        let (kind, information, page) = match self {
            Self::InvalidDoorbellRegister => (0, 0x00, ERROR_INFORMATION),
            Self::InvalidDoorbellValue => (0, 0x01, ERROR_INFORMATION),
            Self::NamespaceAttributeChanged => (2, 0x00, CHANGED_NAMESPACES),
        };
        u32::from(page) << 16 | information << 8 | kind
    }
}

impl EventType {
    /// Its number in DW0.
    pub fn number(self) -> u8 {
        match self {
            Self::Error => 0,
            Self::Notice => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_the_page_that_clears_it() {
        assert_eq!(Event::InvalidDoorbellRegister.result(), 0x01_00_00);
        assert_eq!(Event::InvalidDoorbellValue.result(), 0x01_01_00);
        assert_eq!(Event::NamespaceAttributeChanged.result(), 0x04_00_02);
        for event in Event::ALL {
            assert_eq!(event.result() & 7, u32::from(event.kind().number()));
        }
    }
}
