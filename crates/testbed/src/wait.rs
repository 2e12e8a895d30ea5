//! Waiting for what can only be looked at.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `holds`, which `what` names.
///
/// # Errors
/// When it does not within `limit`, or the look at it fails.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
        thread::sleep(LOOK);
    }
    Ok(())
}
