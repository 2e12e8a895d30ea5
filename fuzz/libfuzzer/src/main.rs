//! One fuzz target behind libFuzzer: the one that the environment variable `FUZZ_TARGET` names.
//!
//! Built and started by `cargo xtask fuzz`, which knows the compiler's flags for coverage.
//!
//! # What it does not do
//!
//! It has no target of its own: they are the crate `fuzz`.

#![no_main]

use std::sync::OnceLock;

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        TARGET.get_or_init(chosen);
    },
    |data: &[u8]| TARGET.get_or_init(chosen)(data)
);

fn chosen() -> Target {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(name, _)| *name == wanted);
    target.map_or_else(
        || panic!("FUZZ_TARGET is `{wanted}`, which is no target"),
        |(_, target)| *target,
    )
}
