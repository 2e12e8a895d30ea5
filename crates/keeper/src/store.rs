//! systemd, where this process is a unit of it: it holds what the keeper does, too, and outlives it
//! (`FileDescriptorStoreMax=` of systemd.service(5)).
//!
//! systemd takes no descriptor twice (`service_add_fd_store` compares what is open, not the numbers), while a keeper
//! may hold one by several names: two devices have the same guest memory. And what is there by a name cannot be
//! replaced in one step. So each is stored once, by a number that is never used again, and which names it has is in
//! a [`Journal`], the catalogue, which is stored, too.
//!
//! | order | killed before, the next keeper finds |
//! |---|---|
//! | the descriptor is stored | what was |
//! | the catalogue says so, by one store | a number that nobody needs: it is let go of |
//! | what is not needed any more is let go of | the same |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use sd_notify::NotifyState;

use crate::journal::{Journal, Limits};
use crate::wire::{MAX_HELD, MAX_NAME};
use crate::worker::Held;

/// What systemd tells the process of a unit, and is not its workers' affair.
pub(crate) const VARIABLES: [&str; 5] = [
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "FDSTORE",
];

/// By which name the catalogue is stored.
const CATALOGUE: &str = "catalogue";
/// A name, a number and what is between them.
const LINE: usize = MAX_NAME + 22;
const LIMITS: Limits = Limits {
    state: MAX_HELD * LINE,
    rare: 0,
    reply: 0,
};

/// The service manager's store.
#[derive(Debug)]
pub struct Store {
    catalogue: Journal,
    /// By which number what has this name is stored.
    numbers: BTreeMap<String, u64>,
    last: u64,
}

impl Store {
    /// The one of this process, if it was started by a service manager, and what is in it. To be called once.
    ///
    /// # Errors
    /// When what is there cannot be gone on with.
    pub fn find() -> io::Result<Option<(Self, Held)>> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(None);
        }
        let found = sd_notify::listen_fds_with_names()?.map(|(fd, name)| {
            #[expect(unsafe_code, reason = "what comes by its number has no safe way")]
            // SAFETY: the service manager has opened it for this process, in which it had its number before
            // anything else was opened, and this is done once: nobody else in it has it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            (name, fd)
        });
        Self::of(found.collect()).map(Some)
    }

    /// One in which these are.
    fn of(mut found: BTreeMap<String, OwnedFd>) -> io::Result<(Self, Held)> {
        // Sockets that a unit is activated by have other names.
        found.retain(|name, _| name == CATALOGUE || name.parse::<u64>().is_ok());
        let (catalogue, is_new) = match found.remove(CATALOGUE) {
            Some(left) => (Journal::open(left), false),
            None => (Journal::create(LIMITS), true),
        };
        let catalogue = catalogue.map_err(io::Error::other)?;
        // Whether the kernel tells what is the same is found out before it matters.
        is_same(catalogue.as_fd(), catalogue.as_fd())?;
        if is_new {
            add(CATALOGUE, catalogue.as_fd())?;
        }
        let numbers = parse(&catalogue.state());
        let numbers = numbers.ok_or_else(|| io::Error::other("the catalogue is damaged"))?;
        let mut held = Held::new();
        for (name, number) in &numbers {
            // What there was no room for is missing, and that is for a worker to say.
            if let Some(fd) = found.get(&number.to_string()) {
                held.insert(name.clone(), fd.try_clone()?);
            }
        }
        let needed: BTreeSet<_> = numbers.values().map(u64::to_string).collect();
        for stored in found.keys().filter(|stored| !needed.contains(*stored)) {
            remove(stored)?;
        }
        let stored = found.keys().filter_map(|stored| stored.parse().ok());
        let last = stored.chain(numbers.values().copied()).max();
        let store = Self {
            catalogue,
            numbers,
            last: last.unwrap_or(0),
        };
        Ok((store, held))
    }

    /// Stores `fd` as `name`, instead of what may be there by that name. `held` is what there is, by the names.
    pub(crate) fn hold(&mut self, name: &str, fd: BorrowedFd<'_>, held: &Held) -> io::Result<()> {
        let mut number = None;
        for (other, held) in held {
            if is_same(fd, held.as_fd())? {
                number = number.or(self.numbers.get(other).copied());
            }
        }
        let number = if let Some(number) = number {
            number
        } else {
            self.last += 1;
            add(&self.last.to_string(), fd)?;
            self.last
        };
        let before = self.numbers.insert(name.into(), number);
        self.write()?;
        self.let_go_of_number(before)
    }

    /// Lets go of it.
    pub(crate) fn let_go(&mut self, name: &str) -> io::Result<()> {
        let before = self.numbers.remove(name);
        self.write()?;
        self.let_go_of_number(before)
    }

    fn let_go_of_number(&self, number: Option<u64>) -> io::Result<()> {
        let unneeded = number.filter(|number| !self.numbers.values().any(|n| n == number));
        unneeded.map_or(Ok(()), |number| remove(&number.to_string()))
    }

    fn write(&self) -> io::Result<()> {
        let mut lines = String::new();
        for (name, number) in &self.numbers {
            lines.extend([&number.to_string(), " ", name, "\n"]);
        }
        let put = self.catalogue.put(lines.as_bytes(), None, None);
        put.map_err(io::Error::other)
    }
}

/// Tells the service manager that started this process, if one did, that the unit serves, after so many deaths.
///
/// # Errors
/// When it cannot be told.
pub fn tell_service(deaths: u64) -> io::Result<()> {
    let status = match deaths {
        0 => "serving".to_owned(),
        _ => format!("serving; {deaths} processes that served have died: see the log for why"),
    };
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)])
}

fn parse(lines: &[u8]) -> Option<BTreeMap<String, u64>> {
    let lines = std::str::from_utf8(lines).ok()?.lines();
    let lines = lines.map(|line| {
        let (number, name) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    });
    lines.collect()
}

fn add(stored: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let state = [
        NotifyState::FdStore,
        NotifyState::FdName(stored),
        // It stays though its other end is gone: that is for a worker to see.
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&state, &[fd])
}

fn remove(stored: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(stored)])
}

/// Whether both are the same to systemd, which asks the kernel in this way (kcmp(2), `KCMP_FILE`).
fn is_same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<bool> {
    const KCMP_FILE: libc::c_long = 0;
    let pid = rustix::process::getpid().as_raw_pid();
    #[expect(unsafe_code, reason = "kcmp has no safe wrapper")]
    // SAFETY: it is given numbers, two of which are of descriptors that live for the call, and writes nothing.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid,
            pid,
            KCMP_FILE,
            a.as_raw_fd(),
            b.as_raw_fd(),
        )
    };
    match order {
        0 => Ok(true),
        1..=3 => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    /// A store and what a keeper holds beside it. No service manager hears of it: what would be stored is here.
    struct Kept {
        store: Store,
        held: Held,
        stored: BTreeMap<String, OwnedFd>,
    }

    impl Kept {
        fn begin() -> Self {
            let (store, held) = Store::of(BTreeMap::new()).unwrap();
            let catalogue = store.catalogue.as_fd().try_clone_to_owned().unwrap();
            Self {
                store,
                held,
                stored: BTreeMap::from([(CATALOGUE.to_owned(), catalogue)]),
            }
        }

        fn hold(&mut self, name: &str, fd: &OwnedFd) -> u64 {
            self.store.hold(name, fd.as_fd(), &self.held).unwrap();
            self.held.insert(name.into(), fd.try_clone().unwrap());
            let number = self.store.numbers[name];
            let stored = self.stored.entry(number.to_string());
            stored.or_insert(fd.try_clone().unwrap());
            number
        }

        /// What another process finds, which all that was ever stored is still there for.
        fn find(&self) -> (Store, Held) {
            let stored = self.stored.iter();
            let found = stored.map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
            Store::of(found.collect()).unwrap()
        }
    }

    fn same(a: &OwnedFd, b: &OwnedFd) -> bool {
        is_same(a.as_fd(), b.as_fd()).unwrap()
    }

    #[test]
    fn what_has_two_names_is_stored_once_and_found_by_both() {
        let mut kept = Kept::begin();
        let (memory, other) = (eventfd(), eventfd());
        let number = kept.hold("device/net0/mem/1", &memory);
        assert_eq!(kept.hold("device/net1/mem/1", &memory), number);
        assert_ne!(kept.hold("vm", &other), number);
        let (mut again, held) = kept.find();
        assert_eq!(held.len(), 3);
        assert!(same(&held["device/net0/mem/1"], &memory));
        assert!(same(&held["device/net1/mem/1"], &memory));
        assert!(same(&held["vm"], &other));
        // The one name goes: it is there for the other.
        again.let_go("device/net0/mem/1").unwrap();
        assert_eq!(again.numbers["device/net1/mem/1"], number);
        let (_, held) = kept.find();
        assert_eq!(held.keys().collect::<Vec<_>>(), ["device/net1/mem/1", "vm"]);
    }

    #[test]
    fn what_takes_the_place_of_another_is_the_other_until_the_catalogue_says_so() {
        let mut kept = Kept::begin();
        let (old, new) = (eventfd(), eventfd());
        kept.hold("irq", &old);
        // Stored, and the keeper is killed.
        let number = (kept.store.last + 1).to_string();
        kept.stored.insert(number, new.try_clone().unwrap());
        let (store, held) = kept.find();
        assert!(same(&held["irq"], &old));
        // Numbers that were used are not used again.
        assert_eq!(store.last, kept.store.last + 1);
        kept.hold("irq", &new);
        assert!(same(&kept.find().1["irq"], &new));
    }

    #[test]
    fn what_there_was_no_room_for_is_missing_and_other_sockets_are_not_its_own() {
        let mut kept = Kept::begin();
        let number = kept.hold("vm", &eventfd());
        kept.hold("irq", &eventfd());
        kept.stored.remove(&number.to_string());
        kept.stored.insert("vferry.socket".into(), eventfd());
        let (_, held) = kept.find();
        assert_eq!(held.keys().collect::<Vec<_>>(), ["irq"]);
    }

    #[test]
    fn a_damaged_catalogue_is_an_error() {
        let kept = Kept::begin();
        kept.store.catalogue.put(b"no number", None, None).unwrap();
        let found = kept.stored.into_iter().collect();
        assert!(Store::of(found).is_err());
    }
}
