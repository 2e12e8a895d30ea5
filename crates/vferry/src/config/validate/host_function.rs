//! The keys of a function of the host.

use std::path::PathBuf;

use sriov::{Address, Mac, PortWish, Which, Wish};
use toml::Spanned;

use super::{Check, line};
use crate::config::LAST_VLAN;
use crate::config::file::DeviceSection;

impl Check<'_> {
    pub(super) fn host_function(&mut self, section: &Spanned<DeviceSection>) -> Option<Wish> {
        let device = section.get_ref();
        self.not_for("queues", device.queues.as_ref(), "NICs and disks");
        self.of_no_model(device);
        let which = self.which(section);
        let create = self.create(device);
        let bind = device.bind.as_ref().is_some_and(|bind| *bind.get_ref());
        if let Some(create) = &device.create
            && !bind
        {
            let what =
                "virtual functions that are made here belong to nobody who could pass one through";
            self.wrong::<(), _>(create, what, "`bind = true` as well");
        }
        let port = self.port(device);
        Some(Wish {
            which: which?,
            create,
            bind,
            port,
        })
    }

    /// Refuses what is for functions of the host; a MAC address is not for them alone.
    pub(super) fn of_no_host(&mut self, device: &DeviceSection) {
        const WHOSE: &str = "functions of the host";
        self.not_for("function", device.function.as_ref(), WHOSE);
        self.not_for("physical", device.physical.as_ref(), WHOSE);
        self.not_for("virtual", device.number.as_ref(), WHOSE);
        self.not_for("create", device.create.as_ref(), WHOSE);
        self.not_for("bind", device.bind.as_ref(), WHOSE);
        self.not_for("vlan", device.vlan.as_ref(), WHOSE);
        self.not_for("trust", device.trust.as_ref(), WHOSE);
        self.not_for("spoof-check", device.spoof_check.as_ref(), WHOSE);
    }

    /// Refuses what is for devices of software.
    pub(super) fn of_no_model(&mut self, device: &DeviceSection) {
        self.not_for("uplink", device.uplink.as_ref(), "NICs");
        self.not_for("file", device.file.as_ref(), "disks");
        self.not_for("lease", device.lease.as_ref(), "disks");
        self.not_for("serial", device.serial.as_ref(), "disks");
    }

    fn which(&mut self, section: &Spanned<DeviceSection>) -> Option<Which> {
        let device = section.get_ref();
        match (&device.function, &device.physical, &device.number) {
            (Some(function), None, None) => {
                if let Some(create) = &device.create {
                    let what = "the address of a function that may not be there yet is not known";
                    let instead =
                        "`physical = \"0000:01:00.0\"` and `virtual = 0` instead of `function`";
                    self.wrong::<(), _>(create, what, instead);
                }
                let address = self.host_address(function)?;
                self.once(function, address.as_str())?;
                Some(Which::Function(address))
            }
            (None, Some(physical), Some(number)) => {
                let address = self.host_address(physical)?;
                let name = format!("{address}, virtual function {}", number.get_ref());
                self.once(number, &name)?;
                let number = *number.get_ref();
                Some(Which::Virtual {
                    physical: address,
                    number,
                })
            }
            (Some(_), Some(other), _) => {
                let what = "`function` says which function it is already";
                self.wrong(other, what, "one of both, without the other")
            }
            (Some(_), None, Some(other)) => {
                let what = "`function` says which function it is already";
                self.wrong(other, what, "`physical` instead of `function`")
            }
            (None, Some(physical), None) => {
                let what = "which of its virtual functions it is is not said";
                self.wrong(physical, what, "`virtual = 0` as well, from 0 on")
            }
            (None, None, Some(number)) => {
                let what = "of which physical function it is a virtual one is not said";
                let instead = "`physical = \"0000:01:00.0\"` as well, as `lspci -D` has it";
                self.wrong(number, what, instead)
            }
            (None, None, None) => {
                let instead = "function = \"0000:01:10.0\", as `lspci -D` has it, or `physical` and `virtual`";
                self.wrong(section, "this device has no `function`", instead)
            }
        }
    }

    fn host_address(&mut self, text: &Spanned<String>) -> Option<Address> {
        match text.get_ref().parse() {
            Ok(address) => Some(address),
            Err(error) => {
                let error: sriov::address::NoAddress = error;
                self.wrong(text, error.to_string(), "as in \"0000:01:10.0\"")
            }
        }
    }

    /// Each function is one device's. Two names of the same are found when the host is looked at.
    fn once<V>(&mut self, at: &Spanned<V>, name: &str) -> Option<()> {
        let here = line(self.text, &at.span());
        if let Some(other) = self.files.insert(PathBuf::from(name), here) {
            let what = format!("{name} is the function of line {other} already");
            return self.wrong(at, what, "a function of its own for each device");
        }
        Some(())
    }

    fn create(&mut self, device: &DeviceSection) -> Option<u16> {
        let create = device.create.as_ref()?;
        let count = *create.get_ref();
        let least = device.number.as_ref().map_or(0, |number| *number.get_ref());
        if count <= least {
            let what = format!("of {count} virtual functions, none has number {least}");
            let instead = format!("{} or more", u32::from(least) + 1);
            return self.wrong(create, what, instead);
        }
        Some(count)
    }

    fn port(&mut self, device: &DeviceSection) -> PortWish {
        let mac = device.mac.as_ref().and_then(|mac| self.mac(mac));
        if let Some(vlan) = device
            .vlan
            .as_ref()
            .filter(|vlan| *vlan.get_ref() > LAST_VLAN)
        {
            let what = format!("there is no VLAN {}", vlan.get_ref());
            self.wrong::<(), _>(vlan, what, format!("1 to {LAST_VLAN}, or 0 for none"));
        }
        PortWish {
            mac: mac.map(Mac),
            vlan: device.vlan.as_ref().map(|vlan| *vlan.get_ref()),
            spoof_check: device.spoof_check.as_ref().map(|on| *on.get_ref()),
            trust: device.trust.as_ref().map(|on| *on.get_ref()),
        }
    }
}
