//! One line of QMP, parsed without I/O (QEMU's `docs/interop/qmp-spec.rst`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::Version;

/// Longest line accepted, in bytes. QEMU's longest replies are its own schema and the list of
/// machines, a few hundred KiB.
pub const MAX_LINE: usize = 4 << 20;

/// What QEMU may say.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line of a connection.
    Greeting {
        /// Which QEMU this is.
        version: Version,
    },
    /// A command succeeded.
    Return {
        /// The id the command carried.
        id: Option<u64>,
        /// Its result.
        value: Value,
    },
    /// A command failed.
    Error {
        /// The id the command carried; absent if QEMU could not parse the command.
        id: Option<u64>,
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// Something happened.
    Event {
        /// `STOP`, `MIGRATION`, ...
        name: String,
        /// What QEMU tells about it; `Value::Null` if nothing.
        data: Value,
        /// QEMU's wall clock at the event, since the Unix epoch; absent if it had none.
        timestamp: Option<Duration>,
    },
}

/// A line that is not QMP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or nested too deeply, or not an object.
    #[error("invalid JSON: {0}")]
    Json(String),
    /// JSON, but neither greeting, return, error nor event.
    #[error("neither a greeting, a reply nor an event")]
    UnknownKind,
    /// Longer than [`MAX_LINE`].
    #[error("a line longer than {MAX_LINE} bytes")]
    TooLong,
    /// A message where the protocol has no place for it.
    #[error("{0}")]
    OutOfPlace(&'static str),
}

/// Parses one line, with or without its line end.
///
/// # Errors
///
/// Anything that is not exactly one message. No input makes it panic, and what it allocates is
/// linear in the line's length.
pub fn parse(line: &[u8]) -> Result<Message, Malformed> {
    if line.len() > MAX_LINE {
        return Err(Malformed::TooLong);
    }
    let wire: Wire = serde_json::from_slice(line).map_err(|e| Malformed::Json(e.to_string()))?;
    let id = wire.id.as_ref().and_then(Value::as_u64);
    match wire {
        Wire {
            greeting: Some(greeting),
            value: None,
            error: None,
            event: None,
            ..
        } => Ok(Message::Greeting {
            version: greeting.version.into(),
        }),
        Wire {
            greeting: None,
            value: Some(value),
            error: None,
            event: None,
            ..
        } => Ok(Message::Return { id, value }),
        Wire {
            greeting: None,
            value: None,
            error: Some(error),
            event: None,
            ..
        } => Ok(Message::Error {
            id,
            class: error.class,
            description: error.desc,
        }),
        Wire {
            greeting: None,
            value: None,
            error: None,
            event: Some(name),
            data,
            timestamp,
            ..
        } => {
            let timestamp = timestamp.and_then(WireTimestamp::since_epoch);
            Ok(Message::Event {
                name,
                data,
                timestamp,
            })
        }
        _ => Err(Malformed::UnknownKind),
    }
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<WireGreeting>,
    // `{"return": null}` is a reply too, so null must not read as absent.
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<WireError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<WireTimestamp>,
    id: Option<Value>,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct WireGreeting {
    version: WireVersion,
}

#[derive(Deserialize)]
pub(crate) struct WireVersion {
    qemu: WireTriple,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct WireTriple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl From<WireVersion> for Version {
    fn from(wire: WireVersion) -> Self {
        let WireTriple {
            major,
            minor,
            micro,
        } = wire.qemu;
        Self {
            major,
            minor,
            micro,
            package: wire.package,
        }
    }
}

#[derive(Deserialize)]
struct WireError {
    class: String,
    desc: String,
}

/// Both fields are -1 when QEMU cannot read its clock.
#[derive(Deserialize)]
struct WireTimestamp {
    seconds: i64,
    microseconds: i64,
}

impl WireTimestamp {
    fn since_epoch(self) -> Option<Duration> {
        let seconds = Duration::from_secs(u64::try_from(self.seconds).ok()?);
        seconds.checked_add(Duration::from_micros(
            u64::try_from(self.microseconds).ok()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_the_greeting_of_qemu_11() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11},
            "package": "Debian 1:11.1.3+ds-1~bpo13+1"}, "capabilities": ["oob"]}}"#;
        let Ok(Message::Greeting { version }) = parse(line) else {
            panic!("not a greeting")
        };
        assert_eq!((version.major, version.minor, version.micro), (11, 1, 3));
        assert_eq!(version.package, "Debian 1:11.1.3+ds-1~bpo13+1");
    }

    #[test]
    fn reads_replies_and_errors_with_their_id() {
        assert_eq!(
            parse(b"{\"return\": {\"a\": 1}, \"id\": 7}\r\n"),
            Ok(Message::Return {
                id: Some(7),
                value: json!({"a": 1})
            })
        );
        assert_eq!(
            parse(br#"{"return": null, "id": 8}"#),
            Ok(Message::Return {
                id: Some(8),
                value: Value::Null
            })
        );
        assert_eq!(
            parse(br#"{"error": {"class": "GenericError", "desc": "no"}}"#),
            Ok(Message::Error {
                id: None,
                class: "GenericError".to_owned(),
                description: "no".to_owned()
            })
        );
    }

    #[test]
    fn reads_events_with_and_without_a_clock() {
        let with = br#"{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 250000}}"#;
        assert_eq!(
            parse(with),
            Ok(Message::Event {
                name: "STOP".to_owned(),
                data: Value::Null,
                timestamp: Some(Duration::from_millis(5250))
            })
        );
        let without = br#"{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}"#;
        assert!(matches!(
            parse(without),
            Ok(Message::Event {
                timestamp: None,
                ..
            })
        ));
        let absurd = format!(
            r#"{{"event": "STOP", "timestamp": {{"seconds": {}, "microseconds": {}}}}}"#,
            i64::MAX,
            i64::MAX
        );
        assert!(parse(absurd.as_bytes()).is_ok());
    }

    #[test]
    fn refuses_what_is_not_exactly_one_message() {
        for line in [
            &b""[..],
            b"[]",
            b"{}",
            b"null",
            b"\xff\xfe",
            br#"{"return": 1, "event": "STOP"}"#,
            br#"{"return": 1} {"return": 2}"#,
            br#"{"event": 5}"#,
            br#"{"error": "text"}"#,
            br#"{"QMP": {"version": {"qemu": {"micro": -3, "minor": 1, "major": 11}}}}"#,
        ] {
            assert!(
                parse(line).is_err(),
                "accepted {}",
                String::from_utf8_lossy(line)
            );
        }
    }

    #[test]
    fn refuses_deep_nesting_instead_of_overflowing_the_stack() {
        let line = [&br#"{"return": "#[..], &vec![b'['; 1 << 20]].concat();
        assert!(matches!(parse(&line), Err(Malformed::Json(_))));
    }

    #[test]
    fn refuses_a_line_over_the_bound() {
        assert_eq!(parse(&vec![b' '; MAX_LINE + 1]), Err(Malformed::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }

        #[test]
        fn no_json_object_makes_it_panic(
            key in "QMP|return|error|event|data|timestamp|id",
            other in "QMP|return|error|event|data|timestamp|id",
            value in r#"-?[0-9]{1,30}|null|"[a-z]{0,4}"|\{\}|\[\]|\{"(qemu|version|class|desc)": 1\}"#,
        ) {
            let _ = parse(format!(r#"{{"{key}": {value}, "{other}": {value}}}"#).as_bytes());
        }
    }
}
