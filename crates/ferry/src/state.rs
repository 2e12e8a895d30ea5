//! The state of a VM's devices in QEMU's stream.

use endpoint::EndpointState;
use serde::{Deserialize, Serialize};

/// The form written.
const FORM: &str = "vferry-vm";
const VERSION: u32 = 1;
/// No state of a VM's devices is longer, in bytes.
pub const MAX_LEN: usize = 16 << 20;

/// All devices' state, version 1. The transport (`sidecar`) sees to damage on the way; name and
/// version are checked here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    form: String,
    version: u32,
    endpoints: Vec<EndpointState>,
}

/// Why a blob is not a state.
#[derive(Debug, thiserror::Error)]
pub enum StateBlobError {
    /// Too long.
    #[error("the devices' state has {0} bytes, more than the {MAX_LEN} that are taken")]
    TooLong(usize),
    /// Not parseable.
    #[error("the devices' state is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Another form or version.
    #[error(
        "the devices' state is of form {form} {version}, this vferry reads {FORM} {VERSION}: update vferry on this side"
    )]
    Foreign {
        /// Name in the blob.
        form: String,
        /// Version in the blob.
        version: u32,
    },
}

/// Packs the endpoints' states.
///
/// # Errors
/// When they are too long to be carried.
pub fn pack(endpoints: Vec<EndpointState>) -> Result<Vec<u8>, StateBlobError> {
    let state = VmState {
        form: FORM.into(),
        version: VERSION,
        endpoints,
    };
    let blob = serde_json::to_vec(&state)?;
    if blob.len() > MAX_LEN {
        Err(StateBlobError::TooLong(blob.len()))
    } else {
        Ok(blob)
    }
}

/// Unpacks what [`pack`] made. For fuzzers too: any bytes are an error or a state.
///
/// # Errors
/// When the blob is not a state of a known version.
pub fn unpack(blob: &[u8]) -> Result<Vec<EndpointState>, StateBlobError> {
    #[derive(Deserialize)]
    struct Head {
        form: String,
        version: u32,
    }
    if blob.len() > MAX_LEN {
        return Err(StateBlobError::TooLong(blob.len()));
    }
    // The head first: what follows may look different in another version.
    let Head { form, version } = serde_json::from_slice(blob)?;
    if form != FORM || version != VERSION {
        return Err(StateBlobError::Foreign { form, version });
    }
    Ok(serde_json::from_slice::<VmState>(blob)?.endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &[u8] = include_bytes!("../tests/golden/vm-v1.json");

    #[test]
    fn the_golden_state_still_loads_and_is_written_the_same() {
        let states = unpack(GOLDEN).unwrap();
        assert_eq!(states[0].name, "net0");
        assert_eq!(states[0].pending, [1]);
        assert_eq!(pack(states).unwrap(), GOLDEN.trim_ascii_end());
    }

    #[test]
    fn another_version_is_refused_by_its_number_not_by_its_shape() {
        let next = br#"{"form":"vferry-vm","version":2,"anything":[]}"#;
        assert!(matches!(
            unpack(next),
            Err(StateBlobError::Foreign { version: 2, .. })
        ));
    }

    #[test]
    fn nesting_without_end_is_an_error() {
        let deep = format!("{{\"form\":{}", "[".repeat(100_000));
        assert!(matches!(
            unpack(deep.as_bytes()),
            Err(StateBlobError::Damaged(_))
        ));
    }

    proptest! {
        #[test]
        fn any_damage_is_an_error_or_another_state(at in 0..GOLDEN.len(), byte in any::<u8>()) {
            let mut blob = GOLDEN.to_vec();
            blob[at] = byte;
            if let Ok(states) = unpack(&blob) {
                prop_assert!(pack(states).is_ok());
            }
        }
    }
}
