//! Two sides' memory, over a real connection.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::*;
use crate::destination::memory;
use crate::digest::PAGE;
use crate::digest::tests::{memory, ram};
use crate::link::DigestKey;
use crate::link::greeting::NEWEST;
use crate::vm::Session;

/// Nobody cancels.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Pages of each memory: a block and a part of one.
const PAGES: usize = 700;

fn secret() -> Secret {
    Secret::of(&DigestKey::of(1))
}

fn session(files: &[File]) -> Session {
    Session {
        ram: Arc::new(files.iter().map(|file| ram(file, 0)).collect()),
        secret: Some(secret()),
        ..Session::default()
    }
}

fn to_compare(files: &[File]) -> ToCompare {
    ToCompare::new(files.iter().map(|file| ram(file, 0)).collect(), secret()).unwrap()
}

/// The destination, which answers until the source ends or asks what it may not.
fn destination(files: &[File]) -> (Link, JoinHandle<(Session, LinkError)>) {
    let (a, b) = UnixStream::pair().unwrap();
    let mut session = session(files);
    let serving = thread::spawn(move || {
        let mut link = Link::agreed(Box::new(b), NEWEST);
        loop {
            let answered = link
                .receive(ANSWER)
                .and_then(|question| memory::compare(&mut session, &mut link, &question));
            if let Err(error) = answered {
                return (session, error);
            }
        }
    });
    (Link::agreed(Box::new(a), NEWEST), serving)
}

fn write(file: &File, page: usize, byte: u8) {
    file.write_all_at(&[byte; PAGE], (page * PAGE) as u64)
        .unwrap();
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; PAGES * PAGE];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_differs_is_sent_and_nothing_else() {
    let files = || [memory(PAGES), memory(PAGES)];
    let (here, there) = (files(), files());
    for page in [0, 1, 511, 512, 699] {
        write(&here[0], page, 7);
    }
    write(&here[0], 600, 3);
    write(&there[0], 600, 3);
    write(&there[1], 650, 9);
    let own = to_compare(&here);
    let (mut link, serving) = destination(&there);
    let (_, compared) = run(&own, &mut link, &NEVER).unwrap();
    assert_eq!(compared.pages, 6);
    drop(link);
    let (session, error) = serving.join().unwrap();
    assert!(matches!(error, LinkError::Closed), "{error}");
    assert!(session.digests[0] == own.ram[0].digest(Urgency::Now, &own.secret).unwrap());
    for (here, there) in here.iter().zip(&there) {
        assert!(bytes(here) == bytes(there));
    }
    let (mut link, _serving) = destination(&there);
    let (_, compared) = run(&own, &mut link, &NEVER).unwrap();
    assert_eq!(compared.pages, 0);
}

/// More than fit one message.
#[test]
fn much_that_differs_is_sent_in_parts() {
    let pages = MAX_PAGES + 1;
    let (here, there) = (memory(pages), memory(pages));
    for page in 0..pages {
        write(&here, page, 5);
    }
    let (mut link, _serving) = destination(std::slice::from_ref(&there));
    let own = to_compare(std::slice::from_ref(&here));
    for expected in [pages, 0] {
        let (_, compared) = run(&own, &mut link, &NEVER).unwrap();
        assert_eq!(compared.pages, expected);
        // As a destination that has yet to take its digests.
        let (again, _serving) = destination(std::slice::from_ref(&there));
        link = again;
    }
}

#[test]
fn digests_are_of_what_was_sent_and_of_nothing_that_came_later() {
    for differ in [false, true] {
        let (here, there) = (memory(PAGES), memory(PAGES));
        if differ {
            write(&here, 5, 1);
        }
        let (mut link, serving) = destination(std::slice::from_ref(&there));
        let own = to_compare(std::slice::from_ref(&here));
        // As a destination does that is to be verified: at LOAD, before its QEMU has done all.
        ask_blocks(&mut link, 0, own.ram[0].blocks()).unwrap();
        write(&there, 6, 2);
        run(&own, &mut link, &NEVER).unwrap();
        drop(link);
        let (session, _) = serving.join().unwrap();
        let own = own.ram[0].digest(Urgency::Now, &own.secret).unwrap();
        assert!(session.digests[0] == own, "differ: {differ}");
        assert!(bytes(&there)[6 * PAGE..7 * PAGE] == [2; PAGE]);
    }
}

#[test]
fn two_sides_with_other_memory_are_not_compared() {
    let (one, two) = ([memory(PAGES)], [memory(PAGES), memory(PAGES)]);
    let larger = [memory(2 * PAGES)];
    for (here, there) in [(&one[..], &two[..]), (&two, &one), (&one, &larger)] {
        let (mut link, serving) = destination(there);
        let error = run(&to_compare(here), &mut link, &NEVER).unwrap_err();
        assert!(
            matches!(
                error,
                NotCompared::Link(LinkError::Unexpected(_) | LinkError::Malformed(_))
            ),
            "{error}"
        );
        drop(link);
        serving.join().unwrap();
    }
    assert!(ToCompare::new(Vec::new(), secret()).is_err());
}

#[test]
fn pages_that_are_not_there_are_not_written() {
    let pages = |pages: Vec<usize>| Message::Pages { file: 0, pages };
    let wrong = [
        pages(vec![PAGES]),
        pages(vec![usize::MAX]),
        pages(vec![0; MAX_PAGES + 1]),
        Message::Pages {
            file: 1,
            pages: vec![0],
        },
        Message::BlockPages {
            file: 0,
            blocks: vec![0; MAX_BLOCKS + 1],
        },
        Message::Goodbye,
    ];
    for message in wrong {
        let there = [memory(PAGES)];
        let (mut link, serving) = destination(&there);
        link.send(&message, ANSWER).unwrap();
        // It may have closed already.
        let _ = link.send_bytes(&[1; PAGE], ANSWER);
        let (_, error) = serving.join().unwrap();
        assert!(
            matches!(error, LinkError::Unexpected(_) | LinkError::Malformed(_)),
            "{message:?}: {error}"
        );
        assert!(bytes(&there[0]).iter().all(|byte| *byte == 0));
    }
}

/// Answers with these messages, and these bytes after the first, whatever it is asked.
fn impostor(answers: Vec<Message>, bytes: usize) -> (Link, JoinHandle<()>) {
    let (a, b) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || {
        let mut link = Link::agreed(Box::new(b), NEWEST);
        for (index, answer) in answers.iter().enumerate() {
            let _ = link.receive(ANSWER);
            let _ = link.send(answer, ANSWER);
            if index == 0 {
                let _ = link.send_bytes(&vec![0xff; bytes], ANSWER);
            }
        }
    });
    (Link::agreed(Box::new(a), NEWEST), serving)
}

#[test]
fn a_destination_that_answers_nonsense_has_the_migration_fail() {
    let own = to_compare(&[memory(PAGES)]);
    let differing = Message::BlockDigests {
        len: Some((PAGES * PAGE) as u64),
    };
    let count = |count| Message::PageDigests { count };
    let len = |len| vec![Message::BlockDigests { len }];
    let wrong = [
        vec![Message::PagesWritten],
        len(None),
        len(Some(0)),
        len(Some(u64::MAX)),
        vec![differing.clone(), count(0)],
        vec![differing.clone(), count(PAGES + 1)],
        vec![differing.clone(), count(usize::MAX)],
        vec![differing, Message::Goodbye],
    ];
    for answers in wrong {
        let (mut link, serving) = impostor(answers.clone(), 2 * size_of::<u128>());
        let error = run(&own, &mut link, &NEVER).unwrap_err();
        assert!(
            matches!(
                error,
                NotCompared::Link(LinkError::Unexpected(_) | LinkError::Malformed(_))
            ),
            "{answers:?}: {error}"
        );
        drop(link);
        serving.join().unwrap();
    }
}

/// It has taken the question, and does not answer: the VM stands still meanwhile.
#[test]
fn a_comparison_with_one_that_hangs_can_be_cancelled() {
    let memory = memory(PAGES);
    let own = to_compare(std::slice::from_ref(&memory));
    let (a, _hangs) = UnixStream::pair().unwrap();
    let mut link = Link::agreed(Box::new(a), NEWEST);
    let cancel = AtomicBool::new(false);
    thread::scope(|scope| {
        let compared = scope.spawn(|| run(&own, &mut link, &cancel));
        thread::sleep(2 * LOOK);
        assert!(!compared.is_finished());
        cancel.store(true, Ordering::Release);
        let error = compared.join().unwrap().unwrap_err();
        assert!(matches!(error, NotCompared::Cancelled), "{error}");
    });
}

#[test]
fn whoever_hangs_is_not_waited_for_without_end() {
    let (a, _hangs) = UnixStream::pair().unwrap();
    let mut link = Link::agreed(Box::new(a), NEWEST);
    let limit = 3 * LOOK;
    let error = unless_cancelled(&mut link, limit, &NEVER).unwrap_err();
    let too_long =
        matches!(error, NotCompared::Link(LinkError::Timeout(waited)) if waited == limit);
    assert!(too_long, "{error}");
}
