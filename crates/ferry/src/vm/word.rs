//! Which host may run the VM, as far as it is known here: the word to run at a destination, and the
//! VM that a source keeps paused without knowing.

use serde::{Deserialize, Serialize};

use super::{State, Vm};
use crate::check::Refused;
use crate::commit::{Other, Whereabouts, Word};

/// The word of one migration to here.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// `None` before there was one.
    migration: Option<String>,
    word: Word,
}

impl Arrival {
    pub(super) fn of(migration: &str) -> Self {
        Self {
            migration: Some(migration.into()),
            word: Word::Awaited,
        }
    }

    pub(super) fn ran(&mut self) {
        self.word = Word::Ran;
    }

    fn whereabouts(&mut self, migration: &str) -> Whereabouts {
        if self.migration.as_deref() == Some(migration) {
            self.word.ask()
        } else {
            Whereabouts::Unknown
        }
    }
}

/// A VM that is kept paused, as the other host may run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unsettled {
    /// The migration that ended so.
    pub migration: String,
    /// What is known of the other host.
    pub other: Other,
    /// What went wrong.
    pub why: String,
}

impl Vm {
    /// The VM that is kept paused here, if it is.
    pub fn unsettled(&self) -> Option<Unsettled> {
        self.lock().unsettled.clone()
    }

    /// Refuses another migration of a VM that is kept paused: it would begin by forgetting which one
    /// is to be resolved.
    ///
    /// # Errors
    /// While it is.
    pub fn refuse_unsettled(&self) -> Result<(), Refused> {
        let Some(unsettled) = self.unsettled() else {
            return Ok(());
        };
        Err(Refused(vec![format!(
            "the VM is kept paused here, as a migration before ended in its last step ({}): \
             `vferry resolve` says what can be done",
            unsettled.why
        )]))
    }

    /// More is known of the other host now.
    pub fn set_other(&self, other: Other) {
        if let Some(unsettled) = &mut self.lock().unsettled {
            unsettled.other = other;
        }
    }

    /// A migration away from here ends without a VM that is known to run.
    pub(crate) fn keep_paused(&self, other: Other, why: &str) {
        let mut state = self.lock();
        state.unsettled = Some(Unsettled {
            migration: state.migration.clone(),
            other,
            why: why.into(),
        });
    }

    /// The incoming migration came to nothing.
    pub(crate) fn forget_arrival(&self) {
        let mut state = self.lock();
        state.session = None;
        state.word.word = Word::Withdrawn;
        let State {
            stage, migration, ..
        } = &mut *state;
        if let Err(error) = stage.discard_arrival(migration) {
            tracing::error!(%error, "the source cannot have back what it has let go of");
        }
    }

    /// The source of migration `name` asks where the VM is.
    pub fn whereabouts(&self, name: &str) -> Whereabouts {
        self.lock().word.whereabouts(name)
    }

    /// The word to run the VM of migration `name` has come, and the VM was not yet seen to run.
    pub(crate) fn is_about_to_run(&self, name: &str) -> bool {
        let arrival = &self.lock().word;
        arrival.migration.as_deref() == Some(name) && arrival.word == Word::Taken
    }

    /// The word to run has come. Says whether it counts.
    pub(crate) fn take_word(&self) -> bool {
        self.lock().word.word.take()
    }

    /// Whether it would not, were it to come.
    pub(crate) fn is_word_withdrawn(&self) -> bool {
        self.lock().word.word == Word::Withdrawn
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use device::MemoryId;
    use endpoint::Endpoints;
    use qemu::Qmp;
    use qemu::migration::MigrationSettings;
    use serde_json::json;

    use super::*;
    use crate::comparison::Comparison;
    use crate::digest::Secret;
    use crate::link::{DigestKey, Link, greeting};
    use crate::scripted;
    use crate::sleep::Bedtime;
    use crate::source::precopy::{NotSeen, see_running};
    use crate::source::{Options, Source};
    use crate::vm::StageName;
    use crate::{Controls, Protection, resolve};

    fn vm() -> Vm {
        let folder = tempfile::tempdir().unwrap();
        let sidecar = sidecar::Sidecar::bind(
            folder.path().join("sidecar.sock"),
            sidecar::Config::default(),
        );
        let log = sidecar.unwrap().marker_handle();
        Vm::new(Endpoints(Vec::new()), false, log, None, Controls::default())
    }

    fn secret() -> Secret {
        Secret::of(&DigestKey::new().unwrap())
    }

    /// A VM whose devices are handed over, and of which nobody knows where it runs.
    fn unsettled() -> Vm {
        let vm = vm();
        vm.begin_migration("m1", secret());
        let mut state = vm.lock();
        let marked = state
            .stage
            .halt_and_mark(&mut |_: MemoryId, _: u64| {}, |_, _| Ok(()));
        marked.unwrap();
        state.stage.hand_over("m1").unwrap().unwrap();
        drop(state);
        vm.keep_paused(Other::Silent, "silence");
        vm.end_migration();
        vm
    }

    /// A QEMU that has sent its VM, and lets it run if `obeys`. One whose guest sleeps ends itself unless
    /// it is reset first.
    fn qemu(obeys: bool, sleeps: bool) -> (Qmp, JoinHandle<Vec<String>>) {
        let (mut status, mut reset) = ("postmigrate", false);
        scripted::qemu(move |command, arguments| match command {
            "query-status" => json!({ "running": status == "running", "status": status }),
            "query-migrate" => json!({ "status": "completed" }),
            "set-action" => {
                assert_eq!(arguments["reboot"], "reset");
                json!({})
            }
            "system_reset" => {
                (status, reset) = ("prelaunch", true);
                json!({})
            }
            "cont" => {
                assert!(reset || !sleeps, "invalid runstate transition");
                if obeys {
                    status = "running";
                }
                json!({})
            }
            "human-monitor-command" => match arguments["command-line"].as_str().unwrap() {
                "i /b 0x71" if sleeps => json!("portb[0x0071] = 0xfe\r\n"),
                line if line.starts_with('i') => json!("portl[0x0000] = 0x0\r\n"),
                _ => json!(""),
            },
            _ => json!({}),
        })
    }

    #[test]
    fn an_operator_lets_a_vm_that_is_kept_paused_run_on_with_its_devices() {
        let vm = unsettled();
        assert_eq!(vm.unsettled().unwrap().migration, "m1");
        assert_eq!(vm.stage(), StageName::HandedOver);
        let (qmp, peer) = qemu(true, false);
        assert_eq!(resolve::run_here(&vm, &qmp), Ok(false), "it does not sleep");
        assert_eq!(vm.stage(), StageName::Running);
        assert_eq!(vm.unsettled(), None);
        drop(qmp);
        let heard = peer.join().unwrap();
        assert!(heard.contains(&"cont".into()));
        assert!(!heard.contains(&"system_reset".into()), "it does not sleep");
    }

    /// At `cont` alone QEMU would end itself.
    #[test]
    fn a_guest_that_sleeps_is_woken_by_a_reset() {
        let vm = unsettled();
        vm.note_sleep(true);
        let (qmp, peer) = qemu(true, true);
        assert_eq!(resolve::run_here(&vm, &qmp), Ok(false), "it is awake");
        assert_eq!(vm.stage(), StageName::Running);
        drop(qmp);
        let heard = peer.join().unwrap();
        let first = |name: &str| heard.iter().position(|heard| heard == name);
        assert!(first("set-action") < first("system_reset"), "{heard:?}");
        assert!(first("system_reset") < first("cont"), "{heard:?}");
    }

    /// QEMU was asked for its guest's sign of sleep, as a reset would end what a guest does that is awake.
    #[test]
    fn a_guest_that_is_awake_is_not_reset() {
        let vm = unsettled();
        vm.note_sleep(true);
        let (qmp, peer) = qemu(true, false);
        assert_eq!(resolve::run_here(&vm, &qmp), Ok(false));
        drop(qmp);
        assert!(!peer.join().unwrap().contains(&"system_reset".into()));
    }

    #[test]
    fn a_vm_that_does_not_run_stays_to_be_resolved() {
        let vm = unsettled();
        let (qmp, _peer) = qemu(false, false);
        let why = resolve::run_here(&vm, &qmp).unwrap_err();
        assert!(why.contains("PostMigrate"), "{why}");
        assert!(vm.unsettled().is_some());
    }

    #[test]
    fn a_vm_whose_qemu_has_ended_is_not_said_to_be_anywhere() {
        let vm = unsettled();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let greets = std::thread::spawn(move || {
            let version = json!({ "qemu": { "micro": 0, "minor": 1, "major": 11 }, "package": "" });
            let mut lines = BufReader::new(theirs.try_clone().unwrap());
            let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
            writeln!(&theirs, "{greeting}").unwrap();
            lines.read_line(&mut String::new()).unwrap();
            writeln!(&theirs, "{}", json!({ "return": {}, "id": 1 })).unwrap();
        });
        let qmp = Qmp::from_stream(ours, Instant::now() + Duration::from_secs(10)).unwrap();
        greets.join().unwrap();
        let seen = see_running(&vm, &qmp);
        assert!(matches!(seen, Err(NotSeen::QemuGone(_))), "{seen:?}");
    }

    #[test]
    fn a_vm_that_is_to_be_resolved_is_not_forgotten_over_another_migration() {
        let vm = unsettled();
        let (qmp, _peer) = qemu(true, false);
        let source = Source {
            vm: &vm,
            qmp: &qmp,
            slots: &[],
            facts: crate::check::tests::facts(),
            protection: Protection::Open,
            cancel: Arc::default(),
            letting_go: &(),
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut link = Link::agreed(Box::new(ours), greeting::NEWEST);
        let options = Options {
            verify: false,
            comparison: Comparison::Never,
            strategy: None,
            settings: MigrationSettings::default(),
            bedtime: Bedtime::default(),
        };
        let refused = source.migrate(&mut link, &options, &mut |_| {});
        let why = refused.unwrap_err().to_string();
        assert!(why.contains("`vferry resolve`"), "{why}");
        assert_eq!(vm.unsettled().unwrap().migration, "m1");
        drop(link);
        let said = std::io::read_to_string(theirs).unwrap();
        assert_eq!(said, "", "the other host hears nothing of it");
    }

    #[test]
    fn the_question_goes_over_the_link_and_withdraws_the_word() {
        let vm = vm();
        vm.expect_arrival("m1", secret(), false, false).unwrap();
        let ask = |name: &str| {
            let (a, b) = UnixStream::pair().unwrap();
            let link = |end| Link::agreed(Box::new(end), greeting::NEWEST);
            let (mut a, mut b) = (link(a), link(b));
            std::thread::scope(|scope| {
                let asked = scope.spawn(move || resolve::ask(&mut a, name));
                let soon = Duration::from_secs(10);
                let Ok(crate::link::Message::Settle { migration }) = b.receive(soon) else {
                    panic!("it is asked");
                };
                resolve::answer(&vm, &mut b, &migration).unwrap();
                asked.join().unwrap().unwrap()
            })
        };
        assert_eq!(ask("m2"), Other::CannotSay);
        assert!(!vm.is_word_withdrawn(), "of another migration");
        assert_eq!(ask("m1"), Other::WillNot);
        assert!(vm.is_word_withdrawn() && !vm.take_word());
    }

    #[test]
    fn a_vm_that_is_about_to_run_is_waited_for() {
        let vm = vm();
        vm.expect_arrival("m1", secret(), false, false).unwrap();
        assert!(!vm.is_about_to_run("m1") && vm.take_word());
        assert!(vm.is_about_to_run("m1") && !vm.is_about_to_run("m2"));
        let (a, b) = UnixStream::pair().unwrap();
        let [mut a, mut b] = [a, b].map(|end| Link::agreed(Box::new(end), greeting::NEWEST));
        std::thread::scope(|scope| {
            let answered = scope.spawn(|| resolve::answer(&vm, &mut b, "m1"));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!answered.is_finished(), "it is not known yet");
            vm.lock().word.ran();
            answered.join().unwrap().unwrap();
        });
        let whereabouts = Whereabouts::Here;
        let said = a.receive(Duration::from_secs(10)).unwrap();
        assert_eq!(said, crate::link::Message::Settled { whereabouts });
    }

    /// Its QEMU hangs with the `cont` that it was told: who asks hears that, and not nothing.
    #[test]
    fn a_vm_of_which_it_is_never_known_is_not_waited_for_for_ever() {
        let vm = vm();
        vm.expect_arrival("m1", secret(), false, false).unwrap();
        assert!(vm.take_word());
        let (a, b) = UnixStream::pair().unwrap();
        let [mut a, mut b] = [a, b].map(|end| Link::agreed(Box::new(end), greeting::NEWEST));
        let limit = Duration::from_millis(50);
        resolve::answer_within(limit, &vm, &mut b, "m1").unwrap();
        let whereabouts = Whereabouts::Unknown;
        let said = a.receive(Duration::from_secs(10)).unwrap();
        assert_eq!(said, crate::link::Message::Settled { whereabouts });
        assert!(!vm.is_word_withdrawn(), "it may run yet");
    }

    #[test]
    fn only_who_knows_the_migration_is_told_of_it_and_withdraws_its_word() {
        let mut arrival = Arrival::of("m1");
        assert_eq!(arrival.whereabouts("m2"), Whereabouts::Unknown);
        assert_eq!(arrival.word, Word::Awaited, "of another migration");
        assert_eq!(arrival.whereabouts("m1"), Whereabouts::Never);
        assert!(!arrival.word.take());
    }

    #[test]
    fn a_process_that_has_just_started_knows_nothing() {
        for name in ["m1", ""] {
            assert_eq!(Arrival::default().whereabouts(name), Whereabouts::Unknown);
        }
    }

    #[test]
    fn a_vm_that_came_is_here_whoever_let_it_run() {
        let mut arrival = Arrival::of("m1");
        arrival.ran();
        assert!(
            arrival.word.take(),
            "the word comes after somebody's `cont`"
        );
        assert_eq!(arrival.whereabouts("m1"), Whereabouts::Here);
    }
}
