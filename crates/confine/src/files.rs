//! Files and processes in reach, by Landlock.

use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};

use crate::{Error, Files, Needs};

/// The newest whose rights are asked for; an older kernel knows less of them.
const KNOWN: ABI = ABI::V6;

/// What the process's own libraries read: its state, random numbers, names of hosts.
const ALWAYS: [&str; 10] = [
    "/proc/self",
    "/proc/sys/kernel",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/localtime",
    "/lib",
    "/usr/lib",
];

pub(crate) fn restrict(needs: &Needs) -> Result<Files, Error> {
    let all = AccessFs::from_all(KNOWN);
    let write: BitFlags<AccessFs> = all & !AccessFs::Execute;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Paths that are not there are passed over: nobody can make them either.
    let reads = needs.reads.iter().map(std::path::PathBuf::as_path);
    let reads = reads.chain(ALWAYS.iter().map(std::path::Path::new));
    let status = Ruleset::default()
        .handle_access(all)?
        // System calls are looked at for that as well: Linux has it from 6.12 on.
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(reads, read))?
        .add_rules(path_beneath_rules(&needs.writes, write))?
        .add_rules(path_beneath_rules(["/dev/null"], write))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => Files::NoLandlock,
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Files::Named,
    })
}
