//! Get Log Page (section 5.14).

use super::identify::FIRMWARE;
use crate::spec::commands::{Submission, admin, io, low};
use crate::spec::logs as lid;
use crate::spec::logs::EventType;
use crate::spec::status::Status;
use crate::state::{ControllerState, ERROR_ENTRIES};

/// Composite temperature in kelvins.
const TEMPERATURE: u16 = 303;
/// Units of the data counters: 1000 times 512 bytes.
const DATA_UNIT: u64 = 1000;

impl ControllerState {
    /// What is to be sent of a page: from the offset on, not more than there is.
    pub(crate) fn log_page(&self, entry: &Submission) -> Result<Vec<u8>, Status> {
        let page = match page_id(entry) {
            lid::ERROR_INFORMATION => self.error_information(),
            lid::SMART => self.smart(),
            lid::FIRMWARE_SLOT => firmware_slots(),
            lid::CHANGED_NAMESPACES => self.changed_namespaces(),
            lid::COMMAND_EFFECTS => command_effects(),
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        let dwords = u64::from(entry.cdw(10) >> 16) | u64::from(low(entry.cdw(11))) << 16;
        let offset = u64::from(entry.cdw(12)) | u64::from(entry.cdw(13)) << 32;
        let start = usize::try_from(offset).ok();
        let start = start.filter(|start| *start < page.len() && start.is_multiple_of(4));
        let start = start.ok_or(Status::INVALID_FIELD)?;
        let len = usize::try_from((dwords + 1) * 4).unwrap_or(usize::MAX);
        let end = page.len().min(start.saturating_add(len));
        Ok(page[start..end].to_vec())
    }

    /// What reading a page does, once it has been sent.
    pub(crate) fn log_page_read(&mut self, entry: &Submission) {
        if entry.cdw(10) & lid::RETAIN_EVENT != 0 {
            return;
        }
        match page_id(entry) {
            lid::ERROR_INFORMATION => self.clear_events(EventType::Error),
            lid::CHANGED_NAMESPACES => {
                for namespace in self.namespaces.iter_mut().flatten() {
                    namespace.changed = false;
                }
                self.clear_events(EventType::Notice);
            }
            _ => {}
        }
    }

    fn error_information(&self) -> Vec<u8> {
        let mut page = vec![0; ERROR_ENTRIES * lid::ERROR_ENTRY_LEN];
        let entries = page.chunks_exact_mut(lid::ERROR_ENTRY_LEN);
        for (bytes, entry) in entries.zip(self.errors.entries.iter().flatten()) {
            bytes[..8].copy_from_slice(&entry.number.to_le_bytes());
            bytes[8..10].copy_from_slice(&entry.sq.to_le_bytes());
            bytes[10..12].copy_from_slice(&entry.cid.to_le_bytes());
            bytes[12..14].copy_from_slice(&(entry.status << 1).to_le_bytes());
            // Where in the command the error is, is not said.
            bytes[14..16].copy_from_slice(&u16::MAX.to_le_bytes());
            bytes[16..24].copy_from_slice(&entry.lba.to_le_bytes());
            bytes[24..28].copy_from_slice(&entry.nsid.to_le_bytes());
        }
        page
    }

    fn smart(&self) -> Vec<u8> {
        let usage = &self.usage;
        let mut page = vec![0; lid::SHORT_PAGE_LEN];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(1, &TEMPERATURE.to_le_bytes());
        // Available spare, and the threshold below which it is too little.
        put(3, &[100, 10]);
        put(32, &usage.sectors_read.div_ceil(DATA_UNIT).to_le_bytes());
        put(48, &usage.sectors_written.div_ceil(DATA_UNIT).to_le_bytes());
        put(64, &usage.reads.to_le_bytes());
        put(80, &usage.writes.to_le_bytes());
        put(112, &usage.power_cycles.to_le_bytes());
        put(160, &usage.media_errors.to_le_bytes());
        put(176, &self.errors.count.to_le_bytes());
        page
    }

    fn changed_namespaces(&self) -> Vec<u8> {
        let mut page = vec![0; lid::CHANGED_NAMESPACES_LEN];
        let changed = (1_u32..).zip(self.namespaces.iter().flatten());
        let changed = changed.filter(|(_, namespace)| namespace.changed);
        for (slot, (nsid, _)) in page.as_chunks_mut::<4>().0.iter_mut().zip(changed) {
            *slot = nsid.to_le_bytes();
        }
        page
    }
}

fn firmware_slots() -> Vec<u8> {
    let mut page = vec![0; lid::SHORT_PAGE_LEN];
    // AFI: slot 1 is active. FRS1 is its release.
    page[0] = 1;
    page[8..16].copy_from_slice(&FIRMWARE);
    page
}

/// No command has effects on other commands, namespaces or the controller's abilities.
fn command_effects() -> Vec<u8> {
    let mut page = vec![0; lid::COMMAND_EFFECTS_LEN];
    let mut put = |from: usize, opcodes: &[u8], effects: u32| {
        for opcode in opcodes {
            let at = from + 4 * usize::from(*opcode);
            page[at..at + 4].copy_from_slice(&effects.to_le_bytes());
        }
    };
    put(0, &admin::SUPPORTED, lid::CSUPP);
    put(lid::IO_COMMAND_EFFECTS, &io::SUPPORTED, lid::CSUPP);
    let changing = lid::CSUPP | lid::LBCC;
    put(lid::IO_COMMAND_EFFECTS, &io::CHANGING, changing);
    page
}

fn page_id(entry: &Submission) -> u8 {
    entry.cdw(10).to_le_bytes()[0]
}
