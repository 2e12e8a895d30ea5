//! What a controller reports without being asked (section 5.2), and its error log.

use device::Writes;

use crate::spec::commands::{Submission, io};
use crate::spec::features::NAMESPACE_ATTRIBUTE_NOTICES;
use crate::spec::logs::{Event, EventType};
use crate::spec::status::Status;
use crate::state::{ControllerState, ErrorEntry};

impl ControllerState {
    /// Takes note of an event. A driver that provokes many sees one of each.
    pub(crate) fn raise(&mut self, event: Event) {
        let wanted = match event {
            Event::NamespaceAttributeChanged => {
                self.features.async_events & NAMESPACE_ATTRIBUTE_NOTICES != 0
            }
            Event::InvalidDoorbellRegister | Event::InvalidDoorbellValue => true,
        };
        if wanted && self.registers.ready {
            self.events.pending |= bit(event);
        }
    }

    /// Completes outstanding requests with the events that are due.
    pub(crate) fn report_events(&mut self, writes: &mut Writes, raised: &mut u32) {
        for event in Event::ALL {
            let masked = self.events.masked >> event.kind().number() & 1 != 0;
            if self.events.pending & bit(event) == 0 || masked || !self.has_room(0) {
                continue;
            }
            let mut requests = self.events.requests.iter_mut();
            let Some(cid) = requests.find_map(Option::take) else {
                return;
            };
            self.events.pending &= !bit(event);
            self.events.masked |= 1 << event.kind().number();
            self.post(0, cid, Status::SUCCESS, event.result(), writes, raised);
        }
    }

    /// The log page of a type was read: its events are known now, and new ones may be reported.
    pub(crate) fn clear_events(&mut self, kind: EventType) {
        self.events.masked &= !(1 << kind.number());
        for event in Event::ALL {
            if event.kind() == kind {
                self.events.pending &= !bit(event);
            }
        }
    }

    /// An error of a command.
    pub(crate) fn command_error(&mut self, sq: u16, entry: &Submission, status: Status) {
        let blocks = matches!(
            entry.opcode(),
            io::READ | io::WRITE | io::COMPARE | io::WRITE_ZEROES
        );
        self.log_error(ErrorEntry {
            number: 0,
            sq,
            cid: entry.cid(),
            status: status.field(),
            lba: if sq != 0 && blocks { entry.slba() } else { 0 },
            nsid: entry.nsid(),
        });
    }

    /// An error of a doorbell, which is of no command (5.14.1.1).
    pub(crate) fn doorbell_error(&mut self) {
        self.log_error(ErrorEntry {
            number: 0,
            sq: u16::MAX,
            cid: u16::MAX,
            status: Status::INVALID_FIELD.field(),
            lba: 0,
            nsid: 0,
        });
    }

    fn log_error(&mut self, entry: ErrorEntry) {
        let errors = &mut self.errors;
        errors.count = errors.count.saturating_add(1);
        errors.entries.rotate_right(1);
        errors.entries[0] = Some(ErrorEntry {
            number: errors.count,
            ..entry
        });
    }
}

fn bit(event: Event) -> u8 {
    match event {
        Event::InvalidDoorbellRegister => 1,
        Event::InvalidDoorbellValue => 1 << 1,
        Event::NamespaceAttributeChanged => 1 << 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_bit_of_its_place() {
        for (place, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(bit(event), 1 << place);
        }
    }
}
