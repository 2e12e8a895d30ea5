//! System calls that are refused, in all threads.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::{Error, Needs};

/// What a process that serves devices never does, and one that was taken over would.
const NEVER: [c_long; 48] = [
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Another user.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // Another view of the system.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_personality,
    // The kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
];

/// What acts on the process that has the number in the first argument. It may act on itself: abort(3) does, and
/// whoever reads its own limits, by 0, which is its group to `kill`: that has nobody else in it, or a shell's.
const BY_NUMBER: [c_long; 5] = [
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_prlimit64,
];
/// The same by a thread's number or a descriptor, of which nobody here knows whose it is.
const BY_OTHER: [c_long; 2] = [libc::SYS_tkill, libc::SYS_pidfd_send_signal];

/// What `clone` makes beside a thread or a process.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The other programs, where the process starts none.
const PROGRAMS: [c_long; 2] = [libc::SYS_execve, libc::SYS_execveat];

/// The sockets it makes: to QEMU, to other hosts, to the kernel for port settings.
const DOMAINS: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// The flags that `socket` takes beside the type.
const SOCKET_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

pub(crate) fn refuse(needs: &Needs) -> Result<(), Error> {
    for program in [program(needs), without_clone3()] {
        let program = program.map_err(|error| Error::Calls(error.to_string()))?;
        apply_filter_all_threads(&program).map_err(|error| Error::Calls(error.to_string()))?;
    }
    Ok(())
}

fn program(needs: &Needs) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NEVER.into_iter().map(|call| (call, Vec::new())).collect();
    if needs.starts_servers {
        // It compares what it holds: of itself only, as ptrace(2) has it.
        rules.remove(&libc::SYS_kcmp);
    }
    if !needs.host_functions && !needs.starts_servers {
        rules.extend(PROGRAMS.map(|call| (call, Vec::new())));
        // A process that it started would have to keep to it as well, and has another number.
        rules.extend(BY_OTHER.map(|call| (call, Vec::new())));
        for call in BY_NUMBER {
            rules.insert(call, others()?);
        }
    }
    rules.insert(libc::SYS_socket, sockets()?);
    rules.insert(libc::SYS_clone, namespaces()?);
    filter(rules, libc::EPERM)
}

/// Of whose flags nothing is to be seen in the arguments. The C library does without it where there is none.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    filter(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS,
    )
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        TargetArch::x86_64,
    )?
    .try_into()
}

/// Any process but this one.
fn others() -> Result<Vec<SeccompRule>, BackendError> {
    let is_not = |number: u32| SeccompCondition::new(0, Dword, SeccompCmpOp::Ne, number.into());
    let conditions = vec![is_not(std::process::id())?, is_not(0)?];
    Ok(vec![SeccompRule::new(conditions)?])
}

fn namespaces() -> Result<Vec<SeccompRule>, BackendError> {
    let made = |flag: i32| {
        let flag = u64::from(flag.cast_unsigned());
        let condition = SeccompCondition::new(0, Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![condition])
    };
    NAMESPACES.into_iter().map(made).collect()
}

/// Any other domain; and of these, raw ones of the network.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let argument = |number, operator, value: i32| {
        SeccompCondition::new(number, Dword, operator, value.cast_unsigned().into())
    };
    let others = DOMAINS.map(|domain| argument(0, SeccompCmpOp::Ne, domain));
    let mut rules = vec![SeccompRule::new(
        others.into_iter().collect::<Result<_, _>>()?,
    )?];
    let kind = SeccompCmpOp::MaskedEq(u64::from((!SOCKET_FLAGS).cast_unsigned()));
    for domain in [libc::AF_INET, libc::AF_INET6] {
        rules.push(SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, domain)?,
            argument(1, kind.clone(), libc::SOCK_RAW)?,
        ])?);
    }
    Ok(rules)
}
