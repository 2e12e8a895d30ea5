//! The live state of the control device: everything that the guest can see or has set, and nothing
//! else.
//!
//! It is plain data without pointers, apart from the code that works on it. The form in which it
//! travels to another host is its own: see [`saved`](crate::saved).

use crate::spec::{NOWHERE, Request};

/// A control device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlState {
    /// `FEATURES`.
    pub features: u32,
    /// `DRIVER`.
    pub driver: u32,
    /// `REQUEST`.
    pub request: Request,
    /// `DEADLINE`, milliseconds.
    pub deadline_ms: u32,
    /// `TABLE_LOW`, `TABLE_HIGH` and `TABLE_CHUNKS`, as last written.
    pub table: TableRegisters,
    /// The devices, at most [`MAX_DEVICES`](crate::spec::MAX_DEVICES).
    pub devices: Vec<DeviceState>,
}

/// Where the guest says that its DMA table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableRegisters {
    /// Guest-physical address of the directory.
    pub directory: u64,
    /// Its entries.
    pub chunks: u32,
}

/// A device's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceState {
    /// `FUNCTION`.
    pub function: u32,
    /// `IDENTITY`.
    pub identity: u32,
    /// `ACK`: the last accepted answer, or zero.
    pub ack: u32,
    /// `DETAIL`.
    pub detail: u32,
    /// `MICROS`.
    pub micros: u32,
}

impl ControlState {
    /// As after power-on, for devices of these `IDENTITY` words.
    pub fn new(features: u32, identities: &[u32]) -> Self {
        let device = |&identity| DeviceState {
            function: NOWHERE,
            identity,
            ack: 0,
            detail: 0,
            micros: 0,
        };
        Self {
            features,
            driver: 0,
            request: Request::NONE,
            deadline_ms: 0,
            table: TableRegisters::default(),
            devices: identities.iter().map(device).collect(),
        }
    }
}
