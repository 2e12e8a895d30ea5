//! Saved state of devices: named, versioned, and apart from the types a model runs on.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One form of a device's saved state.
///
/// The types that implement this are never the types a model works on, and never change once
/// released: a new form is a new type with the next version. See `tests/golden` of each model.
pub trait State: Serialize + DeserializeOwned {
    /// The device, as in `"ixgbevf"`.
    const NAME: &'static str;
    /// From 1 on.
    const VERSION: u32;
}

/// Saved state on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateRecord {
    /// [`State::NAME`].
    pub name: String,
    /// [`State::VERSION`].
    pub version: u32,
    /// The state itself.
    pub body: serde_json::Value,
}

impl StateRecord {
    /// Packs `state`.
    ///
    /// # Errors
    /// [`StateError::Encode`] when the state has no JSON form, which is a bug of its type.
    pub fn pack<S: State>(state: &S) -> Result<Self, StateError> {
        let body = serde_json::to_value(state).map_err(|e| StateError::Encode(e.to_string()))?;
        Ok(Self {
            name: S::NAME.into(),
            version: S::VERSION,
            body,
        })
    }

    /// Unpacks a state of form `S`.
    ///
    /// # Errors
    /// When the record is of another name or version, or its body is not an `S`.
    pub fn unpack<S: State>(&self) -> Result<S, StateError> {
        if self.name != S::NAME {
            return Err(StateError::Name {
                found: self.name.clone(),
                expected: S::NAME,
            });
        }
        if self.version != S::VERSION {
            return Err(StateError::Version {
                name: S::NAME,
                found: self.version,
            });
        }
        S::deserialize(&self.body).map_err(|e| StateError::Body {
            name: S::NAME,
            why: e.to_string(),
        })
    }
}

/// Why a state could not be saved or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The record is of another device.
    #[error(
        "the saved state is of device `{found}`, but this device is `{expected}`: give both sides the same devices in the same order"
    )]
    Name {
        /// Name in the record.
        found: String,
        /// Name of this device.
        expected: &'static str,
    },
    /// Nobody can read the device's state.
    #[error(
        "the state of device `{0}` cannot be read, so its driver has to start a fresh one: use --strategy recovery or cooperative"
    )]
    NotReadable(&'static str),
    /// The device did not do its part.
    #[error("device `{name}`: {why}")]
    Device {
        /// The device.
        name: &'static str,
        /// What happened, and what became of it.
        why: String,
    },
    /// The record's version is not known here.
    #[error(
        "version {found} of `{name}`'s saved state is not known here: update vferry on this side"
    )]
    Version {
        /// The device.
        name: &'static str,
        /// Version in the record.
        found: u32,
    },
    /// The body is not what the version says.
    #[error("`{name}`'s saved state is damaged: {why}")]
    Body {
        /// The device.
        name: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The state has no encoding.
    #[error("the state cannot be encoded: {0}")]
    Encode(String),
}
