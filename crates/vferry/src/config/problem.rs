//! What is wrong with a configuration, where, and what to write instead.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is wrong.
    #[error("{}", list(path, problems))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1 on.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub instead: String,
}

impl Problem {
    /// At a place in `text`.
    pub fn at(
        text: &str,
        span: &Range<usize>,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) -> Self {
        Self {
            line: line(text, span),
            what: what.into(),
            instead: instead.into(),
        }
    }
}

/// The line of a place in `text`, from 1 on.
pub(super) fn line(text: &str, span: &Range<usize>) -> usize {
    text.bytes()
        .take(span.start)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n    write instead: {}", self.what, self.instead)
    }
}

fn list(path: &std::path::Path, problems: &[Problem]) -> String {
    let one = |p: &Problem| format!("{}:{}: {p}", path.display(), p.line);
    problems.iter().map(one).collect::<Vec<_>>().join("\n")
}
