//! The forms in which a controller's state travels to another host or lies in a file.
//!
//! A form never changes once released; `tests/golden` holds one file of each. A new form is a new
//! module, and the old ones stay loadable.
//!
//! Commands under way travel with how far they are, and whoever loads them goes on from there: see
//! [`Command`](crate::state::Command). Those that are still in their queue in guest memory are
//! taken from there, and those that have a completion are not in the state any more; so each
//! command is completed once.

pub mod v1;

use device::{State, StateError, StateRecord};

use crate::backing::Backing;
use crate::state::ControllerState;

/// Packs `state` in the newest form.
///
/// # Errors
/// [`StateError::Encode`], which does not happen: all parts have a JSON form.
pub fn save(state: &ControllerState) -> Result<StateRecord, StateError> {
    StateRecord::pack(&v1::Controller::from(state))
}

/// Unpacks a state of any known form.
///
/// # Errors
/// When the record is of another device or version, or no controller can be in such a state.
pub fn load(record: &StateRecord) -> Result<ControllerState, StateError> {
    let saved: v1::Controller = record.unpack()?;
    ControllerState::try_from(&saved).map_err(|why| body(&why))
}

/// Checks that the backings hold what the guest knows.
pub(crate) fn fits(state: &ControllerState, backings: &[Box<dyn Backing>]) -> Result<(), Unfit> {
    are_as_many(state, backings)?;
    let known = state.namespaces.iter().flatten();
    for ((namespace, backing), nsid) in known.zip(backings).zip(1..) {
        // No overflow: it was checked when the state was unpacked.
        let bytes = namespace.blocks << namespace.block_shift;
        if backing.len() < bytes {
            return Err(Unfit::Smaller {
                nsid,
                bytes,
                here: backing.len(),
            });
        }
    }
    Ok(())
}

/// Checks that there is one for each namespace.
pub(crate) fn are_as_many(
    state: &ControllerState,
    backings: &[Box<dyn Backing>],
) -> Result<(), Unfit> {
    let (known, here) = (state.namespaces.iter().flatten().count(), backings.len());
    if known == here {
        Ok(())
    } else {
        Err(Unfit::Namespaces { known, here })
    }
}

/// Why a state that is whole cannot go on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it has {known} namespaces, and there are {here} here: give both sides the same files")]
    Namespaces { known: usize, here: usize },
    #[error(
        "namespace {nsid} has {bytes} bytes, and the file here has {here}: give both sides the same file"
    )]
    Smaller { nsid: u32, bytes: u64, here: u64 },
}

pub(crate) fn body(why: &dyn std::fmt::Display) -> StateError {
    StateError::Body {
        name: v1::Controller::NAME,
        why: why.to_string(),
    }
}
