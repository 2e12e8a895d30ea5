//! Says to the keeper, again and again, that the devices are served.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use endpoint::Endpoints;

use super::Shared;

/// So often within the time after which it counts as hung.
const TIMES: u32 = 4;

/// Says it from here on, for a keeper that is to notice if this process hangs ([`Survival::be_watched`]): it gets no
/// processor, or a device's message or step does not come to an end.
///
/// [`Survival::be_watched`]: super::Survival::be_watched
pub(super) fn begin(shared: &Shared) -> std::io::Result<()> {
    let (Some(survival), Some(limit)) = (&shared.survival, shared.hung_after()) else {
        return Ok(());
    };
    let worker = Arc::clone(survival.worker());
    let endpoints = shared.vm.endpoints().clone();
    let period = limit / TIMES;
    let say = move || {
        loop {
            let began = Instant::now();
            wait_for_turns(&endpoints);
            // What was so of the first long ago says nothing of it now.
            if began.elapsed() > period {
                continue;
            }
            if worker.alive().is_err() {
                // There is no keeper any more.
                return;
            }
            thread::sleep(period);
        }
    };
    thread::Builder::new().name("alive".into()).spawn(say)?;
    Ok(())
}

fn wait_for_turns(endpoints: &Endpoints) {
    for endpoint in &endpoints.0 {
        endpoint.wait_for_turn();
    }
}
