//! What a process that serves a VM gives up for good, once it has opened what it serves.
//!
//! Four layers, each of which holds where another has a gap: capabilities, no-new-privs, system calls
//! (seccomp), and files (Landlock). [`confine`] must be called before threads are started: all but the
//! system calls are a thread's own, and are passed on to those that it starts.
//!
//! # What it does not do
//!
//! Name the system calls that are allowed: it names those that are refused. A call that is refused
//! fails with `EPERM`; the process is not killed, as its death would take a running VM with it.
//! What is open already stays open. Connections to unix sockets are not a matter of files to Landlock.

mod calls;
mod files;

use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};

/// What the process still needs.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Functions of the host are changed, and given back by another process: it may execute programs,
    /// write to the kernel's files, and keeps what capabilities that takes.
    pub host_functions: bool,
    /// It starts the process that serves, with what that one needs until it gives it up in its turn: a TAP,
    /// sockets of a group, a port below 1024.
    pub starts_servers: bool,
    /// Folders in which it makes, reads and removes files, and single files that it writes.
    pub writes: Vec<PathBuf>,
    /// What it reads.
    pub reads: Vec<PathBuf>,
}

/// Which files are still in reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Those that were named, and no other.
    Named,
    /// Whatever permissions allow: functions of the host are anywhere.
    AsPermitted,
    /// The same, as the kernel knows no Landlock.
    NoLandlock,
}

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Capabilities, limits or no-new-privs.
    #[error("{what}: {source}")]
    System {
        /// What was to be changed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The filter of system calls.
    #[error("the filter of system calls: {0}")]
    Calls(String),
    /// The files.
    #[error("the files in reach: {0}")]
    Files(#[from] landlock::RulesetError),
}

/// Gives up all but `needs`.
///
/// # Errors
/// When a layer is refused by the system; the process is to end then, not to serve without it.
pub fn confine(needs: &Needs) -> Result<Files, Error> {
    let system = |what| {
        move |source: rustix::io::Errno| Error::System {
            what,
            source: source.into(),
        }
    };
    // A core would be guest memory and keys in a file.
    let none = Rlimit {
        current: Some(0),
        maximum: getrlimit(Resource::Core).maximum,
    };
    setrlimit(Resource::Core, none).map_err(system("the limit of core files"))?;
    set_no_new_privs(true).map_err(system("no-new-privs"))?;
    let mut sets = capabilities(None).map_err(system("the capabilities"))?;
    let keep = kept(needs);
    sets.effective &= keep;
    sets.permitted &= keep;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).map_err(system("the capabilities"))?;
    let files = if needs.host_functions || needs.starts_servers {
        Files::AsPermitted
    } else {
        files::restrict(needs)?
    };
    calls::refuse(needs)?;
    Ok(files)
}

/// Of the capabilities that the process has.
fn kept(needs: &Needs) -> CapabilitySet {
    // A thread that has to be in time asks for a real-time priority.
    let always = CapabilitySet::SYS_NICE;
    if needs.host_functions {
        // The kernel's files of PCI and of other users, port settings, locked memory.
        always
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::NET_ADMIN
            | CapabilitySet::SYS_ADMIN
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::IPC_LOCK
            | CapabilitySet::SYS_RESOURCE
    } else if needs.starts_servers {
        always
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::NET_ADMIN
            | CapabilitySet::NET_BIND_SERVICE
            | CapabilitySet::CHOWN
    } else {
        always
    }
}
