//! The destination's part of a migration.

use std::time::{Duration, Instant};

use qemu::migration::{MigrationSettings, MigrationStatus};
use qemu::system::RunState;
use qemu::{Qmp, QmpError};

use crate::check::{self, Facts, Refused};
use crate::digest::MemoryDigest;
use crate::driverless;
use crate::link::{self, Arrival, Function, Link, LinkError, Message};
use crate::report::millis;
use crate::restore::{self, RestoreError, Slot};
use crate::vm::StageName;
use crate::{Phase, Vm};

/// How long an answer may take to send, and the source to ask its next question while it works.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the VM's QEMU is looked at while the source copies.
const LOOK: Duration = Duration::from_secs(1);
/// How long QEMU may take from the source's completion to its own, and to let the VM run.
const REACT: Duration = Duration::from_secs(10);
/// How long the source may think about digests.
const DIGESTS: Duration = Duration::from_mins(10);

/// The destination's side.
#[derive(Debug)]
pub struct Destination<'a> {
    /// The VM that is to be.
    pub vm: &'a Vm,
    /// Its QEMU, which waits.
    pub qmp: &'a Qmp,
    /// Its functions and where they sit.
    pub slots: &'a [Slot],
    /// What it is.
    pub facts: Facts,
    /// Where QEMU shall listen, as the source's QEMU reaches it.
    pub uri: String,
    /// Limits for QEMU.
    pub settings: MigrationSettings,
}

/// What the destination has prepared for.
#[derive(Debug)]
struct Prepared {
    functions: Vec<Function>,
    /// The sidecar was started from outside of the guest.
    driverless: bool,
}

/// Why nothing arrived.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Nothing was touched.
    #[error("refused, nothing was touched: {0}")]
    Refused(#[from] Refused),
    /// The link failed or the source gave up.
    #[error("nothing arrived: {0}")]
    Link(#[from] LinkError),
    /// QEMU refused or failed.
    #[error("nothing arrived: {0}")]
    Qmp(#[from] QmpError),
    /// PCI configuration was not taken.
    #[error("nothing arrived: {0}")]
    Restore(#[from] RestoreError),
    /// The devices or QEMU are not where they should be.
    #[error("nothing arrived: {0}")]
    Other(String),
}

impl Destination<'_> {
    /// Takes a VM in from the side at the other end of `link`.
    ///
    /// # Errors
    /// See [`ReceiveError`]. A QEMU that had begun to receive is ended then: what is in it is no
    /// VM, and the source runs on.
    pub fn receive(self, link: &mut Link) -> Result<Arrival, ReceiveError> {
        let prepared = self.check(link).and_then(|()| self.prepare(link));
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err(tell(link, error)),
        };
        match self.arrive(link, &prepared) {
            Ok(arrival) => {
                if prepared.driverless {
                    self.release_sidecar();
                }
                self.answer_digests(link);
                Ok(arrival)
            }
            Err(error) => {
                self.vm.forget_arrival();
                let error = tell(link, error);
                // It was held all the time; nothing of it has run.
                let _ = self.qmp.quit();
                Err(error)
            }
        }
    }

    fn check(&self, link: &mut Link) -> Result<(), ReceiveError> {
        tracing::info!(phase = %Phase::Check, "phase");
        let (protocol, theirs) = match link.receive(ANSWER)? {
            Message::Check { protocol, facts } => (protocol, facts),
            other => return Err(link::unexpected(&other).into()),
        };
        let state = self.qmp.run_status()?.status;
        let tree = check::device_tree(self.qmp)?;
        let mut reasons = check::destination(&self.facts, &state, &tree);
        if protocol == link::PROTOCOL {
            reasons.extend(check::compare(&theirs, &self.facts));
        }
        if !self.vm.is_sidecar_connected() {
            reasons.push("the destination's QEMU has no sidecar connected to vferry".into());
        }
        for slot in self
            .slots
            .iter()
            .filter(|slot| !slot.endpoint.is_connected())
        {
            let name = slot.endpoint.name();
            reasons.push(format!(
                "the destination's device `{name}` is not connected to QEMU"
            ));
        }
        if !reasons.is_empty() {
            return Err(Refused(reasons).into());
        }
        let answer = Message::Check {
            protocol: link::PROTOCOL,
            facts: Box::new(self.facts.clone()),
        };
        Ok(link.send(&answer, ANSWER)?)
    }

    fn prepare(&self, link: &mut Link) -> Result<Prepared, ReceiveError> {
        let (functions, verify, driverless) = match link.receive(ANSWER)? {
            Message::Prepare {
                functions,
                verify,
                driverless,
            } => (functions, verify, driverless),
            other => return Err(link::unexpected(&other).into()),
        };
        tracing::info!(phase = %Phase::Prepare, "phase");
        // QEMU shall not start the VM by itself when it has it: the source says when.
        self.qmp.stop()?;
        self.vm
            .expect_arrival(verify)
            .map_err(ReceiveError::Other)?;
        restore::program(self.qmp, self.slots, &functions, &[])?;
        self.qmp.prepare_migration(&self.settings)?;
        self.qmp.migrate_incoming(&self.uri)?;
        link.send(
            &Message::Prepared {
                uri: self.uri.clone(),
            },
            ANSWER,
        )?;
        Ok(Prepared {
            functions,
            driverless,
        })
    }

    fn arrive(&self, link: &mut Link, prepared: &Prepared) -> Result<Arrival, ReceiveError> {
        let mut events = self.qmp.events();
        let functions = self.wait_for_word(link)?;
        let told = Instant::now();
        let arrived = self
            .vm
            .wait_stage(REACT, |stage| stage == StageName::Arrived);
        if !arrived {
            return Err(ReceiveError::Other(
                "the devices' state did not arrive".into(),
            ));
        }
        let corrected = if functions == prepared.functions {
            0
        } else {
            self.wait_loaded(&mut events)?;
            restore::program(self.qmp, self.slots, &functions, &prepared.functions)?
        };
        // The VM is complete and this host's: what devices write from here on is its own. QEMU
        // takes `cont` also in the last moments of loading, and starts the VM when it is done.
        self.vm.run_again();
        self.qmp.cont()?;
        tracing::info!(phase = %Phase::Resume, "phase");
        let arrival = self.arrival(told, corrected);
        // The VM runs here, whether the source hears of it or not.
        if let Err(error) = link.send(&Message::Running(arrival), ANSWER) {
            tracing::error!(%error, "the VM runs here, but the source could not be told");
        }
        Ok(arrival)
    }

    /// The source's word to run, looking after QEMU meanwhile.
    fn wait_for_word(&self, link: &mut Link) -> Result<Vec<Function>, ReceiveError> {
        loop {
            match link.receive(LOOK) {
                Ok(Message::Run { functions }) => return Ok(functions),
                Ok(other) => return Err(link::unexpected(&other).into()),
                Err(LinkError::Timeout(_)) => {
                    // An error means that QEMU is gone.
                    self.qmp.run_status()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// QEMU's own completion follows the source's at once, but not before.
    fn wait_loaded(&self, events: &mut qemu::Events) -> Result<(), ReceiveError> {
        let deadline = Instant::now() + REACT;
        loop {
            let state = self.qmp.run_status()?.status;
            let info = self.qmp.migration()?;
            if state != RunState::InMigrate {
                return Ok(());
            }
            if info.status == MigrationStatus::Failed || Instant::now() > deadline {
                let why = info
                    .error_desc
                    .unwrap_or_else(|| format!("{:?}", info.status));
                return Err(ReceiveError::Other(format!(
                    "QEMU did not take the VM: {why}"
                )));
            }
            // Any event is a reason to look again.
            let _ = events.next(Instant::now() + Duration::from_millis(5));
        }
    }

    fn arrival(&self, told: Instant, corrected: usize) -> Arrival {
        let timeline = self.vm.timeline();
        let since = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to)
                .map_or(0.0, |(from, to)| millis(to.saturating_duration_since(from)))
        };
        Arrival {
            restore_ms: since(timeline.load_began, timeline.loaded),
            digest_ms: since(timeline.load_began, timeline.digested),
            resume_ms: millis(told.elapsed()),
            corrected,
        }
    }

    /// The VM runs, and needs the sidecar no longer until it migrates again.
    fn release_sidecar(&self) {
        if let Some(through) = self.slots.first()
            && let Err(error) = driverless::release(self.qmp, self.facts.sidecar, through)
        {
            tracing::warn!(%error, "not released: a driver loaded later finds it running");
        }
    }

    /// The VM runs; what happens to the link no longer matters to it.
    fn answer_digests(&self, link: &mut Link) {
        let digests = self.vm.take_digests();
        while let Ok(message) = link.receive(DIGESTS) {
            let answer = match message {
                Message::Digests { file } => Message::BlockDigests {
                    digests: digests.get(file).map(MemoryDigest::blocks),
                },
                Message::BlockPages { file, block } => Message::PageDigests {
                    pages: digests
                        .get(file)
                        .map(|d| d.block_pages(block))
                        .unwrap_or_default(),
                },
                _ => return,
            };
            if let Err(error) = link.send(&answer, ANSWER) {
                tracing::warn!(%error, "the source will not know whether all memory arrived");
                return;
            }
        }
    }
}

fn tell(link: &mut Link, error: ReceiveError) -> ReceiveError {
    let reason = match &error {
        ReceiveError::Refused(refused) => refused.to_string(),
        other => other.to_string(),
    };
    // The source finds out by the closed link if this does not get through.
    let _ = link.send(&Message::Abort { reason }, ANSWER);
    error
}
