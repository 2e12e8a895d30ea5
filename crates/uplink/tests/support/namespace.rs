//! Tests with a kernel network of their own; shared with other crates' tests by its path.

use std::path::Path;
use std::process::Command;

use rustix::thread::UnshareFlags;

/// Runs `test` in a namespace of its own, which ends with it; says why not where that cannot be.
#[expect(unsafe_code, reason = "unshare has no safe wrapper")]
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    }
    let run = || {
        // SAFETY: only the network namespace is unshared; no descriptor table is.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("as root");
        test();
    };
    std::thread::scope(|scope| {
        scope
            .spawn(run)
            .join()
            .expect("the test's own panic is above");
    });
}

/// Runs `ip` of iproute2, which must succeed.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("iproute2 is there");
    assert!(status.success(), "ip {arguments}");
}
