//! Says to the keeper, again and again, that the devices are served.

use std::sync::Arc;
use std::thread;

use super::Shared;

/// So often within the time after which it counts as hung.
const TIMES: u32 = 4;

/// Has the keeper notice from here on if this process hangs, if it is to: when it gets no processor, or a
/// device's message or step does not come to an end.
pub(super) fn begin(shared: &Shared) -> std::io::Result<()> {
    let limit = shared.config.keeper.and_then(|kept| kept.hung_after);
    let (Some(survival), Some(limit)) = (&shared.survival, limit) else {
        return Ok(());
    };
    let worker = Arc::clone(survival.worker());
    let endpoints = shared.vm.endpoints().clone();
    let say = move || {
        loop {
            for endpoint in &endpoints.0 {
                endpoint.wait_for_turn();
            }
            if worker.alive().is_err() {
                // There is no keeper any more.
                return;
            }
            thread::sleep(limit / TIMES);
        }
    };
    thread::Builder::new().name("alive".into()).spawn(say)?;
    survival.be_watched(limit);
    Ok(())
}
