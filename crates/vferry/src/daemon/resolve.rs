//! `vferry resolve`, in the process that keeps a VM paused.

use std::sync::PoisonError;

use ferry::commit::{Other, Safety, Way, safety};
use ferry::link::Link;
use ferry::resolve;
use ferry::vm::Unsettled;

use super::Shared;
use super::control::GREETING;
use crate::config::Endpoint;
use crate::control::Reply;
use crate::resolution::{Resolution, WayOut};
use crate::stream::connect;
use crate::told::told;

/// Asks the other host, unless it has said all that it can; then tells, or takes a way out.
pub(super) fn resolve(shared: &Shared, way: Option<Way>) -> Reply {
    let under_way = || failed("a migration of this VM is under way: wait for its end");
    // A mere question keeps nobody from a migration.
    if shared.migrating.is_under_way() {
        return under_way();
    }
    if shared.vm.unsettled().is_none() {
        return settled(shared, way);
    }
    let Some(_guard) = shared.migrating.begin() else {
        return under_way();
    };
    let Some(unsettled) = shared.vm.unsettled() else {
        return settled(shared, way);
    };
    let to = shared.went_to();
    let silence = match unsettled.other {
        Other::Runs | Other::WillNot => None,
        Other::CannotSay | Other::Silent => ask(shared, &unsettled, to.as_ref()).err(),
    };
    // It may have begun to run meanwhile.
    let Some(unsettled) = shared.vm.unsettled() else {
        return settled(shared, way);
    };
    match way {
        None => Reply::Resolve(Resolution::Open {
            ways: WayOut::all(unsettled.other),
            unsettled,
            to: to.map(|to| to.to_string()),
            silence: silence.map(|error| told(&error)),
        }),
        Some(way) if safety(way, unsettled.other) == Safety::Refused => failed(
            "the other host says that the VM runs there: it must not run here too. Use \
             --give-up-here",
        ),
        Some(way) => take(shared, way, unsettled.other),
    }
}

fn settled(shared: &Shared, way: Option<Way>) -> Reply {
    let stage = shared.vm.stage_name();
    match way {
        None => Reply::Resolve(Resolution::Settled {
            stage: stage.into(),
        }),
        Some(_) => failed(&format!(
            "nothing is to be resolved: no migration has left it open where the VM is (its devices \
             here are {stage})"
        )),
    }
}

/// What the other host says stays known.
fn ask(shared: &Shared, unsettled: &Unsettled, to: Option<&Endpoint>) -> anyhow::Result<()> {
    let to = to.ok_or_else(|| anyhow::anyhow!("it is not known where it listens"))?;
    // It has to be one of `peers` here as well: what it says decides where the VM runs.
    let asked = connect(to, &shared.config).and_then(|there| {
        let mut link = Link::greet(there.stream, GREETING)?;
        Ok(resolve::ask(&mut link, &unsettled.migration)?)
    });
    let other = *asked.as_ref().unwrap_or(&Other::Silent);
    tracing::info!(?other, "asked where the VM is");
    shared.vm.set_other(other);
    asked.map(drop)
}

fn take(shared: &Shared, way: Way, other: Other) -> Reply {
    tracing::warn!(?way, ?other, "an operator decides where the VM is");
    let taken = shared.monitor().and_then(|qmp| match way {
        Way::RunHere => {
            let sleeps = resolve::run_here(&shared.vm, &qmp).map_err(anyhow::Error::msg)?;
            Ok(if sleeps {
                "The VM is here, and its guest sleeps: QMP `system_wakeup` wakes it."
            } else {
                "The VM runs here."
            })
        }
        Way::GiveUpHere => {
            resolve::give_up_here(&qmp)?;
            Ok("This host's QEMU has ended, and `vferry run` ends with it.")
        }
    });
    shared.note_stage();
    match taken {
        Ok(now) => Reply::Resolve(Resolution::Taken {
            way,
            now: now.into(),
        }),
        Err(error) => failed(&format!(
            "{}. As far as is known here, the VM stays paused",
            told(&error)
        )),
    }
}

fn failed(why: &str) -> Reply {
    Reply::Failed { why: why.into() }
}

impl Shared {
    pub(super) fn set_went_to(&self, to: &Endpoint) {
        *self.went_to.lock().unwrap_or_else(PoisonError::into_inner) = Some(to.clone());
    }

    fn went_to(&self) -> Option<Endpoint> {
        let to = self.went_to.lock();
        to.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
