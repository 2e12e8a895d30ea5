//! What an error says to people.

use anyhow::Error;

/// The error and what it came of, each once: many errors name what they came of themselves.
pub(crate) fn told(error: &Error) -> String {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if !said.iter().any(|above| names(above, &cause)) {
            said.push(cause);
        }
    }
    said.join(": ")
}

/// Whether `text` names `cause` as what it came of: after a colon, or as all that it says, and up to a mark.
/// The same letters elsewhere are a chance.
fn names(text: &str, cause: &str) -> bool {
    text.match_indices(cause).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + cause.len()..]);
        let begins = before.is_empty() || before.ends_with(": ");
        begins && (after.is_empty() || after.starts_with([':', '.', ',', ';']))
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use ferry::check::Refused;
    use ferry::source::MigrateError;

    use super::*;

    #[test]
    fn a_reason_is_said_once() {
        let refused = Refused(vec!["at the destination: no".into()]);
        let error = Error::new(MigrateError::Refused(refused));
        let text = "refused, nothing was touched: at the destination: no";
        assert_eq!(told(&error), text);
        let error = Err::<(), _>(error).context("the lab").unwrap_err();
        assert_eq!(told(&error), format!("the lab: {text}"));
    }

    #[test]
    fn a_cause_within_a_sentence_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the image: {source}. It must exist")]
        struct Image {
            source: std::io::Error,
        }
        let source = std::io::Error::other("no such file");
        let error = Error::new(Image { source }).context("disk0");
        assert_eq!(
            told(&error),
            "disk0: cannot open the image: no such file. It must exist"
        );
    }

    /// The same letters are in what it was the cause of.
    #[test]
    fn a_cause_is_not_left_out_by_chance() {
        for (cause, text) in [
            ("no", "node 1: nothing came"),
            ("closed", "the link is closed: none was left"),
            ("read", "cannot: reading the record"),
        ] {
            let error = Error::new(std::io::Error::other(cause)).context(text);
            assert_eq!(told(&error), format!("{text}: {cause}"));
        }
    }

    #[test]
    fn no_cause_is_left_out() {
        let error = Err::<(), _>(std::io::Error::other("gone"))
            .context("inner")
            .context("outer");
        assert_eq!(told(&error.unwrap_err()), "outer: inner: gone");
    }
}
