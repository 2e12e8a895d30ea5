//! What a confined process is refused. The process is this test once more, as a test's own could not
//! be let go again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use confine::{Files, Needs, confine};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

/// Where the process that is confined finds what it may write to.
const FOLDER: &str = "CONFINED_IN";

/// Runs `body`, of the test `name`, in a process of its own: this test once more.
fn alone(name: &str, body: fn(&Path)) {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return body(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
}

/// Of this thread, as the kernel tells it.
fn status(key: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
    line.unwrap().to_owned()
}

#[test]
fn a_confined_process_is_refused_what_it_does_not_need() {
    alone(
        "a_confined_process_is_refused_what_it_does_not_need",
        confined,
    );
}

#[test]
fn a_process_with_functions_of_the_host_may_execute_and_no_more() {
    alone(
        "a_process_with_functions_of_the_host_may_execute_and_no_more",
        confined_with_functions,
    );
}

fn confined(folder: &Path) {
    let needs = Needs {
        writes: vec![folder.to_owned()],
        ..Needs::default()
    };
    assert!(fs::read("/etc/passwd").is_ok(), "before");
    assert_eq!(confine(&needs).unwrap(), Files::Named);

    let nice = 1 << 23;
    let effective = u64::from_str_radix(&status("CapEff"), 16).unwrap();
    assert_eq!(effective & !nice, 0);
    assert_eq!((&*status("NoNewPrivs"), &*status("Seccomp")), ("1", "2"));

    let denied = |path: &str| fs::read(path).unwrap_err().raw_os_error();
    for path in [
        "/etc/passwd",
        "/etc/shadow",
        "/etc/ssh/ssh_host_ed25519_key",
    ] {
        if Path::new(path).exists() {
            assert_eq!(denied(path), Some(libc::EACCES), "{path}");
        }
    }
    assert!(fs::write("/tmp/confined-must-not-write", b"").is_err());
    let own = folder.join("file");
    fs::write(&own, b"mine").unwrap();
    assert_eq!(fs::read(&own).unwrap(), b"mine");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();

    refused_to_all();
    nobody_else_is_reached();
    let executed = Command::new("/bin/true").status().unwrap_err();
    assert_eq!(executed.raw_os_error(), Some(libc::EPERM));
    // In threads that start later as well.
    std::thread::spawn(refused_to_all).join().unwrap();
    let _ = fs::remove_file(&own);
}

fn confined_with_functions(_: &Path) {
    let needs = Needs {
        host_functions: true,
        ..Needs::default()
    };
    assert_eq!(confine(&needs).unwrap(), Files::AsPermitted);
    refused_to_all();
    assert!(Command::new("/bin/true").status().unwrap().success());
}

fn refused_to_all() {
    let made = |family, kind| socket(family, kind, None).map(drop);
    assert_eq!(made(AddressFamily::UNIX, SocketType::STREAM), Ok(()));
    assert_eq!(made(AddressFamily::INET, SocketType::STREAM), Ok(()));
    assert_eq!(
        made(AddressFamily::INET6, SocketType::RAW),
        Err(Errno::PERM)
    );
    assert_eq!(made(AddressFamily::INET, SocketType::RAW), Err(Errno::PERM));
    assert_eq!(
        made(AddressFamily::PACKET, SocketType::RAW),
        Err(Errno::PERM)
    );
    assert_eq!(
        made(AddressFamily::VSOCK, SocketType::STREAM),
        Err(Errno::PERM)
    );
    let root = rustix::process::getuid();
    assert_eq!(rustix::thread::set_thread_uid(root), Err(Errno::PERM));
    assert_eq!(rustix::process::chroot("/"), Err(Errno::PERM));
    let clone = |flags: i32| {
        #[expect(unsafe_code, reason = "it has no safe wrapper")]
        // SAFETY: it is refused. Should it not be, what it makes would end at once, with this test's failure.
        let made = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
        if made == 0 {
            std::process::abort();
        }
        (made, std::io::Error::last_os_error().raw_os_error())
    };
    assert_eq!(clone(libc::CLONE_NEWUSER), (-1, Some(libc::EPERM)));
    assert_eq!(clone(libc::CLONE_NEWNS), (-1, Some(libc::EPERM)));
}

fn nobody_else_is_reached() {
    use rustix::process::{
        Pid, PidfdFlags, Resource, getpid, pidfd_open, pidfd_send_signal, test_kill_process,
    };
    let (own, parent) = (getpid(), rustix::process::getppid().unwrap());
    assert_eq!(test_kill_process(own), Ok(()));
    assert_eq!(test_kill_process(parent), Err(Errno::PERM));
    let by_descriptor = pidfd_open(parent, PidfdFlags::empty()).unwrap();
    assert_eq!(
        pidfd_send_signal(by_descriptor, rustix::process::Signal::CONT),
        Err(Errno::PERM)
    );
    let limits = |of: Option<Pid>| {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        rustix::process::prlimit(of, Resource::Nofile, limit).map(drop)
    };
    assert_eq!(limits(None), Ok(()));
    assert_eq!(limits(Some(parent)), Err(Errno::PERM));
    // Abort(3) does this.
    #[expect(unsafe_code, reason = "it has no safe wrapper")]
    // SAFETY: signal 0 goes to nobody, it is only looked whether it could.
    let signalled =
        unsafe { libc::syscall(libc::SYS_tgkill, own.as_raw_pid(), own.as_raw_pid(), 0) };
    assert_eq!(signalled, 0);
}
