//! Who connects to the link: nobody waits for one that does not say who it is, and whoever is taken is
//! served beside the others.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ferry::link::LinkError;

use super::Shared;
use super::complaints::Complaints;
use crate::stream::{self, Acceptor, Connected};

/// Connections at once, from those who may take their time to say who they are up to those who are
/// served. Of these, one at most is a migration, and no other lasts.
const MOST: usize = 16;
/// After a connection that could not be taken, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_secs(1);
/// Strangers are complained of once in so long.
const QUIET: Duration = Duration::from_secs(1);

/// Takes connections for ever, and lets `serve` have those of hosts that are taken, each in a thread
/// of its own.
pub(super) fn let_in(
    listener: &Acceptor,
    shared: &Arc<Shared>,
    serve: fn(&Shared, Connected) -> Result<(), LinkError>,
) {
    let complaints = Arc::new(Complaints::that("a host was not taken in", QUIET));
    // One more for each connection.
    let places = Arc::new(());
    loop {
        let stranger = match listener.accept() {
            Ok(stranger) => stranger,
            Err(error) => {
                complaints.of(&error);
                thread::sleep(PAUSE);
                continue;
            }
        };
        if Arc::strong_count(&places) > MOST {
            complaints.of(&"too many at once that do not say who they are");
            continue;
        }
        let asked = thread::Builder::new().name("stranger".into()).spawn({
            let (shared, place) = (Arc::clone(shared), Arc::clone(&places));
            let complaints = Arc::clone(&complaints);
            move || {
                match stream::accept(stranger, &shared.config.protection) {
                    Ok(host) => {
                        if let Err(error) = serve(&shared, host) {
                            complaints.of(&error);
                        }
                    }
                    Err(error) => complaints.of(&error),
                }
                drop(place);
            }
        });
        if let Err(error) = asked {
            complaints.of(&error);
            thread::sleep(PAUSE);
        }
    }
}
