//! `vferry qemu-args`.

use std::time::Duration;

use anyhow::Context;
use qemu::Place;
use qemu::args::{Plug, QemuArgs, RootPort, VfioUser, VhostUserFs};

use crate::config::{Config, Device, Guest, Settings};

/// For a function of the host, and a second for each GiB of memory more.
const PINNED: Duration = Duration::from_mins(1);

/// Prints the arguments for `config`.
pub(super) fn print(config: &Config, incoming: bool, json: bool) -> anyhow::Result<()> {
    let args = qemu_args(config, incoming)?;
    if json {
        println!("{}", serde_json::to_string(&args.into_vec())?);
    } else {
        println!("{}", args.shell_line());
    }
    Ok(())
}

/// A virtual IOMMU comes first: what comes before it is not behind it. The sidecar comes last: QEMU
/// loads device state in the order of its devices, and all that the sidecar's LOAD may look at is
/// loaded then.
fn qemu_args(config: &Config, incoming: bool) -> anyhow::Result<QemuArgs> {
    let mut args = QemuArgs::new()
        .machine(&config.machine, config.memory)?
        .qmp(&config.qmp)?;
    if let Some(iommu) = config.iommu {
        let slot = config.free_slot();
        let slot = slot.context("no slot of the main bus is left for the virtual IOMMU")?;
        args = args.iommu(iommu, slot);
    }
    let devices = config.devices.iter();
    let devices = devices.map(|d| (d.name.as_str(), &d.socket, d.place, patience(config, d)));
    let guest = config.guest.iter();
    let guest = guest.map(|guest| {
        let place = Place::MainBus(guest.address);
        (Guest::NAME, &guest.socket, place, None)
    });
    for (name, socket, place, message_timeout) in devices.chain(guest) {
        let plug = match place {
            Place::MainBus(address) => Plug {
                bus: None,
                address: Some(address),
            },
            Place::RootPort(address) => {
                let id = Config::root_port_id(name);
                let bus = Some(id.clone());
                args = args.root_port(&RootPort { id, address })?;
                Plug { bus, address: None }
            }
        };
        args = args.vfio_user(&VfioUser {
            id: name.into(),
            socket: socket.clone(),
            plug,
            message_timeout,
        })?;
    }
    if !config.root_ports().is_empty() {
        args = args.acpi_table(&config.acpi_table())?;
    }
    args = args.vhost_user_fs(&VhostUserFs {
        id: "vferry".into(),
        socket: config.sidecar.clone(),
        tag: "vferry".into(),
        plug: Plug {
            bus: None,
            address: Some(config.sidecar_address),
        },
    })?;
    Ok(if incoming {
        args.args(["-incoming", "defer"])
    } else {
        args
    })
}

/// How long QEMU is to wait for vferry's answers, if it is longer than usual: that guest memory is there for a
/// function of the host takes the kernel as long as it takes to make and lock each of its pages.
fn patience(config: &Config, device: &Device) -> Option<Duration> {
    let gib = config.memory.size >> 30;
    matches!(device.settings, Settings::Host(_)).then(|| PINNED + Duration::from_secs(gib))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CONFIG: &str = r#"
[vm]
name = "a"
memory = "4G"
[qemu]
qmp = "/run/qmp.sock"
[control]
socket = "/run/control.sock"
[sidecar]
socket = "/run/sidecar.sock"
address = "00:06.1"
[migration]
link = "unix:/run/link.sock"
incoming = "unix:/run/incoming.sock"
[[device]]
name = "real0"
model = "passthrough"
socket = "/run/real0.sock"
address = "00:05.0"
function = "0000:01:10.0"
[[device]]
name = "net0"
model = "ixgbevf"
socket = "/run/net0.sock"
address = "00:07.0"
mac = "02:00:00:00:00:01"
uplink = "tap:a"
"#;

    #[test]
    fn memory_is_of_the_pages_that_the_configuration_names() {
        let memory_of = |text: &str| {
            let config = Config::parse(Path::new("a.toml"), text).unwrap();
            let args = qemu_args(&config, false).unwrap().into_vec();
            let object = args
                .into_iter()
                .find(|arg| arg.contains("memory-backend-memfd"));
            serde_json::from_str::<serde_json::Value>(&object.unwrap()).unwrap()
        };
        let memory = "memory = \"4G\"";
        let huge = memory_of(&CONFIG.replace(memory, &format!("{memory}\nhugepages = \"2M\"")));
        assert_eq!(
            (&huge["hugetlb"], &huge["hugetlbsize"]),
            (&true.into(), &(2 << 20).into())
        );
        assert!(memory_of(CONFIG).get("hugetlb").is_none());
    }

    #[test]
    fn qemu_waits_longer_for_what_locks_memory() {
        let config = Config::parse(Path::new("a.toml"), CONFIG).unwrap();
        let args = qemu_args(&config, false).unwrap().into_vec();
        let of = |name: &str| {
            let mut args = args.iter();
            let device = args.find(|arg| arg.contains(&format!("\"id\":\"{name}\"")));
            device.unwrap().clone()
        };
        assert!(of("real0").contains("\"x-msg-timeout\":64000"), "{args:?}");
        assert!(!of("net0").contains("x-msg-timeout"), "{args:?}");
    }
}
