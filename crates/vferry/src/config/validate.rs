//! From what is written to what is meant.

mod devices;
mod host_function;
mod kept;
mod protection;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ferry::sleep::{Ask, Bedtime};
use qemu::args::Memory;
use qemu::{Iommu, PciAddress, debugger};
use toml::Spanned;

use super::file::{File, GuestSection, QemuSection, SleepSection, VmSection};
use super::problem::line;
use super::{Config, Deadlines, Endpoint, Guest, Origin, Problem};

/// Longest path of a unix socket (`sockaddr_un`, unix(7)).
const MAX_SOCKET_PATH: usize = 107;
const LAST_DEVICE: u8 = Config::LAST_DEVICE;
const DEFAULT_DOWNTIME_LIMIT_MS: u64 = 100;

pub(super) fn validate(path: &Path, text: &str, file: &File) -> Result<Config, Vec<Problem>> {
    let mut check = Check {
        text,
        problems: Vec::new(),
        sockets: BTreeMap::new(),
        slots: BTreeMap::new(),
        files: BTreeMap::new(),
    };
    let origin = Origin {
        path: path.into(),
        memory_line: line(text, &file.vm.memory.span()),
        link_line: line(text, &file.migration.link.span()),
    };
    let name = check.name(&file.vm.name);
    let memory = check.memory(&file.vm);
    let qmp = check.socket(&file.qemu.qmp);
    let machine = check.machine(file.qemu.machine.as_ref());
    let iommu = check.iommu(&file.qemu);
    let control = check.socket(&file.control.socket);
    let sidecar = check.socket(&file.sidecar.socket);
    let sidecar_address = check.function(&file.sidecar.address, 7);
    let guest = file.guest.as_ref().map(|guest| check.guest(guest));
    let bedtime = check.bedtime(file.sleep.as_ref());
    let link = check.endpoint(&file.migration.link);
    let incoming = check.endpoint(&file.migration.incoming);
    let protection = check.protection(&file.migration);
    let stream_authz = check.stream_authz(&file.migration);
    if let (Some(link), Some(incoming), Some(protection)) = (&link, &incoming, &protection) {
        check.exposure(&file.migration, protection, [link, incoming]);
    }
    let limit = file.migration.downtime_limit_ms.as_ref();
    let downtime_limit = check.downtime_limit(limit);
    let max_bandwidth = file.migration.max_bandwidth.as_ref();
    let max_bandwidth = max_bandwidth.map_or(Some(0), |text| check.size(text));
    let devices = check.devices(text, &file.device);
    if file
        .device
        .iter()
        .any(|device| device.get_ref().root_port == Some(true))
    {
        check.acpi_table(&file.sidecar.socket);
    }
    let keeper = check.keeper(file);
    if !check.problems.is_empty() {
        check.problems.sort_by_key(|problem| problem.line);
        return Err(check.problems);
    }
    // Every `None` has left a problem behind.
    let sound = || {
        Some(Config {
            origin,
            name: name?,
            memory: memory?,
            socket_group: file.vm.socket_group,
            machine,
            qmp: qmp?,
            iommu,
            control: control?,
            sidecar: sidecar?,
            sidecar_address: sidecar_address?,
            guest: match guest {
                Some(guest) => Some(guest?),
                None => None,
            },
            bedtime: bedtime?,
            link: link?,
            incoming: incoming?,
            protection: protection?,
            stream_authz,
            downtime_limit,
            max_bandwidth: max_bandwidth?,
            devices,
            keeper,
        })
    };
    sound().ok_or_else(Vec::new)
}

struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    sockets: BTreeMap<PathBuf, usize>,
    /// By device number: no two share one.
    slots: BTreeMap<u8, usize>,
    files: BTreeMap<PathBuf, usize>,
}

impl Check<'_> {
    fn wrong<T, V>(
        &mut self,
        at: &Spanned<V>,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) -> Option<T> {
        self.problems
            .push(Problem::at(self.text, &at.span(), what, instead));
        None
    }

    fn name(&mut self, name: &Spanned<String>) -> Option<String> {
        let text = name.get_ref();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.is_empty() || !text.chars().all(fits) || !text.starts_with(char::is_alphabetic) {
            let what = format!("`{text}` is not a usable name");
            return self.wrong(
                name,
                what,
                "a letter, then letters, digits, `-`, `_` and `.`",
            );
        }
        Some(text.clone())
    }

    fn memory(&mut self, vm: &VmSection) -> Option<Memory> {
        let size = self.size(&vm.memory)?;
        if size == 0 || !size.is_multiple_of(2 << 20) {
            let what = format!("memory of {size} bytes is not a multiple of 2 MiB");
            return self.wrong(&vm.memory, what, "for instance memory = \"512M\"");
        }
        let Some(text) = &vm.hugepages else {
            return Some(size.into());
        };
        let page = self.size(text)?;
        let smallest = 2 << 20;
        if !page.is_power_of_two() || page < smallest || !size.is_multiple_of(page) {
            let what =
                format!("{size} bytes of memory are not a whole number of pages of {page} bytes");
            let instead = "hugepages = \"2M\" or \"1G\", of which memory is a multiple";
            return self.wrong(text, what, instead);
        }
        Some(Memory {
            size,
            hugepage: Some(page),
        })
    }

    /// `512M`, `4G`, `1048576`.
    fn size(&mut self, size: &Spanned<String>) -> Option<u64> {
        let text = size.get_ref();
        let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
            Some(digits) => (
                digits,
                10 * (1 + "KMGT".find(&text[digits.len()..]).unwrap_or(0)),
            ),
            None => (text.as_str(), 0),
        };
        let bytes = digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift));
        if bytes.is_none() {
            let what = format!("`{text}` is not a number of bytes");
            let instead = "a number with K, M, G or T behind it, as in \"512M\"";
            return self.wrong(size, what, instead);
        }
        bytes
    }

    fn machine(&mut self, machine: Option<&Spanned<String>>) -> String {
        let Some(machine) = machine else {
            return "q35".into();
        };
        let text = machine.get_ref();
        if text != "q35" && !text.starts_with("pc-q35-") {
            let what = format!("machine `{text}` has no PCI Express, which the devices need");
            self.wrong::<(), _>(
                machine,
                what,
                "\"q35\", or a version of it as \"pc-q35-11.1\"",
            );
        }
        text.clone()
    }

    fn iommu(&mut self, qemu: &QemuSection) -> Option<Iommu> {
        let iommu = qemu.iommu.as_ref()?;
        let text = iommu.get_ref().as_str();
        let Some(known) = Iommu::ALL.into_iter().find(|iommu| iommu.name() == text) else {
            let what = format!("`{text}` is no virtual IOMMU that vferry knows");
            let instead = Iommu::ALL.map(|iommu| format!("{:?}", iommu.name()));
            return self.wrong(iommu, what, instead.join(" or "));
        };
        let len = qemu.qmp.get_ref().len() + debugger::SUFFIX.len();
        if len > MAX_SOCKET_PATH {
            let what = format!(
                "behind a virtual IOMMU vferry needs a socket beside this one, with {len} \
                 characters: the system allows {MAX_SOCKET_PATH}"
            );
            return self.wrong(&qemu.qmp, what, "a shorter path, for instance below /run");
        }
        Some(known)
    }

    fn socket(&mut self, socket: &Spanned<String>) -> Option<PathBuf> {
        let path = PathBuf::from(socket.get_ref());
        if !path.is_absolute() {
            let what = format!("`{}` is not an absolute path", path.display());
            return self.wrong(socket, what, "a path that begins with `/`");
        }
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let len = path.as_os_str().len();
            let what =
                format!("a socket's path of {len} characters: the system allows {MAX_SOCKET_PATH}");
            return self.wrong(socket, what, "a shorter path, for instance below /run");
        }
        if !path.parent().is_some_and(Path::is_dir) {
            let folder = path.parent().unwrap_or(Path::new("/")).display();
            let what = format!("the folder of this socket does not exist: {folder}");
            return self.wrong(
                socket,
                what,
                format!("an existing folder, or `mkdir -p {folder}` first"),
            );
        }
        let here = line(self.text, &socket.span());
        if let Some(other) = self.sockets.insert(path.clone(), here) {
            let what = format!("{} is the socket of line {other} already", path.display());
            return self.wrong(socket, what, "a path of its own for each socket");
        }
        Some(path)
    }

    /// The ACPI table's path begins as the sidecar's, and to `-acpitable` a colon ends it.
    fn acpi_table(&mut self, sidecar: &Spanned<String>) {
        if sidecar.get_ref().contains(':') {
            let what = "a path with a colon, beside which QEMU finds no ACPI table";
            self.wrong::<(), _>(sidecar, what, "a path without, as a device has a root port");
        }
    }

    /// Of a device that the guest shall see: function 0 is where it looks.
    fn address(&mut self, address: &Spanned<String>) -> Option<PciAddress> {
        self.function(address, 0)
    }

    /// An address with function numbers up to `last`, in a slot of its own.
    fn function(&mut self, address: &Spanned<String>, last: u8) -> Option<PciAddress> {
        let parsed = match PciAddress::from_str(address.get_ref()) {
            Ok(parsed) => parsed,
            Err(error) => return self.wrong(address, error.to_string(), "as in \"00:05.0\""),
        };
        let usable = 1..=LAST_DEVICE;
        if parsed.bus() != 0 || parsed.function() > last || !usable.contains(&parsed.device()) {
            let what = format!("{parsed} is not a free slot of the main bus");
            return self.wrong(address, what, format!("00:01.0 to 00:1e.{last}"));
        }
        let here = line(self.text, &address.span());
        if let Some(other) = self.slots.insert(parsed.device(), here) {
            let what = format!("{parsed} is the address of line {other} already");
            return self.wrong(address, what, "an address of its own for each device");
        }
        Some(parsed)
    }

    fn guest(&mut self, guest: &GuestSection) -> Option<Guest> {
        let socket = self.socket(&guest.socket);
        let address = self.address(&guest.address);
        let default = Deadlines::default();
        let deadlines = Deadlines {
            track: self.deadline(guest.track_deadline_ms.as_ref(), default.track),
            quiesce: self.deadline(guest.quiesce_deadline_ms.as_ref(), default.quiesce),
            end: self.deadline(guest.restart_deadline_ms.as_ref(), default.end),
        };
        Some(Guest {
            socket: socket?,
            address: address?,
            deadlines,
        })
    }

    fn bedtime(&mut self, sleep: Option<&SleepSection>) -> Option<Bedtime> {
        let default = Bedtime::default();
        let Some(sleep) = sleep else {
            return Some(default);
        };
        let deadline = self.deadline(sleep.deadline_ms.as_ref(), default.deadline);
        let ask = match &sleep.agent {
            Some(socket) => Ask::Agent(self.socket(socket)?),
            None => default.ask,
        };
        Some(Bedtime { ask, deadline })
    }

    fn deadline(&mut self, deadline: Option<&Spanned<u64>>, default: Duration) -> Duration {
        let Some(deadline) = deadline else {
            return default;
        };
        let ms = *deadline.get_ref();
        if !(1..=60_000).contains(&ms) {
            let what = format!("a deadline of {ms} ms is not possible");
            self.wrong::<(), _>(deadline, what, "1 to 60000");
        }
        Duration::from_millis(ms)
    }

    fn endpoint(&mut self, endpoint: &Spanned<String>) -> Option<Endpoint> {
        match Endpoint::from_str(endpoint.get_ref()) {
            Ok(Endpoint::Unix(path)) => {
                let text = path.to_string_lossy().into_owned();
                self.socket(&Spanned::new(endpoint.span(), text))
                    .map(Endpoint::Unix)
            }
            Ok(tcp) => Some(tcp),
            Err(error) => self.wrong(endpoint, error, "as in \"tcp:192.0.2.1:7800\""),
        }
    }

    fn downtime_limit(&mut self, limit: Option<&Spanned<u64>>) -> Duration {
        let ms = limit.map_or(DEFAULT_DOWNTIME_LIMIT_MS, |limit| *limit.get_ref());
        if let Some(limit) = limit.filter(|_| !(1..=2_000_000).contains(&ms)) {
            let what = format!("a pause of {ms} ms is not possible");
            self.wrong::<(), _>(limit, what, "1 to 2000000");
        }
        Duration::from_millis(ms)
    }
}
