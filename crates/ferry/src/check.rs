//! What must agree on both sides before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use qemu::iommu::Found;
use qemu::machine::Machine;
use qemu::system::RunState;
use qemu::{Iommu, PciAddress, Place};
use serde::{Deserialize, Serialize};

use crate::link::printable;

mod room;

pub(crate) use room::room;

/// One side, as the other needs to know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// vferry's version.
    pub vferry: String,
    /// Name of the VM in the configuration.
    pub vm: String,
    /// QEMU's machine.
    pub machine: Machine,
    /// The VM's devices, in order.
    pub devices: Vec<DeviceFacts>,
    /// Where the sidecar sits.
    pub sidecar: PciAddress,
    /// The virtual IOMMU that the devices are behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu: Option<Iommu>,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// Name in the configuration.
    pub name: String,
    /// Kind of model.
    pub model: String,
    /// What of its settings its driver keeps in mind, so that it must not change: a disk's serial
    /// number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Where it is plugged in.
    pub place: Place,
    /// How the host treats the traffic of a function of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortFacts>,
    /// Nobody can read its state here, nor give it one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_state: bool,
}

/// Settings of the host that a device's guest depends on, by the names that configurations have for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortFacts {
    /// Each with its value now.
    pub settings: BTreeMap<String, String>,
    /// Those which this side sets as the other has them, if it is the destination.
    pub follows: BTreeSet<String>,
}

/// Why a migration was refused before anything was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// What stands against taking a VM away from here.
pub fn source(facts: &Facts, state: &RunState, iommu: &Found) -> Vec<String> {
    let mut reasons = side("the source", facts, iommu);
    match state {
        // One that sleeps writes nothing that is not logged: its vCPUs are as if they ran.
        RunState::Running | RunState::Suspended => {}
        RunState::Paused => reasons.push(
            "the VM is paused, so what its devices write is not logged: let it run (QMP `cont`), \
             then migrate"
                .into(),
        ),
        RunState::PostMigrate => {
            reasons.push("this VM has migrated away already: this QEMU can be ended".into());
        }
        other => reasons.push(format!("the VM is in state {other:?}; it must be running")),
    }
    reasons
}

/// What stands against taking a VM in.
pub fn destination(facts: &Facts, state: &RunState, iommu: &Found) -> Vec<String> {
    let mut reasons = side("the destination", facts, iommu);
    if *state != RunState::InMigrate {
        reasons.push(format!(
            "the destination's QEMU is in state {state:?} and not waiting for a VM: start it with \
             `-incoming defer`"
        ));
    }
    reasons
}

/// What differs between the two sides.
pub fn compare(source: &Facts, destination: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut same = |what: &str, here: String, there: String| {
        if here != there {
            reasons.push(format!(
                "{what} not the same: {here} at the source, {there} at the destination"
            ));
        }
    };
    let (a, b) = (&source.machine, &destination.machine);
    same(
        "the machine type is",
        a.machine_type.clone(),
        b.machine_type.clone(),
    );
    same("the vCPUs are", a.cpus.join(", "), b.cpus.join(", "));
    same("the memory is", mib(a), mib(b));
    same(
        "the accelerator is",
        accelerator(a).into(),
        accelerator(b).into(),
    );
    same("the devices are", devices(source), devices(destination));
    same(
        "the sidecar's address is",
        source.sidecar.to_string(),
        destination.sidecar.to_string(),
    );
    let iommu = |facts: &Facts| facts.iommu.map_or("none", Iommu::name).to_owned();
    same("the virtual IOMMU is", iommu(source), iommu(destination));
    reasons.extend(ports(source, destination));
    let order = |m: &Machine| (m.version.major, m.version.minor);
    if order(b) < order(a) {
        reasons.push(format!(
            "the destination's QEMU {} is older than the source's {}: QEMU migrates only forwards",
            b.version, a.version
        ));
    }
    // One of the two is in the other side's words.
    reasons.iter().map(|reason| printable(reason)).collect()
}

/// The devices whose state cannot be given to those of the destination.
pub fn states_not_taken(source: &Facts, destination: &Facts) -> Vec<String> {
    let both = source.devices.iter().zip(&destination.devices);
    let lost = both.filter(|(here, there)| !here.without_state && there.without_state);
    lost.map(|(here, _)| here.name.clone()).collect()
}

fn side(name: &str, facts: &Facts, iommu: &Found) -> Vec<String> {
    let machine = &facts.machine;
    let mut reasons = Vec::new();
    if !machine.version.is_supported() {
        let (major, minor) = qemu::machine::OLDEST_SUPPORTED;
        reasons.push(format!(
            "{name}'s QEMU {} is too old: {major}.{minor} or newer is needed",
            machine.version
        ));
    }
    if !machine.main_memory_is_shared() {
        reasons.push(format!(
            "{name}'s guest memory is not shared with vferry: start QEMU with the arguments of \
             `vferry qemu-args`"
        ));
    }
    let (has, expected) = match iommu {
        Found::Unusable(why) => {
            reasons.push(format!(
                "{name} has a virtual IOMMU that cannot be served: {why}"
            ));
            return reasons;
        }
        Found::Iommu(iommu) => (Some(*iommu), facts.iommu),
        Found::Nothing => (None, facts.iommu),
    };
    match (has, expected) {
        (Some(has), None) => reasons.push(format!(
            "{name} has a virtual IOMMU ({has}) of which the configuration knows nothing: write \
             iommu = \"{has}\" into its [qemu] section, and start the VM with the arguments of \
             `vferry qemu-args`, which put it before the devices"
        )),
        (has, Some(expected)) if has != Some(expected) => reasons.push(format!(
            "{name}'s configuration speaks of a virtual IOMMU ({expected}), and QEMU has {}: start \
             it with the arguments of `vferry qemu-args`",
            has.map_or("none", Iommu::name)
        )),
        _ => {}
    }
    reasons
}

fn mib(machine: &Machine) -> String {
    format!(
        "{} MiB",
        (machine.base_memory.saturating_add(machine.plugged_memory)) >> 20
    )
}

fn accelerator(machine: &Machine) -> &'static str {
    if machine.kvm { "KVM" } else { "emulation" }
}

fn devices(facts: &Facts) -> String {
    let one = |d: &DeviceFacts| {
        let identity = d.identity.as_ref();
        let identity = identity.map_or(String::new(), |identity| format!(" {identity}"));
        format!("{} ({}{identity} at {})", d.name, d.model, d.place)
    };
    facts.devices.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What the destination's host does otherwise for a device, and does not change by itself.
fn ports(source: &Facts, destination: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    for (here, there) in source.devices.iter().zip(&destination.devices) {
        let name = &here.name;
        let (ours, theirs) = match (&here.port, &there.port) {
            (None, None) => continue,
            (Some(ours), Some(theirs)) => (ours, theirs),
            (ours, _) => {
                let (with, without) = if ours.is_some() {
                    ("source", "destination")
                } else {
                    ("destination", "source")
                };
                reasons.push(format!(
                    "how its host treats the traffic of device `{name}` is known at the {with} only: at the \
                     {without} it is no virtual function of a network card, or that card's interface is \
                     not in vferry's network namespace"
                ));
                continue;
            }
        };
        for (setting, value) in &ours.settings {
            let other = theirs
                .settings
                .get(setting)
                .map_or("not known", String::as_str);
            if other != value && !theirs.follows.contains(setting) {
                reasons.push(format!(
                    "`{setting}` of device `{name}` is {value} at the source and {other} at the destination: set it \
                     in the device's section of the destination's configuration, so that it is what the \
                     guest has now"
                ));
            }
        }
    }
    reasons
}

#[cfg(test)]
pub(crate) mod tests;
