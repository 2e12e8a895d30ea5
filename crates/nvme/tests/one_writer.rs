//! Of the hosts that see an image, one writes it: by lock while it is held, and by lease while it
//! is on its way.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use device::{Access, Claim, FlatMemory, Interrupts, ManualClock, Model, Progress};
use nvme::state::Shutdown;
use nvme::{Backing, Controller, ControllerConfig, FileBacking, NamespaceConfig};

const LEN: usize = 1 << 20;

/// A directory that two hosts see.
struct Shared(tempfile::TempDir);

impl Shared {
    fn new() -> Self {
        let shared = Self(tempfile::tempdir().unwrap());
        for name in ["disk", "second"] {
            std::fs::write(shared.path(name), vec![0; LEN]).unwrap();
        }
        shared
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lease(&self) -> PathBuf {
        self.path("disk.vferry-lease")
    }

    fn lease_text(&self) -> String {
        std::fs::read_to_string(self.lease()).unwrap()
    }

    /// As one of the hosts has it.
    fn backing(&self) -> FileBacking {
        FileBacking::open(&self.path("disk")).unwrap()
    }

    fn started(&self) -> FileBacking {
        let mut backing = self.backing();
        backing.acquire(Claim::Start).unwrap();
        backing
    }

    fn controller(&self) -> Controller {
        let namespaces = ["disk", "second"].map(|name| NamespaceConfig {
            backing: Box::new(FileBacking::open(&self.path(name)).unwrap()),
            block_size: 512,
        });
        let config = ControllerConfig {
            serial: "vf1".into(),
            queues: 1,
            namespaces: namespaces.into(),
        };
        Controller::new(config).unwrap()
    }
}

fn refused(result: io::Result<()>, text: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

fn is_locked(path: &Path) -> bool {
    // Another description of the same file, as another process would have.
    let shared = path.parent().unwrap().to_owned();
    let lease = shared.join("probe-lease");
    let mut other = FileBacking::new(path, Some(lease.clone())).unwrap();
    let locked = other.acquire(Claim::Start).is_err();
    drop(other);
    let _ = std::fs::remove_file(lease);
    locked
}

#[test]
fn nothing_is_read_or_written_before_it_is_acquired() {
    let shared = Shared::new();
    let mut backing = shared.backing();
    assert_eq!(backing.len(), LEN as u64);
    assert!(backing.write(0, b"abc").is_err());
    assert!(backing.read(0, &mut [0; 3]).is_err());
    assert!(backing.flush().is_err());
    assert!(backing.zero(0, 512, true).is_err());
    assert!(!shared.lease().exists());
    assert!(!is_locked(&shared.path("disk")));
    backing.acquire(Claim::Start).unwrap();
    backing.write(0, b"abc").unwrap();
    assert!(is_locked(&shared.path("disk")));
    backing.acquire(Claim::Start).unwrap();
}

#[test]
fn a_second_writer_is_refused_as_long_as_the_first_lives() {
    let shared = Shared::new();
    let first = shared.started();
    let mut second = shared.backing();
    let error = second.acquire(Claim::Start).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("disk is locked"), "{error}");
    drop(first);
    second.acquire(Claim::Start).unwrap();
    assert!(shared.lease_text().contains("epoch 2\n"));
}

/// The lock of an image may not reach another host; that of the lease, on a shared file system,
/// does.
#[test]
fn two_images_with_one_lease_have_one_writer() {
    let shared = Shared::new();
    let lease = Some(shared.path("lease"));
    let mut first = FileBacking::new(&shared.path("disk"), lease.clone()).unwrap();
    let mut second = FileBacking::new(&shared.path("second"), lease).unwrap();
    first.acquire(Claim::Start).unwrap();
    refused(second.acquire(Claim::Start), "lease is locked");
    assert!(!is_locked(&shared.path("second")), "and nothing is kept");
}

#[test]
fn what_is_handed_over_waits_for_its_migration_alone() {
    let shared = Shared::new();
    let mut source = shared.started();
    let mut there = shared.backing();
    refused(there.acquire(Claim::Arrive("m1")), "disk is locked");
    source.write(7, b"x").unwrap();
    source.release("m1").unwrap();
    assert!(source.write(7, b"y").is_err(), "it has let go");
    assert!(!is_locked(&shared.path("disk")));
    // Whoever comes first does not get it.
    refused(
        there.acquire(Claim::Start),
        "handed over for migration `m1`",
    );
    refused(there.acquire(Claim::Start), "disk.vferry-lease");
    refused(there.acquire(Claim::Arrive("m2")), "not handed over");
    refused(there.acquire(Claim::TakeBack("m1")), "has taken");
    there.acquire(Claim::Arrive("m1")).unwrap();
    let mut data = [0; 1];
    there.read(7, &mut data).unwrap();
    assert_eq!(&data, b"x");
    refused(source.acquire(Claim::TakeBack("m1")), "locked");
    drop(there);
    // It is gone, but it had it.
    refused(source.acquire(Claim::TakeBack("m1")), "has taken");
    refused(
        shared.backing().acquire(Claim::Arrive("m1")),
        "not handed over",
    );
}

#[test]
fn who_has_a_lock_for_a_moment_is_waited_for_but_not_at_a_start() {
    let shared = Shared::new();
    let probe_lease = Some(shared.path("probe-lease"));
    for name in ["disk", "disk.vferry-lease"] {
        for arrives in [false, true] {
            let mut source = shared.started();
            source.release("m1").unwrap();
            let mut probe = FileBacking::new(&shared.path(name), probe_lease.clone()).unwrap();
            probe.acquire(Claim::Start).unwrap();
            let start = Instant::now();
            refused(source.acquire(Claim::Start), "locked");
            assert!(start.elapsed() < Duration::from_millis(500), "at once");
            let moment = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(probe);
            });
            if arrives {
                shared.backing().acquire(Claim::Arrive("m1")).unwrap();
            } else {
                source.acquire(Claim::TakeBack("m1")).unwrap();
            }
            moment.join().unwrap();
        }
    }
}

/// Whether the first page of a file is in this host's memory. To look does not bring it there.
#[expect(unsafe_code, reason = "mincore has no safe wrapper")]
fn is_cached(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    let (fd, mut there) = (file.as_raw_fd(), 0);
    // SAFETY: a new mapping, which nobody else knows and nothing is read from, is made, asked for
    // and undone; `there` has the one byte that its one page needs.
    let result = unsafe {
        let start = std::ptr::null_mut();
        let page = libc::mmap(start, 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(page, libc::MAP_FAILED);
        let result = libc::mincore(page, 4096, &raw mut there);
        libc::munmap(page, 4096);
        result
    };
    assert_eq!(result, 0);
    there & 1 != 0
}

/// Another host's writes are not seen in what this one has cached.
#[test]
fn what_was_cached_of_an_image_before_it_came_is_forgotten() {
    let shared = Shared::new();
    let image = File::open(shared.path("disk")).unwrap();
    let cached = || is_cached(&image);
    let mut source = shared.started();
    source.flush().unwrap();
    // The first says what there is to be seen: a file system in memory forgets nothing.
    rustix::fs::fadvise(&image, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    if cached() {
        return;
    }
    let read = || image.read_exact_at(&mut [0; 512], 0).unwrap();
    source.release("m1").unwrap();
    read();
    source.acquire(Claim::TakeBack("m1")).unwrap();
    assert!(!cached());
    source.release("m2").unwrap();
    read();
    assert!(cached());
    let mut there = shared.backing();
    refused(there.acquire(Claim::Arrive("m1")), "not handed over");
    assert!(cached());
    there.acquire(Claim::Arrive("m2")).unwrap();
    assert!(!cached());
}

/// Somebody else may have a disk written back, or forgotten, by a descriptor of its own: before it is taken here, and
/// while it is.
#[test]
fn a_file_that_is_opened_apart_is_in_nobodys_way() {
    let shared = Shared::new();
    let before = shared.backing().apart().unwrap();
    let first = shared.started();
    first.write(0, b"x").unwrap();
    let (meanwhile, mut byte) = (first.apart().unwrap(), [0]);
    meanwhile.sync_data().unwrap();
    meanwhile.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, *b"x");
    assert!(meanwhile.write_at(b"y", 0).is_err(), "it is for reading");
    drop((before, meanwhile));
    assert!(is_locked(&shared.path("disk")), "its end ends no lock");
    assert_eq!(shared.controller().files().len(), 2);
}

#[test]
fn what_nobody_took_is_taken_back_and_cannot_be_taken_then() {
    let shared = Shared::new();
    let mut source = shared.started();
    source.release("m1").unwrap();
    refused(source.acquire(Claim::TakeBack("m2")), "has taken");
    source.acquire(Claim::TakeBack("m1")).unwrap();
    source.write(0, b"x").unwrap();
    drop(source);
    refused(
        shared.backing().acquire(Claim::Arrive("m1")),
        "not handed over",
    );
    let mut again = shared.started();
    again.release("m3").unwrap();
    refused(again.acquire(Claim::TakeBack("m1")), "has taken");
}

#[test]
fn what_arrived_and_goes_back_unused_is_as_if_it_had_never_come() {
    let shared = Shared::new();
    let mut source = shared.started();
    source.release("m1").unwrap();
    let handed_over = shared.lease_text();
    let mut there = shared.backing();
    there.acquire(Claim::Arrive("m1")).unwrap();
    assert_ne!(shared.lease_text(), handed_over);
    there.release("m1").unwrap();
    assert_eq!(shared.lease_text(), handed_over);
    source.acquire(Claim::TakeBack("m1")).unwrap();
}

#[test]
fn what_arrived_goes_on_by_the_next_migration() {
    let shared = Shared::new();
    let mut source = shared.started();
    source.release("m1").unwrap();
    let mut there = shared.backing();
    there.acquire(Claim::Arrive("m1")).unwrap();
    there.release("m2").unwrap();
    refused(source.acquire(Claim::TakeBack("m1")), "has taken");
    refused(source.acquire(Claim::TakeBack("m2")), "has taken");
    source.acquire(Claim::Arrive("m2")).unwrap();
    assert!(shared.lease_text().contains("epoch 3\n"));
}

#[test]
fn a_lease_that_is_none_is_left_alone() {
    let shared = Shared::new();
    let mut source = shared.started();
    source.release("m1").unwrap();
    let whole = std::fs::read(shared.lease()).unwrap();
    for damage in [
        &whole[..511],
        &[&whole[..], b"\n"].concat(),
        b"mine",
        &vec![7; 1 << 20],
    ] {
        std::fs::write(shared.lease(), damage).unwrap();
        for claim in [Claim::Start, Claim::Arrive("m1"), Claim::TakeBack("m1")] {
            refused(source.acquire(claim), "disk.vferry-lease is damaged");
            refused(source.acquire(claim), "delete it");
        }
        assert_eq!(std::fs::read(shared.lease()).unwrap(), damage);
    }
    std::fs::remove_file(shared.lease()).unwrap();
    std::fs::create_dir(shared.lease()).unwrap();
    refused(source.acquire(Claim::Start), "disk.vferry-lease");
    std::fs::remove_dir(shared.lease()).unwrap();
    refused(source.acquire(Claim::Arrive("m1")), "not handed over");
    refused(source.acquire(Claim::TakeBack("m1")), "has taken");
    source.acquire(Claim::Start).unwrap();
}

#[test]
fn a_lease_that_somebody_wrote_meanwhile_is_told_and_nothing_is_handed_over() {
    let shared = Shared::new();
    let mut source = shared.started();
    let ours = std::fs::read(shared.lease()).unwrap();
    let file = OpenOptions::new().write(true).open(shared.lease()).unwrap();
    file.write_all_at(b"9", 21).unwrap();
    refused(source.release("m1"), "was changed while");
    source.write(0, b"it has it still").unwrap();
    file.write_all_at(&ours, 0).unwrap();
    source.release("m1").unwrap();
}

#[test]
fn a_migration_without_a_fitting_name_is_refused() {
    let shared = Shared::new();
    let mut source = shared.started();
    for name in ["", "a\nb", "ü", &"m".repeat(201)] {
        refused(source.release(name), "1 to 200");
    }
    source.release(&"m".repeat(200)).unwrap();
    source.acquire(Claim::TakeBack(&"m".repeat(200))).unwrap();
}

#[test]
fn one_image_has_one_lease_by_whatever_name_it_is_found() {
    let shared = Shared::new();
    let link = shared.path("link");
    std::os::unix::fs::symlink(shared.path("disk"), &link).unwrap();
    let mut source = FileBacking::open(&link).unwrap();
    source.acquire(Claim::Start).unwrap();
    source.release("m1").unwrap();
    shared.backing().acquire(Claim::Arrive("m1")).unwrap();
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let shared = Shared::new();
    for path in [shared.0.path(), Path::new("/dev/null")] {
        let error = FileBacking::open(path).unwrap_err().to_string();
        assert!(
            error.contains("neither a file nor a block device"),
            "{error}"
        );
    }
}

#[test]
fn a_lease_that_cannot_be_had_is_told_beforehand() {
    let shared = Shared::new();
    for lease in ["nowhere/lease", "disk/lease", "."] {
        let lease = shared.path(lease);
        let error = FileBacking::new(&shared.path("disk"), Some(lease.clone())).unwrap_err();
        let error = error.to_string();
        let named = format!("cannot use {} as the lease of", lease.display());
        assert!(error.contains(&named), "{error}");
        assert!(error.contains(shared.path("disk").to_str().unwrap()));
    }
    let lease = Some(shared.path("lease"));
    let backing = FileBacking::new(&shared.path("disk"), lease).unwrap();
    assert!(backing.can_be_handed_over());
    assert!(!shared.path("lease").exists(), "it was only looked for");
}

#[test]
fn the_length_is_looked_up_again() {
    let shared = Shared::new();
    let mut backing = shared.backing();
    let file = OpenOptions::new()
        .write(true)
        .open(shared.path("disk"))
        .unwrap();
    file.set_len(2 << 20).unwrap();
    assert_eq!(backing.measure().unwrap(), 2 << 20);
    file.set_len(3 << 20).unwrap();
    backing.acquire(Claim::Start).unwrap();
    assert_eq!(backing.len(), 3 << 20);
    file.set_len(4 << 20).unwrap();
    assert_eq!(backing.measure().unwrap(), 4 << 20);
    drop(backing);
    std::fs::remove_file(shared.path("disk")).unwrap();
    refused(shared_measure(&shared), "disk");
}

fn shared_measure(shared: &Shared) -> io::Result<()> {
    File::create(shared.path("disk")).unwrap();
    let mut backing = shared.backing();
    std::fs::remove_file(shared.path("disk")).unwrap();
    backing.measure().map(|_| ())
}

struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn signal(&self, _: u16) {}
}

fn call<R>(controller: &mut Controller, f: impl FnOnce(&mut Controller, &Access<'_>) -> R) -> R {
    let access = Access {
        memory: Some(&FlatMemory::new(0, 1 << 16)),
        interrupts: &NoInterrupts,
        clock: &ManualClock::default(),
        ledger: None,
    };
    f(controller, &access)
}

#[test]
fn a_controller_takes_no_command_before_it_has_its_disks() {
    let shared = Shared::new();
    let mut controller = shared.controller();
    let write = |c: &mut Controller, offset, value: u64| {
        call(c, |c, a| c.write(0, offset, &value.to_le_bytes()[..4], a));
        call(c, Controller::poll)
    };
    write(&mut controller, 0x24, 0x000f_000f);
    write(&mut controller, 0x30, 0x1000);
    write(&mut controller, 0x14, 0x0046_0001);
    write(&mut controller, 0x1000, 1);
    // And a shutdown, which would make durable what may be another's.
    assert_eq!(
        write(&mut controller, 0x14, 0x0046_4001),
        Progress::Idle(None)
    );
    let queue = controller.state().submission[0].unwrap();
    assert_eq!((queue.head, queue.tail), (0, 1));
    assert_eq!(controller.counters().flushes, 0);
    controller.acquire(Claim::Start).unwrap();
    assert!(controller.needs_poll());
    // Other engines need not come to an end at once.
    while !matches!(controller.state().registers.shutdown, Shutdown::Complete) {
        write(&mut controller, 0x1004, 0);
    }
    assert_eq!(controller.counters().flushes, 2, "shut down");
    write(&mut controller, 0x14, 0);
    controller.release("m1").unwrap();
    write(&mut controller, 0x14, 0x0046_0001);
    write(&mut controller, 0x1000, 1);
    assert_eq!(controller.counters().admin_commands, 0);
    controller.acquire(Claim::TakeBack("m1")).unwrap();
    call(&mut controller, Controller::poll);
    assert_eq!(controller.counters().admin_commands, 1);
}

#[test]
fn a_controller_gets_all_its_disks_or_none() {
    let shared = Shared::new();
    let mut source = shared.controller();
    source.acquire(Claim::Start).unwrap();
    let lease = shared.path("second.vferry-lease");
    let whole = std::fs::read(&lease).unwrap();
    // The second cannot be let go of: the first is here again.
    std::fs::write(&lease, b"?").unwrap();
    source.release("m1").unwrap_err();
    assert!(is_locked(&shared.path("disk")));
    assert!(shared.lease_text().contains("\nheld\n"));
    std::fs::write(&lease, whole).unwrap();
    source.release("m1").unwrap();
    // The second cannot be taken there: the first is not either, and the source gets both back.
    let handed_over = std::fs::read(&lease).unwrap();
    std::fs::write(&lease, b"?").unwrap();
    let mut there = shared.controller();
    refused(there.acquire(Claim::Arrive("m1")), "second.vferry-lease");
    assert!(!is_locked(&shared.path("disk")));
    std::fs::write(&lease, handed_over).unwrap();
    source.acquire(Claim::TakeBack("m1")).unwrap();
}

#[test]
fn a_disk_that_has_shrunk_is_not_taken() {
    let shared = Shared::new();
    let mut source = shared.controller();
    let record = source.save().unwrap();
    source.acquire(Claim::Start).unwrap();
    source.release("m1").unwrap();
    let mut there = shared.controller();
    let file = OpenOptions::new()
        .write(true)
        .open(shared.path("second"))
        .unwrap();
    file.set_len(4096).unwrap();
    let error = there.load(&record).unwrap_err().to_string();
    assert!(error.contains("namespace 2"), "{error}");
    refused(there.acquire(Claim::Arrive("m1")), "namespace 2");
    file.set_len(LEN as u64).unwrap();
    there.load(&record).unwrap();
    source.acquire(Claim::TakeBack("m1")).unwrap();
}
