//! The word to run, and what has come of it.

use super::{ANSWER, MigrateError, RUN};
use crate::commit::{self, Heard, Other, SourceThen};
use crate::link::{self, Afterwards, Arrival, Function, Link, LinkError, Message};
use crate::{Phase, Vm};

/// The destination was not seen to run the VM.
#[derive(Debug)]
pub(super) enum NotRun {
    /// It said so, or cannot have heard the word.
    Certain(LinkError),
    /// It may have.
    Unknown(LinkError),
}

/// The commit: the destination may run the VM as soon as this message is sent. `said` is called then, and not
/// before, as the VM stands still.
pub(super) fn tell_to_run(
    link: &mut Link,
    functions: &[Function],
    then: Afterwards,
    said: impl FnOnce(),
) -> Result<Arrival, NotRun> {
    let word = Message::Run {
        functions: functions.to_vec(),
        then,
    };
    let (heard, error) = match give(link, &word, said) {
        Ok(arrival) => return Ok(arrival),
        Err(failed) => failed,
    };
    Err(match commit::source(heard) {
        SourceThen::RunHere => NotRun::Certain(error),
        SourceThen::StayPaused | SourceThen::Leave => NotRun::Unknown(error),
    })
}

fn give(
    link: &mut Link,
    word: &Message,
    said: impl FnOnce(),
) -> Result<Arrival, (Heard, LinkError)> {
    // A host that has ended is known by that, though its system would take the word from here and
    // say only then that nobody is there.
    match link.look() {
        Ok(None) => {}
        Err(error) => return Err((Heard::NotSent, error)),
        Ok(Some(other)) => return Err((Heard::NotSent, link::unexpected(&other))),
    }
    // Half a message is none: the destination ends its QEMU when the link closes.
    link.send(word, ANSWER)
        .map_err(|error| (Heard::NotSent, error))?;
    said();
    match link.receive(RUN) {
        Ok(Message::Running(arrival)) => Ok(arrival),
        Ok(other) => Err((Heard::Nothing, link::unexpected(&other))),
        // It says so only if its QEMU was never told to run the VM.
        Err(error @ LinkError::Aborted(_)) => Err((Heard::GaveUp, error)),
        Err(error) => Err((Heard::Nothing, error)),
    }
}

/// The destination may run the VM: it stays paused here until somebody knows.
pub(super) fn keep_paused(vm: &Vm, error: &LinkError) -> MigrateError {
    vm.keep_paused(Other::Silent, &error.to_string());
    MigrateError::Uncertain {
        phase: Phase::Resume,
        why: error.to_string(),
        whereabouts: "All of the VM is at the destination, which was told to run it and has not \
                      answered; this side keeps it paused. `vferry resolve` asks the destination \
                      once more and says what can be done. Do not let it run here by QMP: the \
                      destination may run it now, or as soon as it hears the word"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::link::greeting::NEWEST;

    fn link(stream: UnixStream) -> Link {
        Link::agreed(Box::new(stream), NEWEST)
    }

    fn told(answer: impl FnOnce(&mut Link) + Send + 'static) -> Result<Arrival, NotRun> {
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || answer(&mut link(b)));
        let result = tell_to_run(&mut link(a), &[], Afterwards::Nothing, || {});
        other.join().unwrap();
        result
    }

    fn hear_the_word(link: &mut Link) {
        assert!(matches!(link.receive(ANSWER), Ok(Message::Run { .. })));
    }

    #[test]
    fn a_destination_that_runs_the_vm_has_it() {
        let said = told(|link| {
            hear_the_word(link);
            let running = Message::Running(Arrival::default());
            link.send(&running, ANSWER).unwrap();
        });
        assert_eq!(said.unwrap(), Arrival::default());
    }

    #[test]
    fn a_destination_that_gives_up_leaves_the_vm_here_for_certain() {
        let said = told(|link| {
            hear_the_word(link);
            let reason = "its disk is not to be had".into();
            link.send(&Message::Abort { reason }, ANSWER).unwrap();
        });
        assert!(matches!(said, Err(NotRun::Certain(LinkError::Aborted(_)))));
    }

    #[test]
    fn a_destination_that_dies_after_the_word_may_run_the_vm() {
        let said = told(hear_the_word);
        assert!(matches!(said, Err(NotRun::Unknown(LinkError::Closed))));
        // Whatever else it says is not that it does not run.
        let said = told(|link| {
            hear_the_word(link);
            link.send(&Message::Goodbye, ANSWER).unwrap();
        });
        assert!(matches!(said, Err(NotRun::Unknown(_))));
    }

    /// Its system would take the word, and say only then that nobody is there.
    #[test]
    fn a_destination_that_ended_before_the_word_does_not_run_the_vm() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        let mut link = Link::agreed(Box::new(ours), NEWEST);
        let said = tell_to_run(&mut link, &[], Afterwards::Nothing, || {});
        assert!(
            matches!(said, Err(NotRun::Certain(LinkError::Closed))),
            "{said:?}"
        );
    }

    #[test]
    fn a_word_that_could_not_be_sent_was_not_heard() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        let said = tell_to_run(&mut link(a), &[], Afterwards::Nothing, || {});
        assert!(matches!(said, Err(NotRun::Certain(LinkError::Closed))));
    }
}
