//! A host with one card: a tree of files as sysfs has it, and a kernel that does what is written there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::port::Ports;
use crate::sysfs::{Kernel, Pci};
use crate::{Address, Host, Ledger, Mac, Port, Setting, Vlan};

pub(crate) const PHYSICAL: &str = "0000:01:00.0";
const INDEX: u32 = 3;
/// The driver that takes virtual functions by itself.
pub(crate) const OF_HOST: &str = "igbvf";
pub(crate) const VFIO: &str = "vfio-pci";
const NO_OVERRIDE: &str = "(null)\n";

#[derive(Debug)]
pub(crate) struct Card {
    folder: tempfile::TempDir,
    ports: Arc<Mutex<BTreeMap<u16, Port>>>,
    /// Writes that are refused: a part of the path.
    pub(crate) refused: Arc<Mutex<Option<&'static str>>>,
    /// Everything that was written or set, in order.
    pub(crate) log: Arc<Mutex<Vec<String>>>,
}

pub(crate) fn address(text: &str) -> Address {
    text.parse().unwrap()
}

pub(crate) fn function(number: u16) -> Address {
    address(&format!("0000:01:10.{number}"))
}

impl Card {
    /// With as many virtual functions as there can be, 7, and none yet.
    pub(crate) fn new() -> Self {
        let card = Self {
            folder: tempfile::tempdir().unwrap(),
            ports: Arc::default(),
            refused: Arc::default(),
            log: Arc::default(),
        };
        let physical = card.function(PHYSICAL);
        let interface = physical.join("net/eth0");
        fs::create_dir_all(&interface).unwrap();
        for driver in [OF_HOST, VFIO, "igb"] {
            let folder = card.sys().join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("bind"), "").unwrap();
        }
        fs::write(card.sys().join("bus/pci/drivers_probe"), "").unwrap();
        for (file, text) in [
            ("sriov_numvfs", "0\n"),
            ("sriov_totalvfs", "7\n"),
            ("net/eth0/ifindex", "3\n"),
            ("net/eth0/flags", "0x1003\n"),
            ("net/eth0/operstate", "up\n"),
        ] {
            fs::write(physical.join(file), text).unwrap();
        }
        card
    }

    pub(crate) fn host(&self) -> Host {
        let fake = || Fake {
            sys: self.sys(),
            ports: Arc::clone(&self.ports),
            refused: Arc::clone(&self.refused),
            log: Arc::clone(&self.log),
        };
        let pci = Pci::new(self.sys(), Box::new(fake()));
        let shared = self.folder.path().join("shared");
        Host::with(pci, Box::new(fake()), VFIO, shared)
    }

    /// Of the VM with this name.
    pub(crate) fn ledger(&self, vm: &str) -> Ledger {
        Ledger::begin(&self.record(vm)).unwrap()
    }

    pub(crate) fn record(&self, vm: &str) -> PathBuf {
        self.folder.path().join(vm)
    }

    /// Somebody writes a file.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let kernel = Fake {
            sys: self.sys(),
            ports: Arc::clone(&self.ports),
            refused: Arc::default(),
            log: Arc::default(),
        };
        let path = self.sys().join("bus/pci/devices").join(file);
        kernel.write(&path, text).unwrap();
    }

    pub(crate) fn set(&self, number: u16, setting: Setting) {
        change(&self.ports, number, setting).unwrap();
    }

    pub(crate) fn forget_spoof_check(&self, number: u16) {
        if let Some(port) = self.ports.lock().unwrap().get_mut(&number) {
            port.spoof_check = None;
        }
    }

    /// All that there is to see of the host.
    pub(crate) fn state(&self) -> Vec<String> {
        let physical = self.function(PHYSICAL);
        let count = fs::read_to_string(physical.join("sriov_numvfs")).unwrap();
        let mut state = vec![format!("count {}", count.trim())];
        for (number, port) in &*self.ports.lock().unwrap() {
            let folder = self.function(function(*number).as_str());
            let wanted = fs::read_to_string(folder.join("driver_override")).unwrap();
            let driver = fs::read_link(folder.join("driver")).ok();
            state.push(format!("{number} {driver:?} {} {port:?}", wanted.trim()));
        }
        state
    }

    fn sys(&self) -> PathBuf {
        self.folder.path().join("sys")
    }

    fn function(&self, address: &str) -> PathBuf {
        self.sys().join("bus/pci/devices").join(address)
    }
}

#[derive(Debug)]
struct Fake {
    sys: PathBuf,
    ports: Arc<Mutex<BTreeMap<u16, Port>>>,
    refused: Arc<Mutex<Option<&'static str>>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn function(&self, address: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address)
    }

    /// `pci_match_device`: the override decides, else the driver that is for such functions.
    fn probe(&self, address: &str, driver: Option<&str>) -> io::Result<()> {
        let folder = self.function(address);
        let wanted = fs::read_to_string(folder.join("driver_override"))?;
        let wanted = if wanted == NO_OVERRIDE {
            OF_HOST
        } else {
            wanted.trim()
        };
        if folder.join("driver").exists() || driver.is_some_and(|driver| driver != wanted) {
            return Err(io::Error::from_raw_os_error(19));
        }
        symlink(
            self.sys.join("bus/pci/drivers").join(wanted),
            folder.join("driver"),
        )
    }

    /// `sriov_numvfs_store`
    fn set_count(&self, count: u16) -> io::Result<()> {
        let physical = self.function(PHYSICAL);
        let path = physical.join("sriov_numvfs");
        let now: u16 = fs::read_to_string(&path)?.trim().parse().unwrap();
        if count != 0 && now != 0 {
            return Err(io::Error::from_raw_os_error(16));
        }
        let mut ports = self.ports.lock().unwrap();
        ports.clear();
        for number in 0..now {
            fs::remove_file(physical.join(format!("virtfn{number}")))?;
            fs::remove_dir_all(self.function(function(number).as_str()))?;
        }
        fs::write(path, format!("{count}\n"))?;
        for number in 0..count {
            let folder = self.function(function(number).as_str());
            fs::create_dir_all(&folder)?;
            symlink(&physical, folder.join("physfn"))?;
            symlink(&folder, physical.join(format!("virtfn{number}")))?;
            fs::write(folder.join("driver_override"), NO_OVERRIDE)?;
            self.probe(function(number).as_str(), None)?;
            ports.insert(
                number,
                Port {
                    mac: Mac([0; 6]),
                    vlan: Vlan::new(0),
                    spoof_check: Some(true),
                    trust: Some(false),
                },
            );
        }
        Ok(())
    }
}

impl Kernel for Fake {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let file = path.strip_prefix(&self.sys).unwrap().to_str().unwrap();
        let logged = format!("{file} {}", text.trim());
        if let Some(refused) = *self.refused.lock().unwrap()
            && logged.contains(refused)
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.log.lock().unwrap().push(logged);
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "sriov_numvfs" => self.set_count(text.trim().parse().unwrap()),
            "driver_override" if text == "\n" => fs::write(path, NO_OVERRIDE),
            "unbind" => fs::remove_file(path.parent().unwrap()),
            "drivers_probe" => self.probe(text, None),
            "bind" => self.probe(text, path.parent().unwrap().file_name().unwrap().to_str()),
            _ => fs::write(path, text),
        }
    }
}

impl Ports for Fake {
    fn read(&self, interface: u32, number: u16) -> io::Result<Port> {
        assert_eq!(interface, INDEX);
        let ports = self.ports.lock().unwrap();
        ports
            .get(&number)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set(&self, interface: u32, number: u16, setting: Setting) -> io::Result<()> {
        assert_eq!(interface, INDEX);
        self.log.lock().unwrap().push(format!("{number} {setting}"));
        change(&self.ports, number, setting)
    }
}

fn change(ports: &Mutex<BTreeMap<u16, Port>>, number: u16, setting: Setting) -> io::Result<()> {
    let mut ports = ports.lock().unwrap();
    let port = ports.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
    match setting {
        Setting::Mac(mac) => port.mac = mac,
        Setting::Vlan(vlan) => port.vlan = vlan,
        // As with a driver that does not know it.
        Setting::SpoofCheck(_) if port.spoof_check.is_none() => {}
        Setting::SpoofCheck(on) => port.spoof_check = Some(on),
        Setting::Trust(on) => port.trust = Some(on),
    }
    Ok(())
}
