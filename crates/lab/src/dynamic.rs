//! The packages' programs, which need a loader and libraries: run on the host or put into a guest,
//! always with those that are unpacked beside them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where programs say that their loader is.
pub(crate) const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// Where the loader looks by itself.
pub(crate) const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The loader that is unpacked below `root`.
pub(crate) fn loader(root: &Path) -> PathBuf {
    root.join("usr").join(LOADER)
}

/// The libraries that are unpacked below `root`.
pub(crate) fn libraries(root: &Path) -> PathBuf {
    root.join("usr").join(LIBRARIES)
}

/// A command that runs `program` on the host, to which arguments can be added.
pub(crate) fn command(root: &Path, program: &Path) -> Command {
    let mut command = with_libraries(root);
    command.arg(program);
    command
}

/// Every library that `program` needs, by its name, and its file; the loader is not among them.
pub(crate) fn needed(root: &Path, program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let output = with_libraries(root)
        .arg("--list")
        .arg(program)
        .output()
        .context("cannot run the lab's loader")?;
    ensure!(
        output.status.success(),
        "{} cannot be loaded: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let needed = listed(&String::from_utf8_lossy(&output.stdout));
    for (name, file) in &needed {
        ensure!(
            file.is_file(),
            "{} needs {name}, which the lab has not",
            program.display()
        );
    }
    Ok(needed)
}

fn with_libraries(root: &Path) -> Command {
    let mut command = Command::new(loader(root));
    command.arg("--library-path").arg(libraries(root));
    command
}

/// From lines `NAME => FILE (ADDRESS)`, or `NAME => not found`. What the kernel brings along has no
/// file, and the loader's name is its place.
fn listed(list: &str) -> Vec<(String, PathBuf)> {
    let entry = |line: &str| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let file = rest.rsplit_once(" (").map_or(rest, |(file, _)| file);
        (!name.starts_with('/')).then(|| (name.to_owned(), PathBuf::from(file)))
    };
    list.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_file() {
        let list = "\tlinux-vdso.so.1 (0x00007f5664990000)\n\
                    \tlibz.so.1 => the lab (1)/libz.so.1 (0x00007f56645ac000)\n\
                    \tlibgone.so.2 => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 => the lab (1)/ld-linux-x86-64.so.2 (0x00007f5664992000)\n";
        let expected = [
            ("libz.so.1", "the lab (1)/libz.so.1"),
            ("libgone.so.2", "not found"),
        ];
        let expected = expected.map(|(name, file)| (name.to_owned(), PathBuf::from(file)));
        assert_eq!(listed(list), expected);
    }
}
