//! Making room for a process of another program.

use std::thread;
use std::time::Duration;

use super::Shared;
use crate::control::{HandsOver, Reply, Writer};

/// How often the end of a migration is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Ends this process at a good moment, so that the keeper starts one of the next program. Returns only where
/// that may not be.
pub(super) fn hand_over(shared: &Shared, writer: &mut Writer) -> Reply {
    Reply::Failed {
        why: try_hand_over(shared, writer).into(),
    }
}

/// The same where this process is told to end and a service manager holds what it leaves, for the one that it may be
/// about to start. Waits for the end of a migration. Returns only where nobody can go on.
pub(super) fn leave(shared: &Shared) {
    let survival = shared.survival.as_ref().filter(|kept| kept.is_stored());
    let Some(survival) = survival else {
        return;
    };
    let guard = loop {
        match shared.migrating.begin() {
            Some(guard) => break guard,
            None => thread::sleep(LOOK),
        }
    };
    survival.leave(&shared.vm, || {
        tracing::info!("what it serves is left to the service manager");
    });
    drop(guard);
}

fn try_hand_over(shared: &Shared, writer: &mut Writer) -> &'static str {
    let Some(survival) = &shared.survival else {
        return "no keeper holds what another process would go on with: write `[keeper]` into the configuration, \
                and start QEMU and `vferry run` anew";
    };
    let Some(_guard) = shared.migrating.begin() else {
        return "a migration of this VM is under way: wait for its end, or cancel it";
    };
    let mut slots = shared.slots.iter();
    if !slots.all(|slot| slot.endpoint.is_connected()) || !shared.vm.is_sidecar_connected() {
        return "QEMU is not connected to all devices: wait until it is, or start `vferry run` anew";
    }
    if shared.vm.is_logging() {
        return "QEMU migrates this VM, without vferry having been asked: wait for its end, or cancel it";
    }
    let before = HandsOver {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        upgrades: keeper::Worker::upgrades(),
    };
    survival.leave(&shared.vm, || {
        tracing::info!("a process of the next program is to go on");
        // Whoever asked may be gone.
        let _ = writer.send(&Reply::HandsOver(before));
    });
    "the VM's devices do not run here: wait for the end of the migration, or see `vferry status`"
}
