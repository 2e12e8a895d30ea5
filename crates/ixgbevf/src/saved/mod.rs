//! The forms in which a function's state travels to another host or lies in a file.
//!
//! A form never changes once released; `tests/golden` holds one file of each. A new form is a new
//! module, and the old ones stay loadable.

pub mod v1;

use device::{State, StateError, StateRecord};

use crate::state::VfState;

/// Packs `state` in the newest form.
///
/// # Errors
/// [`StateError::Encode`], which does not happen: all parts have a JSON form.
pub fn save(state: &VfState) -> Result<StateRecord, StateError> {
    StateRecord::pack(&v1::Vf::from(state))
}

/// Unpacks a state of any known form.
///
/// # Errors
/// When the record is of another device or version, or no function can be in such a state.
pub fn load(record: &StateRecord) -> Result<VfState, StateError> {
    let saved: v1::Vf = record.unpack()?;
    VfState::try_from(&saved).map_err(|why| StateError::Body {
        name: v1::Vf::NAME,
        why: why.to_string(),
    })
}
