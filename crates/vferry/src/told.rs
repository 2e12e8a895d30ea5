//! What an error says to people.

use anyhow::Error;

/// The error and what it came of, each once: many errors name what they came of themselves.
pub(crate) fn told(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
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
    fn no_cause_is_left_out() {
        let error = Err::<(), _>(std::io::Error::other("gone"))
            .context("inner")
            .context("outer");
        assert_eq!(told(&error.unwrap_err()), "outer: inner: gone");
    }
}
