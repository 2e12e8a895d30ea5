//! The device models there are: one line each. And the control device, which is none of them: it
//! speaks for all others.

mod disk;

use std::path::Path;

use anyhow::bail;
use control_device::{Control, ControlDevice};
use device::Model;
use pci::ConfigSpace;
use uplink::{Attentive, Tap, Wire};

use crate::config::{Device, Settings, Uplink};
use crate::daemon::Survival;

/// What a device is to the guest, and so which settings it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A network card.
    Nic,
    /// A disk.
    Disk,
    /// A function of the host, whatever it does.
    Host,
    /// A device for tests, which has no settings.
    Test,
}

type Build = fn(&Device, Option<&Survival>) -> anyhow::Result<(ConfigSpace, Box<dyn Model>)>;

const MODELS: &[(&str, Kind, Build)] = &[
    ("ixgbevf", Kind::Nic, ixgbevf),
    ("nvme", Kind::Disk, nvme),
    ("passthrough", Kind::Host, passthrough),
    ("stream", Kind::Test, stream),
];

/// The names of all models.
pub fn names() -> Vec<&'static str> {
    MODELS.iter().map(|(name, ..)| *name).collect()
}

/// What the model of this name is, if there is one.
pub fn kind(model: &str) -> Option<Kind> {
    let found = MODELS.iter().find(|(name, ..)| *name == model);
    found.map(|(_, kind, _)| *kind)
}

/// Whether another process can go on with a device of this model where one has died.
pub fn can_be_kept(model: &str) -> bool {
    ["ixgbevf", "nvme"].contains(&model)
}

/// Makes the function that `device` describes. What of it a successor goes on with is held by `survival`, or
/// was left there.
///
/// # Errors
/// When there is no such model, or its uplink or file cannot be opened.
pub(crate) fn build(
    device: &Device,
    survival: Option<&Survival>,
) -> anyhow::Result<(ConfigSpace, Box<dyn Model>)> {
    let build = MODELS
        .iter()
        .find(|(name, ..)| *name == device.model)
        .map(|(.., build)| build);
    build.ok_or_else(|| anyhow::anyhow!("there is no device model `{}`", device.model))?(
        device, survival,
    )
}

/// Makes the control device that speaks for functions with these configuration spaces.
///
/// # Errors
/// When there are too many, or the system has no descriptor left.
pub fn control(
    functions: &[&ConfigSpace],
) -> anyhow::Result<(ConfigSpace, ControlDevice, Control)> {
    let ids: Vec<_> = functions.iter().map(|function| function.ids()).collect();
    let (model, host) = control_device::new(&ids)?;
    Ok((
        ConfigSpace::of(&control_device::spec::pci::LAYOUT),
        model,
        host,
    ))
}

fn ixgbevf(
    device: &Device,
    survival: Option<&Survival>,
) -> anyhow::Result<(ConfigSpace, Box<dyn Model>)> {
    let Settings::Nic(nic) = &device.settings else {
        bail!("`{}` has no settings of a NIC", device.name)
    };
    let settings = ixgbevf::VfConfig {
        mac: nic.mac,
        queue_pairs: nic.queues,
    };
    let space = ConfigSpace::of(&ixgbevf::spec::pci::LAYOUT);
    let model = ixgbevf::Vf::new(settings, link(&device.name, &nic.uplink, survival)?)?;
    Ok((space, Box::new(model)))
}

fn nvme(
    device: &Device,
    survival: Option<&Survival>,
) -> anyhow::Result<(ConfigSpace, Box<dyn Model>)> {
    let Settings::Disk(disk) = &device.settings else {
        bail!("`{}` has no settings of a disk", device.name)
    };
    let backing = disk::open(&device.name, disk, survival)?;
    if !backing.can_be_handed_over() {
        tracing::warn!(
            device = device.name,
            "a block device without `lease` is served, but its VM cannot be migrated"
        );
    }
    let settings = nvme::ControllerConfig {
        serial: disk.serial.clone(),
        queues: disk.queues,
        namespaces: vec![nvme::NamespaceConfig {
            backing: Box::new(backing),
            block_size: 512,
        }],
    };
    let space = ConfigSpace::of(&nvme::spec::pci::LAYOUT);
    Ok((space, Box::new(nvme::Controller::new(settings)?)))
}

fn passthrough(
    device: &Device,
    _: Option<&Survival>,
) -> anyhow::Result<(ConfigSpace, Box<dyn Model>)> {
    let Settings::Host(wish) = &device.settings else {
        bail!("`{}` names no function of the host", device.name)
    };
    let address = crate::host::host().address(&wish.which)?;
    let function = match passthrough::Function::find(address.as_str()) {
        Err(error) if error.is_of_binding() && !wish.bind => bail!(
            "{error}. Or write `bind = true` in its section: vferry does that then, for as long as it \
             serves the VM"
        ),
        found => found?,
    };
    let (space, model) = passthrough::Passthrough::open(&function)?;
    Ok((space, Box::new(model)))
}

fn stream(device: &Device, _: Option<&Survival>) -> anyhow::Result<(ConfigSpace, Box<dyn Model>)> {
    let Settings::None = device.settings else {
        bail!("`{}` has settings, and its model takes none", device.name)
    };
    let space = ConfigSpace::of(&stream_device::spec::pci::LAYOUT);
    Ok((space, Box::new(stream_device::StreamDevice::new())))
}

fn link(
    device: &str,
    uplink: &Uplink,
    survival: Option<&Survival>,
) -> anyhow::Result<Box<dyn device::FrameLink>> {
    Ok(match uplink {
        Uplink::Tap(name) => Box::new(Attentive::new(tap(device, name, survival)?)),
        Uplink::Wire(path) => Box::new(Attentive::new(wire(path, survival)?)),
    })
}

/// Of a wire it is not known how far a frame came on it, so a successor plugs in another. If it cannot, the guest
/// goes on with its link down, as where the other end has ended.
fn wire(path: &Path, survival: Option<&Survival>) -> anyhow::Result<Wire> {
    let is_successor = survival.is_some_and(|kept| !kept.is_first());
    match Wire::connect(path) {
        Err(error) if is_successor => {
            tracing::error!(%error, "the guest's link is down");
            Ok(Wire::unplugged())
        }
        wire => Ok(wire?),
    }
}

/// An interface that nobody holds is gone, or at least unplugged for a moment.
fn tap(device: &str, name: &str, survival: Option<&Survival>) -> anyhow::Result<Tap> {
    let Some(survival) = survival else {
        return Ok(Tap::open(name)?);
    };
    let held = format!("{}/tap", endpoint::kept::prefix(device));
    if let Some(left) = survival.held().remove(&held) {
        return Ok(Tap::from_left(left, name));
    }
    let tap = Tap::open(name)?;
    survival.worker().hold(&held, &tap)?;
    Ok(tap)
}
