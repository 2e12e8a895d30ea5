//! The lease: a small file beside an image, which says what a lock cannot.
//!
//! A lock ends with the process that has it. Between the host that has let go of an image and the
//! one that takes it, nobody has a lock, and whoever came first would get it. The lease says whose
//! the image is then: it was handed over, and for which migration. It is read and written under
//! the lock of the image, and under a lock of its own, for where the image's reaches one host only.
//!
//! It is text, to be looked at, of a fixed length, to be written in place. Anything may be in it:
//! it is taken for a lease only if it is, byte for byte, what would be written.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use device::Claim;
use rustix::fs::OFlags;

use super::lock;

/// Bytes of a lease.
const LEN: usize = 512;
/// Most bytes of a migration's name.
pub const MAX_NAME: usize = 200;

/// Why an image cannot be taken, or let go of.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum HoldError {
    /// Locked.
    #[error(
        "{} is locked: another process uses it, on this host or on another. Stop that one, or \
         give this VM another file",
        path.display()
    )]
    Locked { path: PathBuf },
    /// Handed over, and not taken.
    #[error(
        "{} was handed over for migration `{migration}`, and nobody has taken it: the other host \
         may run this VM. If it surely does not, delete {}",
        image.display(), lease.display()
    )]
    HandedOver {
        image: PathBuf,
        lease: PathBuf,
        migration: String,
    },
    /// Not handed over for this migration.
    #[error(
        "{} was not handed over for migration `{migration}`, or was taken back: the VM must not \
         run here. Migrate again",
        image.display()
    )]
    NotHandedOver { image: PathBuf, migration: String },
    /// Taken, and so not to be taken back.
    #[error(
        "the other host has taken {}, which was handed over for migration `{migration}`: the VM \
         may run there, and must not run here",
        image.display()
    )]
    Taken { image: PathBuf, migration: String },
    /// No lease.
    #[error(
        "{} has no lease, without which it cannot be handed over: name a file for it that both \
         hosts see, with the setting `lease`",
        image.display()
    )]
    NoLease { image: PathBuf },
    /// The lease is not one.
    #[error(
        "{} is damaged, or is no lease of this version of vferry: {why}. If no other host runs \
         this VM, delete it",
        path.display()
    )]
    Damaged { path: PathBuf, why: &'static str },
    /// Somebody else wrote the lease while it was locked here.
    #[error(
        "{} was changed while this VM had it: another host may write to the disk, as locks do not \
         reach it. Stop both VMs and look at their disk",
        path.display()
    )]
    Changed { path: PathBuf },
    /// A migration without a name, or one that does not fit.
    #[error("a migration's name has 1 to {MAX_NAME} printable ASCII characters, unlike `{0}`")]
    Name(String),
    /// The system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl From<HoldError> for io::Error {
    fn from(error: HoldError) -> Self {
        let kind = match &error {
            HoldError::Locked { .. } => io::ErrorKind::ResourceBusy,
            HoldError::System { source, .. } => source.kind(),
            HoldError::Damaged { .. } => io::ErrorKind::InvalidData,
            HoldError::Name(_) => io::ErrorKind::InvalidInput,
            HoldError::NoLease { .. } => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

/// Adds what was being done, and to which file.
pub(super) fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HoldError {
    move |source| HoldError::System {
        what,
        path: path.into(),
        source,
    }
}

/// Who holds an image: one run of one VM on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder([u8; 16]);

impl Holder {
    /// One that nobody else is.
    pub(super) fn new() -> io::Result<Self> {
        let mut id = [0; 16];
        // A request this small comes whole, or not at all.
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(id))
    }
}

/// What a lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// How often it changed hands.
    epoch: u64,
    holder: Holder,
    /// The migration for which the holder has let go.
    handed_to: Option<String>,
}

impl Record {
    /// What the lease says once `me` has taken the image, if it may.
    fn taken(
        before: Option<&Self>,
        me: Holder,
        claim: Claim<'_>,
        image: &Path,
        lease: &Path,
    ) -> Result<Self, HoldError> {
        let handed_to = before.and_then(|record| record.handed_to.as_deref());
        match claim {
            Claim::Start => {
                if let Some(migration) = handed_to {
                    return Err(HoldError::HandedOver {
                        image: image.into(),
                        lease: lease.into(),
                        migration: migration.into(),
                    });
                }
            }
            Claim::Arrive(migration) => {
                if handed_to != Some(migration) {
                    return Err(not_handed_over(image, migration));
                }
            }
            Claim::TakeBack(migration) => {
                let untouched = before.is_some_and(|record| record.holder == me);
                if !untouched || handed_to != Some(migration) {
                    return Err(taken(image, migration));
                }
            }
        }
        Ok(Self {
            epoch: before.map_or(0, |record| record.epoch).wrapping_add(1),
            holder: me,
            handed_to: None,
        })
    }

    fn encode(&self) -> [u8; LEN] {
        let mut text = format!(
            "vferry lease 1\nepoch {}\nholder {:032x}\n",
            self.epoch,
            u128::from_be_bytes(self.holder.0)
        );
        // Writing to a string cannot fail.
        let _ = match &self.handed_to {
            Some(migration) => writeln!(text, "handed over for {migration}"),
            None => writeln!(text, "held"),
        };
        let checksum = crc32fast::hash(text.as_bytes());
        let _ = writeln!(text, "checksum {checksum:08x}");
        let mut bytes = [b' '; LEN];
        bytes[LEN - 1] = b'\n';
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    /// What is in a file: `None` if nothing was ever written.
    fn decode(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let Ok(whole) = <&[u8; LEN]>::try_from(bytes) else {
            return Err("it has another length");
        };
        let record = Self::parse(bytes).ok_or("it says something else")?;
        // Checksum, order, spaces: one comparison for all.
        if record.encode() != *whole {
            return Err("its checksum is wrong");
        }
        Ok(Some(record))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?;
        let mut lines = text.strip_prefix("vferry lease 1\n")?.lines();
        let epoch = lines.next()?.strip_prefix("epoch ")?.parse().ok()?;
        let holder = lines.next()?.strip_prefix("holder ")?;
        let holder = u128::from_str_radix(holder, 16).ok()?.to_be_bytes();
        let handed_to = match lines.next()? {
            "held" => None,
            line => Some(line.strip_prefix("handed over for ")?),
        };
        if handed_to.is_some_and(|name| !is_name(name)) {
            return None;
        }
        Some(Self {
            epoch,
            holder: Holder(holder),
            handed_to: handed_to.map(Into::into),
        })
    }
}

fn is_name(name: &str) -> bool {
    let printable = name.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    (1..=MAX_NAME).contains(&name.len()) && printable
}

fn not_handed_over(image: &Path, migration: &str) -> HoldError {
    HoldError::NotHandedOver {
        image: image.into(),
        migration: migration.into(),
    }
}

fn taken(image: &Path, migration: &str) -> HoldError {
    HoldError::Taken {
        image: image.into(),
        migration: migration.into(),
    }
}

/// A lease that says that the image is held here. Locked as long as it lives.
#[derive(Debug)]
pub(super) struct Lease {
    file: File,
    path: PathBuf,
    /// What it says; `None` if that is nothing that this VM has written.
    record: Option<Record>,
    /// What it said before, if it came by a migration.
    before: Option<Record>,
}

impl Lease {
    /// Takes the lease of `image`, which is locked, or makes it.
    pub(super) fn take(
        path: &Path,
        image: &Path,
        me: Holder,
        claim: Claim<'_>,
    ) -> Result<Self, HoldError> {
        let mut file = open(path, image, claim)?;
        if !lock::lock(&file).map_err(system("lock", path))? {
            return Err(HoldError::Locked { path: path.into() });
        }
        let before = read(&mut file, path)?;
        let record = Record::taken(before.as_ref(), me, claim, image, path)?;
        let written = write(&file, &record).and_then(|()| match before {
            Some(_) => Ok(()),
            None => persist_name(path),
        });
        if let Err(error) = written {
            // So that whoever may have it next finds what was there, if that can still be written.
            let _ = match &before {
                Some(before) => write(&file, before),
                None => file.set_len(0),
            };
            return Err(system("write", path)(error));
        }
        Ok(Self {
            file,
            path: path.into(),
            record: Some(record),
            before: before.filter(|_| matches!(claim, Claim::Arrive(_))),
        })
    }

    /// One that another process has left, locked.
    pub(super) fn left(mut file: File, path: &Path) -> Result<Self, HoldError> {
        if !lock::lock(&file).map_err(system("lock", path))? {
            return Err(HoldError::Locked { path: path.into() });
        }
        // Read from where it begins, wherever that process has left it. What is damaged is nobody's affair before it is
        // to be handed over.
        let record = file.rewind().map_err(system("read", path));
        let record = record.and_then(|()| read(&mut file, path));
        let is_held = |record: &Record| record.handed_to.is_none();
        Ok(Self {
            file,
            path: path.into(),
            record: record.ok().flatten().filter(is_held),
            before: None,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Who holds it, if it says so.
    pub(super) fn holder(&self) -> Option<Holder> {
        Some(self.record.as_ref()?.holder)
    }

    /// Says that the image may be taken for `migration`. It is held still if this fails.
    pub(super) fn hand_over(&mut self, migration: &str) -> Result<(), HoldError> {
        if !is_name(migration) {
            return Err(HoldError::Name(migration.chars().take(MAX_NAME).collect()));
        }
        let mut now = [0; LEN];
        let read = self.file.read_exact_at(&mut now, 0);
        read.map_err(system("read", &self.path))?;
        let record = self.record.as_ref().filter(|ours| now == ours.encode());
        let record = record.ok_or_else(|| HoldError::Changed {
            path: self.path.clone(),
        })?;
        let came_by_it = |before: &&Record| before.handed_to.as_deref() == Some(migration);
        let next = self.before.as_ref().filter(came_by_it);
        let next = next.cloned().unwrap_or_else(|| Record {
            handed_to: Some(migration.into()),
            ..record.clone()
        });
        write(&self.file, &next).map_err(|error| {
            // A part of it may be in the file. Nobody reads it while it is locked, and whoever
            // does later finds either this or what is damaged.
            let _ = write(&self.file, record);
            system("write", &self.path)(error)
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock::unlock(&self.file);
    }
}

fn open(path: &Path, image: &Path, claim: Claim<'_>) -> Result<File, HoldError> {
    let mut how = OpenOptions::new();
    // Not waiting, in case that it is something else than a file.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    how.read(true).write(true).custom_flags(flags);
    let file = match claim {
        Claim::Start => how.create(true).truncate(false).open(path),
        _ => how.open(path),
    };
    let file = file.map_err(|error| match (error.kind(), claim) {
        // There never was one, or somebody has deleted it.
        (io::ErrorKind::NotFound, Claim::Arrive(m)) => not_handed_over(image, m),
        (io::ErrorKind::NotFound, Claim::TakeBack(m)) => taken(image, m),
        _ => system("open", path)(error),
    })?;
    let kind = file.metadata().map_err(system("open", path))?.file_type();
    if !kind.is_file() {
        return Err(HoldError::Damaged {
            path: path.into(),
            why: "it is not a regular file",
        });
    }
    Ok(file)
}

fn read(file: &mut File, path: &Path) -> Result<Option<Record>, HoldError> {
    let mut bytes = Vec::new();
    let most = LEN as u64 + 1;
    let read = file.by_ref().take(most).read_to_end(&mut bytes);
    read.map_err(system("read", path))?;
    Record::decode(&bytes).map_err(|why| HoldError::Damaged {
        path: path.into(),
        why,
    })
}

fn write(file: &File, record: &Record) -> io::Result<()> {
    file.write_all_at(&record.encode(), 0)?;
    file.sync_data()
}

/// A lease that is gone after a crash would let anybody start.
fn persist_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    let synced = File::open(directory.unwrap_or(Path::new(".")))?.sync_all();
    // Not every file system knows that of directories.
    synced.or_else(|error| match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(handed_to: Option<&str>) -> Record {
        Record {
            epoch: 7,
            holder: Holder([0xab; 16]),
            handed_to: handed_to.map(Into::into),
        }
    }

    #[test]
    fn a_lease_reads_as_it_was_written() {
        let longest = "m".repeat(MAX_NAME);
        for handed_to in [None, Some("a-migration 1"), Some("held"), Some(&*longest)] {
            let record = record(handed_to);
            assert_eq!(Record::decode(&record.encode()), Ok(Some(record)));
        }
        let largest = Record {
            epoch: u64::MAX,
            holder: Holder([0xff; 16]),
            handed_to: Some(longest),
        };
        assert_eq!(Record::decode(&largest.encode()), Ok(Some(largest)));
    }

    /// Released: leases of one version lie beside images when the next one comes.
    #[test]
    fn a_lease_of_version_1_never_changes() {
        let known = "vferry lease 1\nepoch 7\nholder abababababababababababababababab\n\
                     handed over for m1\nchecksum 712176b8\n";
        let bytes = record(Some("m1")).encode();
        assert_eq!(str::from_utf8(&bytes).unwrap().trim_end(), known.trim_end());
        assert_eq!((bytes.len(), bytes[511]), (512, b'\n'));
    }

    #[test]
    fn what_is_torn_or_longer_or_of_somebody_else_is_no_lease() {
        let (old, new) = (record(None).encode(), record(Some("m1")).encode());
        for at in 60..80 {
            let torn = [&new[..at], &old[at..]].concat();
            assert!(torn == new || torn == old || Record::decode(&torn).is_err());
        }
        for other in [
            &b"\0"[..],
            &new[..511],
            &[&new[..], b"\n"].concat(),
            &[0; 512],
        ] {
            assert!(Record::decode(other).is_err());
        }
        let next = String::from_utf8(new.into())
            .unwrap()
            .replace("lease 1", "lease 2");
        assert!(Record::decode(next.as_bytes()).is_err());
        assert_eq!(Record::decode(b""), Ok(None), "nothing was ever written");
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_noticed(at in 0..LEN, value: u8) {
            let mut bytes = record(Some("m1")).encode();
            prop_assume!(bytes[at] != value);
            bytes[at] = value;
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn nothing_in_the_file_is_a_panic(bytes: Vec<u8>, text: String) {
            let _ = Record::decode(&bytes);
            let mut file = [b' '; LEN];
            let text = format!("vferry lease 1\nepoch 1\n{text}");
            let len = text.len().min(LEN);
            file[..len].copy_from_slice(&text.as_bytes()[..len]);
            let _ = Record::decode(&file);
        }
    }
}
