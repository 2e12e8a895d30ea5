//! A host of the lab: a machine with an SR-IOV NIC behind an IOMMU, in which KVM guests run.
//!
//! The machine is QEMU's: an emulated 82576 (`igb`) with virtual functions, an emulated Intel IOMMU, and
//! a processor with virtualisation, which QEMU's translator has, too. Kernel, drivers and the
//! QEMU inside are Debian's own. So what is done here with VFIO and KVM is done by a real Linux,
//! though on no hardware.
//!
//! The lab's packages are the host's `/r`, read-only by 9p; a folder that the caller shares is below
//! it, at [`SHARE`].

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qemu::args::option_value;

use crate::control::Control;
use crate::guest::{serial, text};
use crate::{Initrd, Lab, Output, StandsStill, Vm, tsc};

/// Where programs that are run by [`Host::run`] find the shared folder.
pub const SHARE: &str = "/run/share";
/// How long a command may take that takes a second on an idle machine.
const COMMAND: Duration = Duration::from_mins(1);
/// How often a guest that boots is asked whether it is there.
const ASK: Duration = Duration::from_secs(3);
/// Memory in bytes, for itself and a guest.
const MEMORY: u64 = 2 << 30;
const HUGEPAGE: u64 = 2 << 20;
/// Of the last two the one fits that is for the processor.
const MODULES: [&str; 10] = [
    "9pnet_virtio",
    "9p",
    "igb",
    "virtio_net",
    "tun",
    "bridge",
    "vfio_iommu_type1",
    "vfio_pci",
    "kvm_amd",
    "kvm_intel",
];
/// What QEMU says when KVM cannot go on with a guest. In a host that is emulated that happens to one in
/// some dozens, and is nobody's fault in it: its processor faults on a device's register while it
/// delivers an interrupt (`KVM_INTERNAL_ERROR_DELIVERY_EV`).
const BROKEN: &str = "KVM internal error";
/// The kernel's command line of a guest. It prints no more than what it dies of: its line takes some 10 ms for each
/// character, with interrupts off, so that what is said of an error that it recovers from, or of RCU that has heard nothing of
/// its one processor, would stop it for seconds. All of it is in `dmesg`.
const APPEND: &str = "console=ttyS0 loglevel=1 panic=-1";
/// The host's third serial line, the guest's second.
const LINE: &str = "/dev/ttyS2";

/// A running host.
#[derive(Debug)]
pub struct Host {
    vm: Vm,
    folder: PathBuf,
    name: String,
    share: PathBuf,
    /// How many guests it has had.
    guests: AtomicU32,
}

/// What a host is plugged into.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOptions<'a> {
    /// Tells it from others: the fifth byte of its interfaces' addresses.
    pub number: u8,
    /// What its NIC, `eth0`, is at the end of: the socket of a switch that speaks as QEMU's `-netdev
    /// stream` does. Nothing if `None`.
    pub wire: Option<&'a Path>,
    /// What its second interface, `eth1`, is at the end of. It has none if `None`.
    pub cable: Option<Cable<'a>>,
}

/// A cable between two hosts, by its socket. The one that listens is started first.
#[derive(Debug, Clone, Copy)]
pub enum Cable<'a> {
    /// This end listens.
    Listens(&'a Path),
    /// This end connects.
    Connects(&'a Path),
}

/// A virtual function of the host's NIC, bound to `vfio-pci`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// `DOMAIN:BUS:DEVICE.FUNCTION`.
    pub address: String,
    /// Its number.
    pub number: u32,
}

/// The one guest of the host. Its QEMU is one of the host's processes.
#[derive(Debug)]
pub struct Guest {
    control: Control,
}

/// The QEMU of a host's guest has ended by itself.
#[derive(Debug)]
pub struct QemuEnded {
    /// As the host's shell has it: 0 if the guest reset itself, and 128 and its number for a signal.
    pub status: String,
}

impl fmt::Display for QemuEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's QEMU has ended (status {})", self.status)
    }
}

impl std::error::Error for QemuEnded {}

impl Host {
    /// Boots a host whose files go into `folder` under names that begin with `name`, and waits until it
    /// is up. `lab` is one of [`Lab::for_hosts`].
    ///
    /// # Errors
    ///
    /// If it does not come up within `limit`, with what it said; a [`StandsStill`] if its QEMU still runs.
    pub fn start(
        lab: &Lab,
        folder: &Path,
        name: &str,
        options: HostOptions<'_>,
        limit: Duration,
    ) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let share = folder.join(format!("{name}.share"));
        fs::create_dir_all(&share).with_context(|| format!("cannot create {}", share.display()))?;
        let line = folder.join(format!("{name}.guest"));
        let stream = |id: &str, server: &str, path: &Path| {
            let path = option_value(text(path)?);
            Ok::<_, anyhow::Error>(format!(
                "stream,id={id},server={server},addr.type=unix,addr.path={path}"
            ))
        };
        let network = match options.wire {
            Some(wire) => stream("wire", "off", wire)?,
            None => "hubport,id=wire,hubid=0".to_owned(),
        };
        let number = options.number;
        let mut cable = Vec::new();
        if let Some(end) = options.cable {
            let end = match end {
                Cable::Listens(path) => stream("cable", "on", path)?,
                Cable::Connects(path) => stream("cable", "off", path)?,
            };
            let nic = format!("virtio-net-pci,netdev=cable,mac=52:54:00:00:{number:02x}:02");
            cable = vec!["-netdev".to_owned(), end, "-device".to_owned(), nic];
        }
        let folder_of = |path: &Path, tag: &str, more: &str| {
            let path = option_value(text(path)?);
            Ok::<_, anyhow::Error>(format!(
                "local,path={path},mount_tag={tag},security_model=none{more}"
            ))
        };
        let initrd = MODULES
            .iter()
            .fold(Initrd::new(), |initrd, module| initrd.module(module));
        let vm = Vm::builder(lab, folder, name)
            .initrd(initrd)
            .machine_from_args()
            // On a busy machine the kernel waits for its timer in vain at boot, and panics (`timer_irq_works`).
            .append("intel_iommu=on iommu=pt no_timer_check nokaslr")
            .append(&tsc::parameter().unwrap_or_default())
            .args(["-machine", "q35,kernel-irqchip=off"])
            .args(["-cpu".to_owned(), "max".to_owned()])
            .args(["-m".to_owned(), format!("{}M", MEMORY >> 20)])
            .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
            .args(["-netdev", &network])
            .args([
                "-device".to_owned(),
                format!("igb,netdev=wire,id=pf,mac=52:54:00:00:{number:02x}:01"),
            ])
            .args(cable)
            .args([
                "-virtfs",
                &folder_of(lab.host_root()?, "root", ",readonly=on")?,
            ])
            .args(["-virtfs", &folder_of(&share, "share", "")?])
            .args(serial("guest", "socket", &line, ",server=on,wait=off")?)
            .spawn()?;
        let host = Self {
            vm,
            folder: folder.to_owned(),
            name: name.to_owned(),
            share,
            guests: AtomicU32::new(0),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        host.vm
            .wait_ready(left)
            .map_err(|error| StandsStill::explains(error, host.vm.qmp()))?;
        host.shell(&format!(
            "set -e
            mount_9p() {{ mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,$3 $1 $2; }}
            mkdir /r
            mount_9p root /r ro,cache=loose
            for tmp in tmp run; do mount -t tmpfs $tmp /r/$tmp; done
            for bound in proc sys dev; do mount --bind /$bound /r/$bound; done
            mkdir /r{SHARE}
            mount_9p share /r{SHARE} rw
            ip link set eth0 up"
        ))?;
        Ok(host)
    }

    /// Runs a command in the host's shell, which must succeed.
    ///
    /// # Errors
    ///
    /// When it does not, with what it says.
    pub fn shell(&self, command: &str) -> Result<String> {
        self.vm.shell(command, COMMAND)?.success()
    }

    /// The same, among the lab's packages.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn run(&self, command: &str) -> Result<String> {
        self.shell(&format!("chroot /r {command}"))
    }

    /// The shared folder, as the caller sees it.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// Sets memory aside for guests, in pages of 2 MiB (hugetlb). Guests to whom the host passes its function need
    /// that: QEMU's `igb` drops what lies across two pages that its IOMMU does not map side by side
    /// (`net_tx_pkt_add_raw_fragment_pci`), and TCP sends such a packet again and again.
    ///
    /// # Errors
    ///
    /// When the host has not as much.
    pub fn set_aside(&self, bytes: u64) -> Result<()> {
        let pages = bytes.div_ceil(HUGEPAGE);
        self.shell(&format!(
            "cd /proc/sys/vm; echo {pages} > nr_hugepages; test $(cat nr_hugepages) = {pages}"
        ))
        .map(drop)
    }

    /// Makes `macs.len()` virtual functions with these addresses, and binds them to `vfio-pci`.
    ///
    /// # Errors
    ///
    /// When the host does not.
    pub fn functions(&self, macs: &[&str]) -> Result<Vec<Function>> {
        let count = macs.len();
        self.shell(&format!(
            "echo {count} > /sys/class/net/eth0/device/sriov_numvfs"
        ))?;
        let function = |(number, mac): (u32, &&str)| {
            self.run(&format!("/sbin/ip link set eth0 vf {number} mac {mac}"))?;
            let link = format!("/sys/class/net/eth0/device/virtfn{number}");
            let address = self.shell(&format!("basename $(readlink -f {link})"))?;
            let address = address.trim().to_owned();
            self.shell(&format!(
                "echo vfio-pci > {link}/driver_override
                test ! -e {link}/driver || echo {address} > {link}/driver/unbind
                echo {address} > /sys/bus/pci/drivers_probe
                test $(basename $(readlink -f {link}/driver)) = vfio-pci"
            ))?;
            Ok(Function { address, number })
        };
        (0..).zip(macs).map(function).collect()
    }

    /// Starts a guest with this machine and these devices, as a shell reads them, and waits until it
    /// is up.
    ///
    /// # Errors
    ///
    /// When it does not come up within `limit`, with what it said.
    pub fn guest(&self, lab: &Lab, initrd: &Initrd, args: &str, limit: Duration) -> Result<Guest> {
        let mut guest = self.power_on(lab, initrd, args)?;
        self.wait_up(&mut guest, limit)?;
        Ok(guest)
    }

    /// Starts a guest's QEMU, which may wait for a guest from elsewhere.
    ///
    /// # Errors
    ///
    /// When the host does not.
    pub fn power_on(&self, lab: &Lab, initrd: &Initrd, args: &str) -> Result<Guest> {
        fs::write(self.share.join("guest.initrd"), initrd.build(lab)?)?;
        let kernel = lab.kernel();
        let kernel = text(kernel.strip_prefix(lab.host_root()?)?)?.to_owned();
        let stream = std::os::unix::net::UnixStream::connect(
            self.folder.join(format!("{}.guest", self.name)),
        )?;
        self.guests.fetch_add(1, Ordering::Relaxed);
        let (log, ended) = (self.guest_log(), self.ended());
        self.shell(&format!(
            "(chroot /r /usr/bin/qemu-system-x86_64 -accel kvm -cpu host -nodefaults \
             -no-user-config -display none -no-reboot \
             -chardev file,id=console,path={SHARE}/guest.console -serial chardev:console \
             -chardev serial,id=line,path={LINE} -serial chardev:line \
             -kernel /{kernel} -initrd {SHARE}/guest.initrd \
             -append '{APPEND}' {args} > /r{SHARE}/{log} 2>&1 < /dev/null; \
             echo $? > /r{SHARE}/{ended}) &"
        ))?;
        Ok(Guest {
            control: Control::new(stream),
        })
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    ///
    /// When it is not within `limit`, with what it said.
    pub fn wait_up(&self, guest: &mut Guest, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        // Its first word may be lost while its driver sets the host's line up.
        loop {
            let soon = deadline.min(Instant::now() + ASK);
            match guest.control.run("true", soon, || self.alive()) {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < deadline && self.alive().is_ok() => {}
                Err(error) => return Err(error).with_context(|| self.guest_said()),
            }
        }
    }

    /// Runs a command in the guest's shell, which must succeed.
    ///
    /// # Errors
    ///
    /// When it does not, with what it says.
    pub fn guest_shell(&self, guest: &mut Guest, command: &str) -> Result<String> {
        let deadline = Instant::now() + COMMAND;
        let output = guest.control.run(command, deadline, || self.alive());
        output
            .and_then(Output::success)
            .with_context(|| self.guest_said())
    }

    /// That the guest's QEMU runs, and the host.
    ///
    /// # Errors
    ///
    /// When one does not.
    pub fn alive(&self) -> Result<()> {
        if let Ok(status) = fs::read_to_string(self.share.join(self.ended())) {
            let status = status.trim().to_owned();
            return Err(QemuEnded { status }.into());
        }
        ensure!(
            !self.is_broken(),
            "the host's KVM does not go on with the guest"
        );
        self.vm.check()
    }

    /// What the newest guest's QEMU says.
    fn guest_log(&self) -> String {
        format!("guest.{}.log", self.guests.load(Ordering::Relaxed))
    }

    /// There when the newest guest's QEMU has ended.
    fn ended(&self) -> String {
        format!("guest.{}.ended", self.guests.load(Ordering::Relaxed))
    }

    /// Whether the guest stands still because of a fault of the emulated processor's, or was reset by one
    /// before its kernel had said a word, which ends its QEMU as silently.
    pub fn is_broken(&self) -> bool {
        let said = |file: &str| fs::read(self.share.join(file)).unwrap_or_default();
        let gone = self.share.join(self.ended()).exists() && said("guest.console").is_empty();
        gone || String::from_utf8_lossy(&said(&self.guest_log())).contains(BROKEN)
    }

    /// What the guest's QEMU and console have said.
    pub fn guest_said(&self) -> String {
        let said = |file: &str| {
            let said = fs::read(self.share.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&said).into_owned()
        };
        format!(
            "the guest's QEMU said: {}; the guest's console: {}",
            said(&self.guest_log()),
            said("guest.console")
        )
    }
}
