//! Which program the processes are of that a keeper starts.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use keeper::Which;

/// The program that runs, also where its file has been replaced since.
const SELF: &str = "/proc/self/exe";

/// The program that serves, and where the one lies that may take its place.
#[derive(Debug)]
pub(super) struct Programs {
    /// Open, so that it stays what it is; this process's own if `None`.
    same: Option<File>,
    /// Where this one was started from. Not what a link there led to.
    installed_at: PathBuf,
    tried: Option<File>,
}

impl Programs {
    /// This process's, and the one at the path by which it was started.
    pub(super) fn begin() -> io::Result<Self> {
        Ok(Self {
            same: None,
            installed_at: installed_at(std::env::args_os().next().map(PathBuf::from))?,
            tried: None,
        })
    }

    /// A command of it, without arguments. Where it cannot be had, the command fails to start.
    pub(super) fn command(&mut self, which: Which) -> Command {
        let program = match which {
            Which::Same => self.same.as_ref(),
            Which::Next => {
                self.tried = File::open(&self.installed_at)
                    .inspect_err(|error| {
                        tracing::error!(path = %self.installed_at.display(), %error, "no next program");
                    })
                    .ok();
                let Some(next) = &self.tried else {
                    return Command::new(&self.installed_at);
                };
                Some(next)
            }
        };
        match program {
            // It is found by the child before that closes it.
            Some(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => Command::new(SELF),
        }
    }

    /// A worker of it serves.
    pub(super) fn serves(&mut self, which: Which) {
        if which == Which::Next {
            self.same = self.tried.take();
        }
    }
}

/// Where `called` lies, the first word of the command line, if that is what runs.
fn installed_at(called: Option<PathBuf>) -> io::Result<PathBuf> {
    let runs = std::fs::metadata(SELF)?;
    let is_it = |path: &Path| {
        std::fs::metadata(path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (runs.dev(), runs.ino()))
    };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = called.and_then(|called| {
        if called.components().count() > 1 {
            return std::path::absolute(called).ok();
        }
        let mut all = std::env::split_paths(&folders).map(|folder| folder.join(&called));
        all.find(|path| is_it(path))
    });
    match found.filter(|path| is_it(path)) {
        Some(path) => Ok(path),
        None => std::env::current_exe(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_lies_where_it_was_started_from_also_by_a_link() {
        let runs = std::env::current_exe().unwrap();
        assert_eq!(installed_at(None).unwrap(), runs);
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("vferry");
        std::os::unix::fs::symlink(&runs, &link).unwrap();
        assert_eq!(installed_at(Some(link)).unwrap(), link_of(&folder));
        // The first word can be anything.
        assert_eq!(installed_at(Some("/bin/sh".into())).unwrap(), runs);
        assert_eq!(installed_at(Some("no-such-program".into())).unwrap(), runs);
    }

    fn link_of(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("vferry")
    }
}
