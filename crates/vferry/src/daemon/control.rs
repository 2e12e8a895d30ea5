//! The commands' connections.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use ferry::link::Link;
use ferry::root_port;
use ferry::source::{MigrateError, Options, Source};
use keeper::Worker;
use local_socket::Access;
use qemu::Place;
use qemu::stream_tls::StreamSide;

use super::Shared;
use super::complaints::Complaints;
use crate::config::Endpoint;
use crate::control::{Control, DeviceStatus, Reply, Request, Status, Writer};
use crate::rehearsal::{self, Moment};
use crate::stream::connect;
use crate::told::told;

/// How long a command may leave what it is told unread. A migration waits for it once, no more.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the other side may take to say which versions it knows.
pub(super) const GREETING: Duration = Duration::from_secs(10);
/// Commands at once, each of which has a thread. One migrates, and those that look at it and cancel are few.
const MOST: usize = 64;
/// How long a command may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);
/// After a connection that could not be taken, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Of these, one is told in so long.
const QUIET: Duration = Duration::from_secs(10);

pub(super) fn serve(
    listener: UnixListener,
    access: Access,
    shared: &Arc<Shared>,
) -> anyhow::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let complaints = Complaints::that("a command could not be served", QUIET);
            // One more for each command.
            let places = Arc::new(());
            for stream in listener.incoming() {
                let (shared, place) = (Arc::clone(&shared), Arc::clone(&places));
                let serve_one = move |stream: UnixStream| {
                    access.admit(&stream).map_err(std::io::Error::other)?;
                    // Of which two are here.
                    if Arc::strong_count(&place) > MOST + 2 {
                        return Err(std::io::Error::other("too many commands at once"));
                    }
                    let spawned = thread::Builder::new()
                        .name("command".into())
                        .spawn(move || {
                            answer(&shared, Control::new(stream));
                            drop(place);
                        });
                    spawned.map(drop)
                };
                if let Err(error) = stream.and_then(serve_one) {
                    complaints.of(&error);
                    thread::sleep(PAUSE);
                }
            }
        })?;
    Ok(())
}

fn answer(shared: &Shared, mut control: Control) {
    let Ok(mut writer) = control.writer() else {
        return;
    };
    if writer.set_patience(PATIENCE).is_err() {
        return;
    }
    let request = control.request(Some(REQUEST));
    let _working = shared.at_work.begin();
    let reply = match request {
        Ok(Some(Request::Status)) => Reply::Status(status(shared)),
        Ok(Some(Request::Migrate {
            to,
            verify,
            compare,
            strategy,
            downtime_limit_ms,
        })) => {
            let mut options = Options {
                verify,
                comparison: compare,
                strategy,
                settings: shared.settings(),
                bedtime: shared.config.bedtime.clone(),
            };
            if let Some(ms) = downtime_limit_ms {
                options.settings.downtime_limit = Some(Duration::from_millis(ms));
            }
            migrate(shared, &to, &options, control, &mut writer)
        }
        Ok(Some(Request::Check {
            to,
            compare,
            strategy,
        })) => {
            let options = Options {
                comparison: compare,
                strategy,
                ..Options::default()
            };
            look(shared, &to, &options)
        }
        Ok(Some(Request::Rehearse {
            hold_ms,
            stopped_ms,
        })) => {
            let limit = |moment| match moment {
                Moment::Tracked => hold_ms,
                Moment::Stopped => stopped_ms,
            };
            rehearse(shared, |moment| {
                control.linger(Duration::from_millis(limit(moment)));
            })
        }
        Ok(Some(Request::Resolve { way })) => super::resolve::resolve(shared, way),
        Ok(Some(Request::Upgrade)) => super::upgrade::hand_over(shared, &mut writer),
        Ok(Some(Request::Cancel)) => Reply::Failed {
            why: "no migration was asked for on this connection".into(),
        },
        Ok(None) => return,
        Err(error) => Reply::Failed {
            why: format!("not understood: {error}"),
        },
    };
    // A command that is gone needs no answer.
    let _ = writer.send(&reply);
}

fn status(shared: &Shared) -> Status {
    let migrating = shared.migrating.is_under_way();
    let kept = shared.survival.as_ref();
    let device = |slot: &ferry::restore::Slot| DeviceStatus {
        name: slot.endpoint.name().into(),
        connected: slot.endpoint.is_connected(),
        fault: slot.endpoint.fault().or_else(|| slot.endpoint.lack()),
        model: slot.endpoint.inspect(),
    };
    Status {
        vm: shared.config.name.clone(),
        pid: std::process::id(),
        deaths: kept.map(|_| Worker::deaths()),
        version: env!("CARGO_PKG_VERSION").into(),
        upgrades: kept.map(|_| Worker::upgrades()),
        // A keeper that is gone has taken this process along.
        unheld: kept.map_or(0, |kept| kept.worker().unheld().unwrap_or(0)),
        upgrade_refused: kept.and_then(|_| Worker::refusal()),
        stage: shared.vm.stage_name().into(),
        migrating,
        sidecar_connected: shared.vm.is_sidecar_connected(),
        guest_driver: shared
            .vm
            .guest()
            .map(|guest| guest.control.driver().is_some()),
        devices: shared.slots.iter().map(device).collect(),
        pages_marked: shared.vm.marks().total(),
        unsettled: shared.vm.unsettled(),
    }
}

fn rehearse(shared: &Shared, pause: impl FnMut(Moment)) -> Reply {
    let Some(_guard) = shared.migrating.begin() else {
        return Reply::Failed {
            why: "a migration of this VM is under way".into(),
        };
    };
    let Some(guest) = shared.vm.guest() else {
        return Reply::Failed {
            why: "the VM has no control device: add a [guest] section to the configuration".into(),
        };
    };
    if let Err(error) = place_devices(shared) {
        return Reply::Failed { why: told(&error) };
    }
    // The control device itself comes last.
    let endpoints = &shared.vm.endpoints().0;
    let devices = &endpoints[..shared.config.devices.len().min(endpoints.len())];
    match rehearsal::rehearse(guest, devices, pause) {
        Ok(rehearsal) => {
            tracing::info!(?rehearsal, "the guest has rehearsed");
            Reply::Rehearsed(rehearsal)
        }
        Err(why) => Reply::Failed {
            why: why.to_string(),
        },
    }
}

/// Lets the guest know where the devices behind root ports are.
fn place_devices(shared: &Shared) -> anyhow::Result<()> {
    let mut places = shared.slots.iter().map(|slot| slot.place);
    if places.any(|place| matches!(place, Place::RootPort(_))) {
        root_port::find(&shared.vm, &shared.monitor()?, &shared.slots)?;
    }
    Ok(())
}

/// A command that goes away does not end the migration it asked for: only `Cancel` does.
fn migrate(
    shared: &Shared,
    to: &str,
    options: &Options,
    control: Control,
    writer: &mut Writer,
) -> Reply {
    let Some(_guard) = shared.migrating.begin() else {
        return Reply::Failed {
            why: "a migration of this VM is under way already".into(),
        };
    };
    let cancel = Arc::new(AtomicBool::new(false));
    let listening = listen_for_cancel(control, &cancel);
    let result = listening.and_then(|()| {
        as_source(shared, to, cancel, |source, link, to| {
            shared.set_went_to(to);
            source.migrate(link, options, &mut |progress| {
                let _ = writer.send(&Reply::Progress(progress));
            })
        })
    });
    shared.note_stage();
    match result {
        Ok(report) => {
            tracing::info!(
                pause_ms = report.vm_pause_ms,
                "the VM runs at the destination"
            );
            Reply::Done { report }
        }
        Err(error) => {
            tracing::error!("{}", told(&error));
            Reply::Failed { why: told(&error) }
        }
    }
}

/// Looks whether [`migrate`] would be refused.
fn look(shared: &Shared, to: &str, options: &Options) -> Reply {
    let Some(_guard) = shared.migrating.begin() else {
        return Reply::Failed {
            why: "a migration of this VM is under way".into(),
        };
    };
    let looked = as_source(shared, to, Arc::default(), |source, link, _| {
        source.look(link, options)
    });
    match looked {
        Ok(prospect) => Reply::Prospect(prospect),
        Err(error) => Reply::Failed { why: told(&error) },
    }
}

/// Has the VM and the vferry at `to` for `act`.
fn as_source<R>(
    shared: &Shared,
    to: &str,
    cancel: Arc<AtomicBool>,
    act: impl FnOnce(Source<'_>, &mut Link, &Endpoint) -> Result<R, MigrateError>,
) -> anyhow::Result<R> {
    // Before it is forgotten where that one went.
    shared.vm.refuse_unsettled()?;
    let qmp = shared.monitor()?;
    let facts = shared.facts(&qmp)?;
    let to: Endpoint = to.parse().map_err(anyhow::Error::msg)?;
    let there = connect(&to, &shared.config)?;
    let mut link = Link::greet(there.stream, GREETING)
        .with_context(|| format!("refused by the vferry at {to}, nothing was touched"))?;
    let source = Source {
        vm: &shared.vm,
        qmp: &qmp,
        slots: &shared.slots,
        facts,
        protection: shared.stream(there.peer.as_ref(), StreamSide::Source),
        cancel,
        letting_go: match &shared.survival {
            Some(survival) => &**survival,
            None => &(),
        },
    };
    Ok(act(source, &mut link, &to)?)
}

fn listen_for_cancel(mut control: Control, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let cancel = Arc::clone(cancel);
    thread::Builder::new()
        .name("cancel".into())
        .spawn(move || {
            while let Ok(Some(request)) = control.request(None) {
                if request == Request::Cancel {
                    cancel.store(true, Ordering::Release);
                }
            }
        })?;
    Ok(())
}
