//! The function's state on its way: what its driver on the host gives out, which nobody else can read.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use device::{State, StateError, StateRecord};
use serde::{Deserialize, Serialize};

use crate::device::NAME;
use crate::migration::MAX_STATE;

/// Version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionV1 {
    vendor: u16,
    device: u16,
    /// In base64.
    data: String,
}

impl State for FunctionV1 {
    const NAME: &'static str = NAME;
    const VERSION: u32 = 1;
}

pub(crate) fn pack((vendor, device): (u16, u16), data: &[u8]) -> Result<StateRecord, StateError> {
    StateRecord::pack(&FunctionV1 {
        vendor,
        device,
        data: BASE64_STANDARD.encode(data),
    })
}

/// The data, if they are those of a function of the same kind: nobody here can see what they would do to
/// another.
pub(crate) fn unpack(record: &StateRecord, id: (u16, u16)) -> Result<Vec<u8>, StateError> {
    let FunctionV1 {
        vendor,
        device,
        data,
    } = record.unpack()?;
    let body = |why| StateError::Body { name: NAME, why };
    if (vendor, device) != id {
        let (here, also) = id;
        return Err(body(format!(
            "it is of a function {vendor:04x}:{device:04x}, and this one is {here:04x}:{also:04x}: give \
             both hosts the same"
        )));
    }
    let data = BASE64_STANDARD.decode(data);
    let data = data.map_err(|error| body(error.to_string()))?;
    if data.len() > MAX_STATE {
        let len = data.len();
        return Err(body(format!(
            "{len} bytes, and no more than {MAX_STATE} are taken"
        )));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: (u16, u16) = (0x15b3, 0x101e);
    const GOLDEN: &str = include_str!("../tests/golden/passthrough-v1.json");

    #[test]
    fn the_golden_state_still_loads_and_is_written_the_same() {
        let record: StateRecord = serde_json::from_str(GOLDEN).unwrap();
        let data = unpack(&record, ID).unwrap();
        assert_eq!(data, b"as its driver says");
        assert_eq!(pack(ID, &data).unwrap(), record);
    }

    #[test]
    fn a_state_is_given_to_no_other_kind_of_function() {
        let record = pack(ID, b"state").unwrap();
        for other in [(0x15b3, 0x101c), (0x8086, 0x101e)] {
            let refused = unpack(&record, other).unwrap_err().to_string();
            assert!(refused.contains("15b3:101e"), "{refused}");
        }
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let mut record = pack(ID, b"state").unwrap();
        record.body["data"] = "?".into();
        assert!(matches!(unpack(&record, ID), Err(StateError::Body { .. })));
        let record = pack(ID, &vec![0; MAX_STATE + 1]).unwrap();
        assert!(matches!(unpack(&record, ID), Err(StateError::Body { .. })));
        assert!(unpack(&pack(ID, &vec![0; MAX_STATE]).unwrap(), ID).is_ok());
    }
}
