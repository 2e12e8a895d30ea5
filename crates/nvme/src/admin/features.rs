//! Get Features and Set Features (sections 5.9 and 5.21).

use crate::spec::commands::{Submission, low};
use crate::spec::features as fid;
use crate::spec::pci::MSIX_VECTORS;
use crate::spec::status::Status;
use crate::state::ControllerState;

/// Asynchronous Event Configuration: what is kept. SMART events are never raised.
const ASYNC_EVENTS: u32 = 0xff | fid::NAMESPACE_ATTRIBUTE_NOTICES;
/// Error Recovery: TLER. There is no error for blocks that were deallocated.
const TLER: u32 = 0xffff;
/// Interrupt Coalescing: time and threshold. They are the driver's wish, and not followed.
const COALESCING: u32 = 0xffff;

impl ControllerState {
    /// The current value of a feature.
    pub(crate) fn feature(&self, entry: &Submission) -> Result<u32, Status> {
        let (cdw10, cdw11) = (entry.cdw(10), entry.cdw(11));
        if cdw10 & fid::SELECT != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let features = &self.features;
        Ok(match id(cdw10) {
            fid::ARBITRATION => features.arbitration,
            fid::POWER_MANAGEMENT => 0,
            fid::TEMPERATURE_THRESHOLD => {
                let over_or_under = threshold(cdw11, false)?;
                features.temperature[over_or_under].into()
            }
            fid::ERROR_RECOVERY => features.error_recovery,
            fid::VOLATILE_WRITE_CACHE => features.write_cache.into(),
            fid::NUMBER_OF_QUEUES => self.allocated_queues(),
            fid::INTERRUPT_COALESCING => features.coalescing,
            fid::INTERRUPT_VECTOR_CONFIGURATION => {
                let vector = vector(cdw11)?;
                let disabled = features.coalescing_disabled >> vector & 1;
                vector | (disabled * fid::CD)
            }
            fid::WRITE_ATOMICITY => features.disable_normal.into(),
            fid::ASYNC_EVENT_CONFIGURATION => features.async_events,
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// Sets a feature; the result is 0 but for the number of queues.
    pub(crate) fn set_feature(&mut self, entry: &Submission) -> Result<u32, Status> {
        let (cdw10, value) = (entry.cdw(10), entry.cdw(11));
        if cdw10 & fid::SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        let features = &mut self.features;
        match id(cdw10) {
            fid::ARBITRATION => features.arbitration = value,
            // There is one power state.
            fid::POWER_MANAGEMENT if value & fid::POWER_STATE == 0 => {}
            fid::TEMPERATURE_THRESHOLD => {
                features.temperature[threshold(value, true)?] = low(value);
            }
            fid::ERROR_RECOVERY => features.error_recovery = value & TLER,
            fid::VOLATILE_WRITE_CACHE => features.write_cache = value & fid::WCE != 0,
            fid::NUMBER_OF_QUEUES => return self.allocate_queues(value),
            fid::INTERRUPT_COALESCING => features.coalescing = value & COALESCING,
            fid::INTERRUPT_VECTOR_CONFIGURATION => {
                let bit = 1 << vector(value)?;
                features.coalescing_disabled &= !bit;
                if value & fid::CD != 0 {
                    features.coalescing_disabled |= bit;
                }
            }
            fid::WRITE_ATOMICITY => features.disable_normal = value & fid::DN != 0,
            fid::ASYNC_EVENT_CONFIGURATION => features.async_events = value & ASYNC_EVENTS,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// As many as there are, whatever was asked for: that is allowed, and the driver takes what it
    /// needs (5.21.1.7).
    fn allocate_queues(&self, value: u32) -> Result<u32, Status> {
        let mut io_queues = self.completion.iter().skip(1);
        if io_queues.any(Option::is_some) {
            return Err(Status::SEQUENCE_ERROR);
        }
        if value & 0xffff == 0xffff || value >> 16 == 0xffff {
            return Err(Status::INVALID_FIELD);
        }
        Ok(self.allocated_queues())
    }

    fn allocated_queues(&self) -> u32 {
        let last = u32::from(self.identity.queues) - 1;
        last << 16 | last
    }
}

fn id(cdw10: u32) -> u8 {
    cdw10.to_le_bytes()[0]
}

/// Over is 0, under is 1; there is no sensor but the composite one.
fn threshold(cdw11: u32, set: bool) -> Result<usize, Status> {
    let sensor = cdw11 >> fid::TMPSEL_SHIFT & fid::TMPSEL;
    if sensor != 0 && !(set && sensor == fid::TMPSEL_ALL) {
        return Err(Status::INVALID_FIELD);
    }
    match cdw11 >> fid::THSEL_SHIFT & fid::THSEL {
        0 => Ok(0),
        1 => Ok(1),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn vector(cdw11: u32) -> Result<u32, Status> {
    let vector = cdw11 & 0xffff;
    if vector < MSIX_VECTORS.into() {
        Ok(vector)
    } else {
        Err(Status::INVALID_FIELD)
    }
}
