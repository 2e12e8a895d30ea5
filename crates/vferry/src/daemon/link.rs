//! Other hosts' vferry processes: VMs that come here.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ferry::check::Facts;
use ferry::destination::{self, Destination, ReceiveError};
use ferry::link::{Link, LinkError, Message};
use ferry::resolve;
use qemu::stream_tls::StreamSide;
use qemu::system::RunState;
use tls::PeerName;

use super::survival::runs;
use super::{Shared, strangers};
use crate::stream::{Acceptor, Connected};
use crate::told::told;

/// After a monitor that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
const REFUSAL: Duration = Duration::from_secs(5);
/// How long another host may take to say which versions it knows, and for its first message then.
const GREETING: Duration = Duration::from_secs(10);
/// How often a device is looked at that the guest may reset at any time: kernels wait for one that
/// does not answer, for a minute in Linux.
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn serve(listener: Acceptor, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let shared = Arc::clone(shared);
    let late = Arc::clone(&shared);
    thread::Builder::new()
        .name("late-recovery".into())
        .spawn(move || see_to_late(&late))?;
    thread::Builder::new()
        .name("strangers".into())
        .spawn(move || strangers::let_in(&listener, &shared, converse))?;
    Ok(())
}

/// Talks with a host that is taken, apart from others: a source that asks where its VM is must be
/// heard while the destination waits for its word.
///
/// # Errors
/// When it asks for nothing.
fn converse(shared: &Shared, host: Connected) -> Result<(), LinkError> {
    if let Some(peer) = &host.peer {
        tracing::info!(%peer, "a host has come");
    }
    let mut link = Link::welcome(host.stream, GREETING)?;
    let first = link.receive(GREETING)?;
    let _working = shared.at_work.begin();
    if let Message::Settle { migration } = first {
        if let Err(error) = resolve::answer(&shared.vm, &mut link, &migration) {
            tracing::warn!(%error, "another host asked where its VM is, and was not answered");
        }
        return Ok(());
    }
    let result = match shared.migrating.begin() {
        Some(_guard) => {
            let received = try_receive(shared, first, &mut link, host.peer.as_ref());
            if let Some(survival) = &shared.survival {
                survival.note_arrival(false, || runs(&shared.vm));
            }
            received
        }
        None => Err(anyhow::anyhow!("this VM is being migrated already")),
    };
    match result {
        Ok(Ok(arrival)) => tracing::info!(?arrival, "the VM has arrived"),
        Ok(Err(looked @ ReceiveError::OnlyLooked)) => tracing::info!("{looked}"),
        Ok(Err(error)) => tracing::error!("{error}"),
        Err(error) => {
            let why = told(&error);
            tracing::error!("no VM is taken in: {why}");
            let reason = format!("at the destination: {why}");
            let _ = link.send(&Message::Abort { reason }, REFUSAL);
        }
    }
    Ok(())
}

/// A guest that was stuck when it came may recover its devices at any later time.
fn see_to_late(shared: &Shared) {
    loop {
        shared.vm.wait_late();
        thread::sleep(LOOK);
        // A migration that is under way gives up when it finds such a device.
        if shared.vm.is_late_due()
            && let Some(_guard) = shared.migrating.begin()
        {
            let qmp = shared.monitor();
            let seen_to = qmp.and_then(|qmp| Ok(shared.vm.see_to_late(&qmp, &shared.slots)?));
            if let Err(error) = seen_to {
                tracing::error!("a device that the guest has reset does not work: {error:#}");
                thread::sleep(PAUSE);
            }
        }
    }
}

/// The host of a VM that is on its way.
struct Arriving<'a>(&'a Shared);

impl fmt::Debug for Arriving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.host.fmt(f)
    }
}

impl destination::Host for Arriving<'_> {
    fn obstacles(&self) -> Vec<String> {
        self.0.host.obstacles()
    }

    fn follow(&self, source: &Facts) -> Result<(), String> {
        self.0.host.follow(source)
    }

    fn has_vm(&self) {
        // Another process can go on with it, also while the source is still told.
        if let Some(survival) = &self.0.survival {
            survival.note_arrival(false, || runs(&self.0.vm));
        }
    }
}

type Received = Result<ferry::link::Arrival, ReceiveError>;

fn try_receive(
    shared: &Shared,
    first: Message,
    link: &mut Link,
    peer: Option<&PeerName>,
) -> anyhow::Result<Received> {
    let qmp = shared.monitor()?;
    let facts = shared.facts(&qmp)?;
    // A VM that runs here takes none in, and goes on to be one that another process can go on with.
    if let Some(survival) = &shared.survival
        && qmp.run_status()?.status == RunState::InMigrate
    {
        survival.note_arrival(true, || false);
    }
    let host = Arriving(shared);
    let destination = Destination {
        vm: &shared.vm,
        qmp: &qmp,
        slots: &shared.slots,
        host: &host,
        facts,
        uri: shared.config.incoming.to_string(),
        protection: shared.stream(peer, |_| StreamSide::Destination),
        settings: shared.settings(),
    };
    Ok(destination.receive(first, link))
}
