//! Other hosts' vferry processes: VMs that come here.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ferry::destination::Destination;
use ferry::link::{Link, Message};

use super::Shared;
use crate::stream::Acceptor;

/// After a connection that could not be taken, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
const REFUSAL: Duration = Duration::from_secs(5);

pub(super) fn serve(listener: Acceptor, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("link".into()).spawn(move || {
        loop {
            match listener.accept() {
                Ok(stream) => receive(&shared, &mut Link::new(stream)),
                Err(error) => {
                    tracing::warn!(%error, "another host could not be answered");
                    thread::sleep(PAUSE);
                }
            }
        }
    })?;
    Ok(())
}

fn receive(shared: &Shared, link: &mut Link) {
    let result = match shared.begin_migration() {
        Some(_guard) => try_receive(shared, link),
        None => Err(anyhow::anyhow!("this VM is being migrated already")),
    };
    match result {
        Ok(Ok(arrival)) => tracing::info!(?arrival, "the VM has arrived"),
        Ok(Err(error)) => tracing::error!("{error}"),
        Err(error) => {
            tracing::error!("no VM is taken in: {error:#}");
            let reason = format!("at the destination: {error:#}");
            let _ = link.send(&Message::Abort { reason }, REFUSAL);
        }
    }
}

type Received = Result<ferry::link::Arrival, ferry::destination::ReceiveError>;

fn try_receive(shared: &Shared, link: &mut Link) -> anyhow::Result<Received> {
    let qmp = shared.monitor()?;
    let facts = shared.facts(&qmp)?;
    let destination = Destination {
        vm: &shared.vm,
        qmp: &qmp,
        slots: &shared.slots,
        facts,
        uri: shared.config.incoming.to_string(),
        settings: shared.settings(),
    };
    Ok(destination.receive(link))
}
