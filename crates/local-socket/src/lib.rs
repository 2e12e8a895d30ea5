//! Unix sockets for certain users of this host.
//!
//! A socket's mode keeps others out who find it; the look at who has connected keeps out whoever came by
//! another way: a link, a descriptor that was handed on, a mode that somebody has changed. [`reserve`] keeps room
//! for the descriptors that come over them.
//!
//! # What it does not do
//!
//! It does not look at what a peer sends, knows no user by name, and asks only for a peer's effective group, not
//! for the others that it is in.

pub mod reserve;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How many may wait to be accepted, as in the standard library.
const BACKLOG: i32 = 128;

/// Who may connect: this process's user and root; and, if it is given, a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// The effective group of others who may.
    pub group: Option<u32>,
}

/// Somebody else has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "user {user}, group {group} has connected and was turned away: this socket is for user {own} and \
     root, and for those whose effective group is the configuration's `socket-group`, if it has one"
)]
pub struct Refused {
    user: u32,
    group: u32,
    own: u32,
}

impl Access {
    /// Listens at `path`, which nobody else can have opened before its mode is set: 0600, or 0660
    /// with a group.
    ///
    /// # Errors
    /// As for [`UnixListener::bind`], and when the group cannot be given to the socket.
    pub fn bind(&self, path: &Path) -> io::Result<UnixListener> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC;
        let stream = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, stream, flags, None)?;
        let owner = Mode::RUSR | Mode::WUSR;
        // The kernel makes the file with the mode of the socket (`unix_bind_bsd`).
        rustix::fs::fchmod(&socket, owner)?;
        rustix::net::bind(&socket, &address)?;
        if let Some(group) = self.group {
            let set = || {
                rustix::fs::chown(path, None, Some(Gid::from_raw(group)))?;
                rustix::fs::chmod(path, owner | Mode::RGRP | Mode::WGRP)
            };
            set().inspect_err(|_| {
                // Nobody serves it.
                let _ = std::fs::remove_file(path);
            })?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket.into())
    }

    /// Whether who has connected may. The kernel tells who that was when it connected.
    ///
    /// # Errors
    /// [`Refused`]; also for what is no unix socket.
    pub fn admit(&self, stream: &UnixStream) -> Result<(), Refused> {
        let own = rustix::process::geteuid();
        let (user, group) = match rustix::net::sockopt::socket_peercred(stream) {
            Ok(peer) => (peer.uid, peer.gid.as_raw()),
            Err(_) => (Uid::from_raw(u32::MAX), u32::MAX),
        };
        if user == own || user.is_root() || self.group == Some(group) {
            return Ok(());
        }
        Err(Refused {
            user: user.as_raw(),
            group,
            own: own.as_raw(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    const NOBODY: u32 = 65534;

    /// Connects as `user` and `group`, whom the mode does not keep out, and is looked at.
    fn connected(access: Access, user: u32, group: u32) -> Result<(), Refused> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = access.bind(&path).unwrap();
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(folder.path(), 0o755);
        open(&path, 0o666);
        // To the kernel, users are a thread's.
        let client = std::thread::spawn(move || {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(group)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(user)).unwrap();
            UnixStream::connect(path).unwrap()
        });
        let _client = client.join().unwrap();
        access.admit(&listener.accept().unwrap().0)
    }

    #[test]
    fn a_socket_is_its_owners_or_its_groups_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |access: Access, name: &str| {
            let path = folder.path().join(name);
            let _listener = access.bind(&path).unwrap();
            let file = std::fs::metadata(path).unwrap();
            (file.mode() & 0o777, file.gid())
        };
        let own = rustix::process::getegid().as_raw();
        assert_eq!(mode(Access::default(), "own"), (0o600, own));
        let group = Some(own);
        assert_eq!(mode(Access { group }, "group"), (0o660, own));
        if rustix::process::geteuid().is_root() {
            let group = Some(NOBODY);
            assert_eq!(mode(Access { group }, "other"), (0o660, NOBODY));
        }
    }

    #[test]
    fn who_connects_is_looked_at() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(Access::default().admit(&ours), Ok(()));
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: nobody else can be had");
            return;
        }
        let refused = connected(Access::default(), NOBODY, NOBODY).unwrap_err();
        assert_eq!((refused.user, refused.group), (NOBODY, NOBODY));
        let group = Some(NOBODY - 1);
        assert!(connected(Access { group }, NOBODY, NOBODY).is_err());
        assert_eq!(connected(Access { group }, NOBODY, NOBODY - 1), Ok(()));
    }
}
