//! The forms in which the device's state travels to another host or lies in a file.
//!
//! A form never changes once released; `tests/golden` holds one file of each. A new form is a new
//! module, and the old ones stay loadable.

pub mod v1;

use device::{State, StateError, StateRecord};

use crate::state::StreamState;

/// Packs `state` in the newest form.
///
/// # Errors
/// [`StateError::Encode`], which does not happen: all parts have a JSON form.
pub fn save(state: &StreamState) -> Result<StateRecord, StateError> {
    StateRecord::pack(&v1::Stream::from(state))
}

/// Unpacks a state of any known form.
///
/// # Errors
/// When the record is of another device or version, or no device can be in such a state.
pub fn load(record: &StateRecord) -> Result<StreamState, StateError> {
    let saved: v1::Stream = record.unpack()?;
    StreamState::try_from(&saved).map_err(|why| StateError::Body {
        name: v1::Stream::NAME,
        why: why.to_string(),
    })
}
