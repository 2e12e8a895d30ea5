//! The device sections.

use std::collections::BTreeMap;
use std::path::PathBuf;

use qemu::Place;
use toml::Spanned;

use super::{Check, line};
use crate::config::file::DeviceSection;
use crate::config::{Config, Device, DirtyLog, Disk, Guest, Nic, Problem, Settings, Uplink};
use crate::models::{self, Kind};

impl Check<'_> {
    pub(super) fn devices(
        &mut self,
        text: &str,
        sections: &[Spanned<DeviceSection>],
    ) -> Vec<Device> {
        if sections.is_empty() {
            self.problems.push(Problem {
                line: line(text, &(text.len()..text.len())),
                what: "there is no device".into(),
                instead: "at least one [[device]] section".into(),
            });
        }
        let mut names = BTreeMap::new();
        let mut devices = Vec::new();
        for section in sections {
            let device = section.get_ref();
            let here = line(text, &device.name.span());
            if let Some(other) = names.insert(device.name.get_ref().clone(), here) {
                let what = format!(
                    "`{}` is the device of line {other} already, or its root port",
                    device.name.get_ref()
                );
                self.wrong::<(), _>(&device.name, what, "a name of its own for each device");
            }
            let port = Config::root_port_id(device.name.get_ref());
            if device.root_port == Some(true)
                && let Some(other) = names.insert(port.clone(), here)
            {
                let what = format!("its root port's name, `{port}`, is taken by line {other}");
                self.wrong::<(), _>(&device.name, what, "another name");
            }
            devices.extend(self.device(section));
        }
        devices
    }

    fn device(&mut self, section: &Spanned<DeviceSection>) -> Option<Device> {
        let device = section.get_ref();
        let name = self.name(&device.name);
        if name.as_deref() == Some(Guest::NAME) {
            let what = format!("`{}` is the control device's name", Guest::NAME);
            self.wrong::<(), _>(&device.name, what, "another name");
        }
        let socket = self.socket(&device.socket);
        let address = self.address(&device.address);
        let place = if device.root_port.unwrap_or_default() {
            Place::RootPort
        } else {
            Place::MainBus
        };
        let known = models::names();
        let model = device.model.get_ref();
        if !known.contains(&model.as_str()) {
            let what = format!("there is no device model `{model}`");
            self.wrong::<(), _>(&device.model, what, known.join(" or "));
        }
        let kind = models::kind(model);
        let dirty_log = self.dirty_log(device, kind);
        let settings = match kind {
            Some(Kind::Nic) => self.nic(section).map(Settings::Nic),
            Some(Kind::Disk) => self.disk(section).map(Settings::Disk),
            Some(Kind::Host) => self.host_function(section).map(Settings::Host),
            Some(Kind::Test) => {
                self.not_for("queues", device.queues.as_ref(), "NICs and disks");
                self.not_for("mac", device.mac.as_ref(), "NICs");
                self.of_no_host(device);
                self.of_no_model(device);
                Some(Settings::None)
            }
            None => None,
        };
        Some(Device {
            name: name?,
            model: model.clone(),
            socket: socket?,
            place: address.map(place)?,
            dirty_log,
            settings: settings?,
        })
    }

    /// By default the device, if it can.
    fn dirty_log(&mut self, section: &DeviceSection, kind: Option<Kind>) -> DirtyLog {
        let Some(text) = &section.dirty_log else {
            return match kind {
                Some(Kind::Host) => DirtyLog::Best,
                _ => DirtyLog::Device,
            };
        };
        match text.get_ref().as_str() {
            "device" => return DirtyLog::Device,
            "guest" => return DirtyLog::Guest,
            other => {
                let what = format!("`{other}` is nobody who could know what a device writes");
                self.wrong::<(), _>(
                    text,
                    what,
                    "\"device\", or \"guest\" with a [guest] section",
                );
            }
        }
        DirtyLog::Device
    }

    fn nic(&mut self, section: &Spanned<DeviceSection>) -> Option<Nic> {
        let device = section.get_ref();
        self.not_for("file", device.file.as_ref(), "disks");
        self.not_for("lease", device.lease.as_ref(), "disks");
        self.not_for("serial", device.serial.as_ref(), "disks");
        self.of_no_host(device);
        let mac = match &device.mac {
            Some(mac) => self.mac(mac),
            None => self.wrong(
                section,
                "this device has no `mac`",
                "mac = \"02:00:00:00:00:01\"",
            ),
        };
        let queues = device.queues.as_ref().map_or(2, |queues| *queues.get_ref());
        if let Some(at) = device
            .queues
            .as_ref()
            .filter(|_| !(1..=2).contains(&queues))
        {
            let what = format!("{queues} queue pairs");
            self.wrong::<(), _>(at, what, "1 or 2, as an 82599 virtual function has");
        }
        let uplink = if let Some(uplink) = &device.uplink {
            self.uplink(uplink)
        } else {
            let instead = "uplink = \"tap:NAME\" or uplink = \"wire:/PATH\"";
            self.wrong(section, "this device has no `uplink`", instead)
        };
        Some(Nic {
            mac: mac?,
            queues,
            uplink: uplink?,
        })
    }

    fn disk(&mut self, section: &Spanned<DeviceSection>) -> Option<Disk> {
        let device = section.get_ref();
        self.not_for("mac", device.mac.as_ref(), "NICs");
        self.not_for("uplink", device.uplink.as_ref(), "NICs");
        self.of_no_host(device);
        let file = match &device.file {
            Some(file) => self.file(file),
            None => self.wrong(
                section,
                "this device has no `file`",
                "file = \"/PATH\", a file or block device",
            ),
        };
        let lease = match &device.lease {
            Some(lease) => Some(self.file(lease)?),
            None => None,
        };
        let serial = device.serial.as_ref().unwrap_or(&device.name);
        let text = serial.get_ref();
        let fits = |b: u8| b.is_ascii_graphic();
        if !(1..=20).contains(&text.len()) || !text.bytes().all(fits) {
            let what = format!("`{text}` is no serial number, which is the name if there is none");
            let instead = "serial = \"...\", 1 to 20 ASCII characters without spaces";
            self.wrong::<(), _>(serial, what, instead);
        }
        let queues = device.queues.as_ref().map_or(4, |queues| *queues.get_ref());
        if let Some(at) = device
            .queues
            .as_ref()
            .filter(|_| !(1..=16).contains(&queues))
        {
            let what = format!("{queues} queue pairs");
            self.wrong::<(), _>(at, what, "1 to 16, best one for each CPU of the guest");
        }
        Some(Disk {
            file: file?,
            lease,
            serial: text.clone(),
            queues: queues.into(),
        })
    }

    fn file(&mut self, file: &Spanned<String>) -> Option<PathBuf> {
        let path = PathBuf::from(file.get_ref());
        if !path.is_absolute() {
            let what = format!("`{}` is not an absolute path", path.display());
            return self.wrong(file, what, "a path that begins with `/`");
        }
        let here = line(self.text, &file.span());
        if let Some(other) = self.files.insert(path.clone(), here) {
            let what = format!("{} is in line {other} already", path.display());
            return self.wrong(file, what, "a file of its own for each disk and each lease");
        }
        Some(path)
    }

    /// Refuses a key of another kind of device.
    pub(super) fn not_for<V>(&mut self, key: &str, value: Option<&Spanned<V>>, whose: &str) {
        if let Some(value) = value {
            let what = format!("`{key}` is for {whose}, which this device is not");
            self.wrong::<(), _>(value, what, format!("the section without `{key}`"));
        }
    }

    pub(super) fn mac(&mut self, mac: &Spanned<String>) -> Option<[u8; 6]> {
        let text = mac.get_ref();
        let byte = |part: &str| {
            (part.len() == 2)
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        match bytes {
            Some(bytes) if bytes[0] & 1 == 0 && bytes != [0; 6] => Some(bytes),
            Some(_) => {
                let what = format!("{text} is not the address of one station");
                self.wrong(
                    mac,
                    what,
                    "an address whose first byte is even, as 02:00:00:00:00:01",
                )
            }
            None => {
                let what = format!("`{text}` is not a MAC address");
                self.wrong(mac, what, "six bytes in hexadecimal, as 02:00:00:00:00:01")
            }
        }
    }

    fn uplink(&mut self, uplink: &Spanned<String>) -> Option<Uplink> {
        let text = uplink.get_ref();
        match text.split_once(':') {
            Some(("tap", name)) if (1..16).contains(&name.len()) => Some(Uplink::Tap(name.into())),
            Some(("wire", path)) if path.starts_with('/') => Some(Uplink::Wire(path.into())),
            _ => {
                let what = format!("`{text}` is no uplink");
                self.wrong(
                    uplink,
                    what,
                    "\"tap:NAME\" (1 to 15 characters) or \"wire:/PATH\"",
                )
            }
        }
    }
}
