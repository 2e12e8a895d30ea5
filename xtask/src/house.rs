//! The house's own lints: what clippy cannot know about this project.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::workspace::{git, output_of, root};

/// A file longer than this holds a second thing that wants a file of its own.
const MAX_LINES: usize = 600;

/// Every crate's head says where the crate ends.
const HEADING: &str = "//! # What it does not do";

/// Generated, and cargo writes the registry's address into it.
const GENERATED: &str = "Cargo.lock";

/// Written in two halves, so that this file does not contain what it looks for.
const MACHINE: [&str; 9] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tmp/ta", "rget"),
    concat!("deb.deb", "ian.org"),
    concat!("static.cra", "tes.io"),
    concat!("index.cra", "tes.io"),
    concat!("py", "pi.org"),
    concat!("registry.np", "mjs.org"),
    concat!("proxy.go", "lang.org"),
];

const UNFINISHED: [&str; 3] = [
    concat!("#[ig", "nore"),
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
];

/// Of the kernel module, which is no part of the workspace's licence.
const C_LICENCE: &str = "SPDX-License-Identifier: GPL-2.0-only";

pub(crate) fn run() -> Result<()> {
    // New files too, before they are added.
    let list = output_of(git(&[
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut findings = Vec::new();
    let mut files = 0;
    for path in list
        .split_terminator('\0')
        .filter(|path| *path != GENERATED)
    {
        // A file that is not text has no lines to read; one that was deleted has no content.
        let file = root().join(path);
        if !file.is_file() {
            continue;
        }
        let bytes = fs::read(&file).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            findings.extend(findings_in(Path::new(path), &text));
            files += 1;
        }
    }
    ensure!(findings.is_empty(), "\n{}", findings.join("\n"));
    eprintln!("xtask: {files} files keep the house's rules");
    Ok(())
}

fn findings_in(path: &Path, text: &str) -> Vec<String> {
    let rust = path.extension().is_some_and(|end| end == "rs");
    let c = path.extension().is_some_and(|end| end == "c" || end == "h");
    let mut findings = Vec::new();
    let mut report = |line: usize, problem: String| {
        findings.push(format!("{}:{line}: {problem}", path.display()));
    };
    for (number, line) in (1..).zip(text.lines()) {
        for machine in MACHINE.iter().filter(|machine| line.contains(*machine)) {
            report(
                number,
                format!("`{machine}` is a path or address of one machine; take it out"),
            );
        }
        if rust {
            // A comment may speak of what code may not do.
            let code = line.split("//").next().unwrap_or_default();
            for unfinished in UNFINISHED
                .iter()
                .filter(|unfinished| code.contains(*unfinished))
            {
                report(
                    number,
                    format!("`{unfinished}` promises what is not there; finish it"),
                );
            }
        }
    }
    let lines = text.lines().count();
    if (rust || c) && lines > MAX_LINES {
        report(
            lines,
            format!("{lines} lines, more than {MAX_LINES}; what second thing is in it?"),
        );
    }
    if c && !text
        .lines()
        .next()
        .is_some_and(|line| line.contains(C_LICENCE))
    {
        report(
            1,
            format!("C is the kernel module's: begin with `{C_LICENCE}`"),
        );
    }
    if is_crate_head(path) && !head(text).any(|line| line == HEADING) {
        report(
            1,
            format!("the crate's head has no `{HEADING}`; say where the crate ends"),
        );
    }
    findings
}

/// `crates/NAME/src/lib.rs` or `main.rs`, and the same of `xtask`.
fn is_crate_head(path: &Path) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")
}

fn head(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| line.starts_with("//!") || line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        findings_in(Path::new(path), text)
    }

    #[test]
    fn every_rule_finds_what_it_is_for() {
        let head = "//! A crate.\n//!\n//! # What it does not do\n";
        assert_eq!(findings("crates/a/src/lib.rs", head), Vec::<String>::new());
        assert_eq!(findings("crates/a/src/lib.rs", "//! A crate.\n").len(), 1);
        let late = "//! A crate.\nmod a;\n//! # What it does not do\n";
        assert_eq!(findings("crates/a/src/main.rs", late).len(), 1);
        assert_eq!(findings("crates/a/src/other.rs", "").len(), 0);

        assert_eq!(findings("a.rs", &"\n".repeat(MAX_LINES)).len(), 0);
        assert_eq!(findings("a.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
        assert_eq!(findings("a.txt", &"\n".repeat(MAX_LINES + 1)).len(), 0);

        let c_file = format!("// {C_LICENCE}\n");
        assert_eq!(findings("a.c", &c_file).len(), 0);
        assert_eq!(findings("a.h", &format!("\n{c_file}")).len(), 1);
        assert_eq!(findings("a.c", &c_file.repeat(MAX_LINES + 1)).len(), 1);

        for machine in MACHINE {
            let found = findings("README.md", &format!("one\nsee {machine}x\n"));
            assert_eq!(found.len(), 1);
            assert!(found[0].starts_with("README.md:2: "), "{found:?}");
        }
        for unfinished in UNFINISHED {
            assert_eq!(
                findings("a.rs", &format!("    {unfinished}(\"later\")")).len(),
                1
            );
            assert_eq!(findings("a.rs", &format!("// never {unfinished}")).len(), 0);
            assert_eq!(findings("a.md", unfinished).len(), 0);
        }
    }

    #[test]
    fn this_file_keeps_the_rules_it_makes() {
        assert_eq!(
            findings("xtask/src/house.rs", include_str!("house.rs")),
            Vec::<String>::new()
        );
    }
}
