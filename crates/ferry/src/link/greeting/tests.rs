use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;

use super::*;

const SOON: Duration = Duration::from_secs(5);
/// The first message of each kind of side, as it was when it was written.
const HELLO: &str = include_str!("../../../tests/golden/link-v8-hello.json");
const CHECK: &str = include_str!("../../../tests/golden/link-v8-check.json");
const CHECK_OF_7: &str = include_str!("../../../tests/golden/link-v7-check.json");

type Begun = Result<u32, LinkError>;

/// What both sides agree on.
fn begin(source: Versions, destination: Versions) -> (Begun, Begun) {
    let (a, b) = UnixStream::pair().unwrap();
    let welcoming = thread::spawn(move || Link::welcome_as(destination, Box::new(b), SOON));
    let greeted = Link::greet_as(source, Box::new(a), SOON);
    let version = |link: Link| link.version();
    (greeted.map(version), welcoming.join().unwrap().map(version))
}

fn versions(oldest: u32, newest: u32) -> Versions {
    Versions { oldest, newest }
}

fn frame(body: &str) -> Vec<u8> {
    let body = body.trim_end().as_bytes();
    let len = u32::try_from(body.len()).unwrap();
    [&len.to_be_bytes()[..], body].concat()
}

/// What a side says to another that says `words` and no more.
fn answer(
    words: &str,
    side: fn(Box<dyn Stream>, Duration) -> Result<Link, LinkError>,
) -> (Begun, String) {
    let (a, mut b) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut b, &frame(words)).unwrap();
    b.shutdown(std::net::Shutdown::Write).unwrap();
    let begun = side(Box::new(a), SOON).map(|link| link.version());
    let mut said = Vec::new();
    // It may have ended with something unread.
    let _ = b.read_to_end(&mut said);
    let said = said.get(4..).unwrap_or_default().to_vec();
    (begun, String::from_utf8(said).unwrap())
}

#[test]
fn both_sides_take_the_newest_version_that_both_know() {
    for (source, destination, agreed) in [
        (versions(8, 8), versions(8, 8), 8),
        (versions(8, 12), versions(5, 9), 9),
        (versions(5, 9), versions(8, 12), 9),
        (versions(8, 8), versions(1, 20), 8),
    ] {
        let (greeted, welcomed) = begin(source, destination);
        assert_eq!((greeted.unwrap(), welcomed.unwrap()), (agreed, agreed));
    }
}

#[test]
fn without_a_common_version_both_sides_say_who_must_be_updated() {
    let (greeted, welcomed) = begin(versions(8, 9), versions(10, 12));
    assert_eq!(
        greeted.unwrap_err().to_string(),
        "the other host's vferry speaks versions 10 to 12 of the control link, this one versions 8 \
         to 9: update vferry on this host"
    );
    assert_eq!(
        welcomed.unwrap_err().to_string(),
        "the other host's vferry speaks versions 8 to 9 of the control link, this one versions 10 \
         to 12: update vferry on the other host"
    );
}

#[test]
fn the_first_messages_are_as_they_were() {
    let (greeted, said) = answer(HELLO, Link::greet);
    assert_eq!(greeted.unwrap(), NEWEST);
    assert_eq!(said, HELLO.trim_end(), "a greeting's form is frozen");
    let (welcomed, said) = answer(HELLO, Link::welcome);
    assert_eq!(welcomed.unwrap(), NEWEST);
    assert_eq!(said, HELLO.trim_end(), "a greeting's form is frozen");
    let facts = Box::new(crate::check::tests::facts());
    let check = Message::Check { facts };
    assert_eq!(serde_json::to_string(&check).unwrap(), CHECK.trim_end());
    assert_eq!(super::super::parse(CHECK.as_bytes()).unwrap(), check);
}

#[test]
fn what_a_later_version_adds_to_its_greeting_is_ignored() {
    let later = r#"{"message":"hello","more":{"of":["it"]},"oldest":8,"newest":40}"#;
    let (greeted, _) = answer(later, Link::greet);
    assert_eq!(greeted.unwrap(), NEWEST);
    let (welcomed, _) = answer(later, Link::welcome);
    assert_eq!(welcomed.unwrap(), NEWEST);
}

/// Before there were greetings, the source began with `check`.
#[test]
fn a_source_of_version_7_is_told_in_its_own_words() {
    let (welcomed, said) = answer(CHECK_OF_7, Link::welcome);
    let error = welcomed.unwrap_err().to_string();
    assert!(error.contains("speaks version 7"), "{error}");
    assert!(
        error.ends_with("update vferry on the other host"),
        "{error}"
    );
    // It knows `abort`, and shows the reason.
    let Err(LinkError::Aborted(reason)) = super::super::parse(said.as_bytes()) else {
        panic!("{said}")
    };
    assert!(
        reason.ends_with("update vferry on the source's host"),
        "{reason}"
    );
}

/// A destination of version 7 refuses a kind of message that it does not know, as serde does.
#[test]
fn a_destination_of_version_7_is_known_by_its_refusal() {
    let words = r#"{"message":"abort","reason":"nothing arrived: the other host's vferry sent what is not a message of this version: unknown variant `hello`, expected one of `check`, `prepare`"}"#;
    let (greeted, _) = answer(words, Link::greet);
    let error = greeted.unwrap_err().to_string();
    assert!(error.contains("speaks version 7 or older"), "{error}");
    assert!(
        error.ends_with("update vferry on the other host"),
        "{error}"
    );
    let other = r#"{"message":"abort","reason":"busy"}"#;
    let (greeted, _) = answer(other, Link::greet);
    assert!(matches!(greeted, Err(LinkError::Aborted(_))));
}

#[test]
fn what_is_no_greeting_is_refused() {
    for words in [
        "",
        "{}",
        "[]",
        r#"{"message":"hello"}"#,
        r#"{"message":"hello","oldest":-1,"newest":8}"#,
        r#"{"message":"goodbye"}"#,
        r#"{"message":"\u001b[2J"}"#,
    ] {
        let (welcomed, said) = answer(words, Link::welcome);
        let error = welcomed.unwrap_err();
        assert!(matches!(error, LinkError::Malformed(_)), "{error}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
        assert_eq!(said, "");
    }
    // Upside down, it is nobody's.
    let (welcomed, _) = answer(
        r#"{"message":"hello","oldest":9,"newest":8}"#,
        Link::welcome,
    );
    assert!(matches!(welcomed, Err(LinkError::Version { .. })));
    let long = format!(
        r#"{{"message":"hello","x":"{}"}}"#,
        "x".repeat(MAX_GREETING)
    );
    let (welcomed, _) = answer(&long, Link::welcome);
    assert!(matches!(welcomed, Err(LinkError::TooLong(_))));
}

#[test]
fn one_that_speaks_tls_is_not_taken_for_a_boaster() {
    for first in [[22, 3, 1, 2], [21, 3, 3, 0]] {
        let (a, mut b) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut b, &first).unwrap();
        let error = Link::welcome(Box::new(a), SOON).unwrap_err();
        assert!(matches!(error, LinkError::Protected), "{error}");
    }
}

proptest! {
    #[test]
    fn both_sides_come_to_the_same_end(
        ours in (0..20_u32, 0..20_u32),
        theirs in (0..20_u32, 0..20_u32),
    ) {
        let (ours, theirs) = (versions(ours.0, ours.1), versions(theirs.0, theirs.1));
        let known = |v: Versions, n: u32| (v.oldest..=v.newest).contains(&n);
        let newest = (0..20).rev().find(|n| known(ours, *n) && known(theirs, *n));
        prop_assert_eq!(ours.agree(theirs).ok(), newest);
        prop_assert_eq!(theirs.agree(ours).ok(), newest);
    }
}
