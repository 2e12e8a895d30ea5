//! The forms in which the control device's state travels to another host.
//!
//! A form never changes once released; `tests/golden` holds one file of each. A new form is a new
//! module, and the old ones stay loadable.

pub mod v1;

use device::{State, StateError, StateRecord};

use crate::state::ControlState;

/// Packs `state` in the newest form.
///
/// # Errors
/// [`StateError::Encode`], which does not happen: all parts have a JSON form.
pub fn save(state: &ControlState) -> Result<StateRecord, StateError> {
    StateRecord::pack(&v1::Control::from(state))
}

/// Unpacks a state of any known form for a control device that is `here` now.
///
/// # Errors
/// When the record is of another device or version, of a control device that speaks for other
/// devices, or no control device can be in such a state.
pub fn load(record: &StateRecord, here: &ControlState) -> Result<ControlState, StateError> {
    let saved: v1::Control = record.unpack()?;
    saved.restore(here).map_err(|why| StateError::Body {
        name: v1::Control::NAME,
        why: why.to_string(),
    })
}
