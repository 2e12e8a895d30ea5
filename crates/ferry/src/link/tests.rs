//! Messages over a pair of sockets.

use super::*;
use crate::cooperative::end::Restart;
use crate::recovery::Outcome;
use proptest::prelude::*;
use qemu::bridge::{Bridge, Window};
use std::os::unix::net::UnixStream;

const SOON: Duration = Duration::from_secs(5);

fn pair() -> (Link, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    (Link::agreed(Box::new(a), greeting::NEWEST), b)
}

#[test]
fn every_kind_of_message_arrives_as_it_was_sent() {
    let (mut a, b) = pair();
    let mut b = Link::agreed(Box::new(b), greeting::NEWEST);
    let config = serde_json::from_str(r#"{"hex":"8680"}"#).unwrap();
    let function = Function {
        name: "net0".into(),
        config,
        table: Some(MsixTable(vec![])),
    };
    let messages = [
        Message::Check {
            facts: Box::new(crate::check::tests::facts()),
        },
        Message::Prepare {
            migration: name().unwrap(),
            digest_key: DigestKey::new().unwrap(),
            functions: vec![function.clone()],
            root_ports: vec![RootPort {
                device: "net0".into(),
                bridge: Bridge {
                    secondary: 1,
                    subordinate: 1,
                    memory: Window { base: 0, limit: 0 },
                    prefetchable: Window { base: 0, limit: 0 },
                },
                has_reported: false,
            }],
            verify: true,
            compare: false,
        },
        Message::Prepared {
            uri: "unix:/run/mig".into(),
        },
        Message::Run {
            functions: vec![Function {
                table: None,
                ..function
            }],
            then: Afterwards::Wake,
        },
        Message::Recovered {
            devices: vec![Recovered {
                device: "net0".into(),
                outcome: Outcome::NotInUse,
            }],
        },
        Message::Running(Arrival::default()),
        Message::GuestEnd,
        Message::GuestEnded(Restarts {
            recover_ms: 1.5,
            devices: vec![Restart::Done(1.0), Restart::Failed("error 5".into())],
        }),
        Message::Digests { file: 0 },
        Message::BlockDigests { len: Some(4096) },
        Message::BlockDigests { len: None },
        Message::BlockPages {
            file: 0,
            blocks: vec![7],
        },
        Message::PageDigests { count: 512 },
        Message::Pages {
            file: 0,
            pages: vec![3],
        },
        Message::PagesWritten,
        Message::Settle {
            migration: name().unwrap(),
        },
        Message::Settled {
            whereabouts: Whereabouts::Never,
        },
        Message::Goodbye,
    ];
    for message in messages {
        a.send(&message, SOON).unwrap();
        assert_eq!(b.receive(SOON).unwrap(), message);
    }
    a.send(
        &Message::Abort {
            reason: "no\x1b[2J".into(),
        },
        SOON,
    )
    .unwrap();
    let error = b.receive(SOON).unwrap_err();
    assert_eq!(error.to_string(), "the other host gave up: no [2J");
}

#[test]
fn what_is_no_message_is_quoted_without_control_characters() {
    let error = parse(br#"{"message":"prepared","\u001b[2J":1}"#).unwrap_err();
    assert!(error.to_string().contains("` [2J`"), "{error}");
    let error = parse(br#"{"message":"\u001b]0;x\u0007"}"#).unwrap_err();
    assert!(error.to_string().contains("` ]0;x `"), "{error}");
}

#[test]
fn silence_closing_and_boasting_are_told_apart() {
    let (mut a, b) = pair();
    let silence = a.receive(Duration::from_millis(20));
    assert!(matches!(silence, Err(LinkError::Timeout(_))));
    (&b).write_all(&[0xff; 4]).unwrap();
    assert!(matches!(
        a.receive(SOON),
        Err(LinkError::TooLong(0xffff_ffff))
    ));
    let (mut a, b) = pair();
    (&b).write_all(&[0, 0, 0, 9, b'{']).unwrap();
    drop(b);
    assert!(matches!(a.receive(SOON), Err(LinkError::Closed)));
}

#[test]
fn a_wait_that_ends_in_the_middle_of_a_message_loses_nothing() {
    let (mut a, b) = pair();
    let body = br#"{"message":"goodbye"}"#;
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    for piece in [&frame[..2], &frame[2..4], &frame[4..10]] {
        (&b).write_all(piece).unwrap();
        let early = a.receive(Duration::from_millis(5));
        assert!(matches!(early, Err(LinkError::Timeout(_))));
    }
    (&b).write_all(&frame[10..]).unwrap();
    assert_eq!(a.receive(SOON).unwrap(), Message::Goodbye);
}

#[test]
fn a_look_takes_what_has_come_and_waits_for_nothing() {
    let (mut a, mut b) = pair();
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(a.look().unwrap(), None);
    }
    // The shortest limit of a socket is a tick of the system's clock, of which 100 may be a second.
    assert!(began.elapsed() < Duration::from_millis(500));
    let body = br#"{"message":"goodbye"}"#;
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    b.write_all(&frame[..10]).unwrap();
    assert_eq!(a.look().unwrap(), None);
    b.write_all(&frame[10..]).unwrap();
    assert_eq!(a.look().unwrap(), Some(Message::Goodbye));

    // Whoever receives waits, as before.
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        b.write_all(&frame).map(|()| b)
    });
    assert_eq!(a.receive(SOON).unwrap(), Message::Goodbye);
    drop(late.join().unwrap().unwrap());
    assert!(matches!(a.look(), Err(LinkError::Closed)));
}

#[test]
fn what_has_come_is_taken_however_late() {
    let (mut a, b) = pair();
    let mut b = Link::agreed(Box::new(b), greeting::NEWEST);
    b.send(&Message::Goodbye, SOON).unwrap();
    assert_eq!(a.receive(Duration::ZERO).unwrap(), Message::Goodbye);
    let nothing = a.receive(Duration::ZERO);
    assert!(matches!(nothing, Err(LinkError::Timeout(_))));
    // Whoever receives waits, as before.
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        b.send(&Message::Goodbye, SOON).map(|()| b)
    });
    assert_eq!(a.receive(SOON).unwrap(), Message::Goodbye);
    late.join().unwrap().unwrap();
}

#[test]
fn nobody_is_asked_who_has_not_answered_yet() {
    let (mut a, b) = pair();
    let mut b = Link::agreed(Box::new(b), greeting::NEWEST);
    let soon = Duration::from_millis(20);
    let silence = a.ask(&Message::Recover, soon);
    assert!(matches!(silence, Err(LinkError::Timeout(_))));
    let late = Message::Recovered { devices: vec![] };
    b.send(&late, SOON).unwrap();
    // That would be taken for the answer to this.
    let next = a.ask(&Message::Digests { file: 0 }, SOON);
    assert!(matches!(next, Err(LinkError::Unanswered)));
    let abort = Message::Abort {
        reason: "no more".into(),
    };
    a.send(&abort, SOON).unwrap();
}

#[test]
fn nothing_follows_half_a_message() {
    let (mut a, mut b) = pair();
    let long = Message::Abort {
        reason: "x".repeat(4 << 20),
    };
    let stalled = a.send(&long, Duration::from_millis(20));
    assert!(matches!(stalled, Err(LinkError::Timeout(_))));
    // There is room again.
    b.read_exact(&mut vec![0; 1 << 16]).unwrap();
    assert!(a.send(&Message::Goodbye, SOON).is_err());
    drop(a);
    let mut rest = Vec::new();
    b.read_to_end(&mut rest).unwrap();
    assert!(rest.iter().all(|byte| *byte == b'x'), "it is all of one");
}

proptest! {
    #[test]
    fn garbage_is_an_error(body in proptest::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(parse(&body).is_err());
    }
}
