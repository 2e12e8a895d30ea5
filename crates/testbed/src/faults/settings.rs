//! What is set otherwise in the guest while it migrates to and fro: its NIC's settings, by the kernel's own
//! means.

use std::fmt;

use anyhow::{Context, Result};

use crate::Testbed;
use crate::dice::Dice;

/// VLANs and groups that a guest has at most, of each.
const MANY: usize = 4;
/// What the kernel can leave to the NIC, or do itself.
const FEATURES: [&str; 4] = [
    "rx-checksum",
    "tx-checksum-ip-generic",
    "tx-scatter-gather",
    "tx-tcp-segmentation",
];
/// How often a setting changes to and fro, with a pause after each, while the guest migrates: some 5 s.
const TIMES: u32 = 25;
const PAUSE_US: u32 = 100_000;

/// What the guest's NIC is set to.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    promiscuous: bool,
    all_groups: bool,
    vlans: [bool; MANY],
    groups: [bool; MANY],
    /// Features that are switched off.
    without: [bool; FEATURES.len()],
}

/// One that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The longest packet. Not below what the peer was told when it connected: it sends such.
    Mtu(u32),
    /// The interface goes down, and up again: the driver frees its rings and interrupts, and asks for
    /// others.
    DownAndUp,
    Promiscuous(bool),
    AllGroups(bool),
    Vlan(u64, bool),
    /// A group of receivers that the guest joins, as it has an address of IPv6.
    Group(u64, bool),
    /// The processors that take its interrupts: what the table of MSI-X says.
    Processors(u32),
    /// How long the kernel waits for more before it takes what the NIC has, in nanoseconds.
    Batch(u32),
    /// Descriptors in each ring, of what comes and of what is sent: the driver makes others.
    Rings(u32, u32),
    /// Microseconds between two interrupts at least.
    Moderation(u32),
    Feature(&'static str, bool),
}

/// A setting that changes to and fro while the guest migrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restless([Change; 2]);

impl Settings {
    /// Another one.
    pub(super) fn random(&mut self, dice: &mut Dice) -> Change {
        let number = dice.throw(MANY as u64);
        let mine = usize::try_from(number).unwrap_or_default();
        match dice.throw(11) {
            0 => Change::Mtu(*dice.one_of(&[1500, 1501, 2000, 4000, 9000])),
            1 => Change::DownAndUp,
            2 => Change::Promiscuous(toggled(&mut self.promiscuous)),
            3 => Change::AllGroups(toggled(&mut self.all_groups)),
            4 => Change::Vlan(number, toggled(&mut self.vlans[mine])),
            5 => Change::Group(number, toggled(&mut self.groups[mine])),
            6 => Change::Processors(*dice.one_of(&[1, 2, 3])),
            7 => Change::Batch(*dice.one_of(&[0, 20_000, 200_000])),
            8 => Change::Rings(
                *dice.one_of(&[64, 256, 512, 2048]),
                *dice.one_of(&[64, 512, 1024]),
            ),
            9 => Change::Moderation(*dice.one_of(&[0, 1, 20, 500])),
            _ => Change::Feature(FEATURES[mine], !toggled(&mut self.without[mine])),
        }
    }
}

fn toggled(setting: &mut bool) -> bool {
    *setting = !*setting;
    *setting
}

/// Each of these commands reads the interface's flags and writes them all: one that has read them while another had the
/// interface down would leave it down.
fn alone(command: &str) -> String {
    let taken = "/tmp/flags";
    format!(
        "until mkdir {taken} 2> /dev/null; do usleep 1000; done; \
         {command}; status=$?; rmdir {taken}; (exit $status)"
    )
}

impl Change {
    /// For the guest's shell.
    fn command(self) -> String {
        let sign = |on| if on { "" } else { "-" };
        match self {
            Self::Mtu(bytes) => format!("ip link set eth0 mtu {bytes}"),
            Self::DownAndUp => alone("ip link set eth0 down && ip link set eth0 up"),
            Self::Promiscuous(on) => alone(&format!("ifconfig eth0 {}promisc", sign(on))),
            Self::AllGroups(on) => alone(&format!("ifconfig eth0 {}allmulti", sign(on))),
            Self::Vlan(number, true) => {
                let id = 10 + number;
                format!("vconfig add eth0 {id} > /dev/null && ip link set eth0.{id} up")
            }
            Self::Vlan(number, false) => format!("vconfig rem eth0.{} > /dev/null", 10 + number),
            // Gone already where the interface was down.
            Self::Group(number, on) => {
                let (what, or) = if on {
                    ("add", "false")
                } else {
                    ("del", "true")
                };
                format!("ip addr {what} fd00::12ab:cd{number:02}/64 dev eth0 2> /dev/null || {or}")
            }
            Self::Processors(mask) => format!(
                "for irq in $(grep eth0 /proc/interrupts | cut -d: -f1); do \
                 echo {mask} > /proc/irq/$irq/smp_affinity; done"
            ),
            Self::Rings(rx, tx) => format!("lab-guest nic eth0 --rx-ring {rx} --tx-ring {tx}"),
            Self::Moderation(usecs) => format!("lab-guest nic eth0 --rx-usecs {usecs}"),
            Self::Feature(name, true) => format!("lab-guest nic eth0 --on {name}"),
            Self::Feature(name, false) => format!("lab-guest nic eth0 --off {name}"),
            Self::Batch(nanos) => format!("echo {nanos} > /sys/class/net/eth0/gro_flush_timeout"),
        }
    }

    /// Changes it, and waits until all traffic flows again.
    pub(super) fn make(self, testbed: &Testbed) -> Result<()> {
        testbed
            .shell(&self.command())
            .and_then(|_| testbed.wait_for_late_traffic())
            .with_context(|| format!("the guest's setting: {self}"))
    }
}

impl Restless {
    pub(super) fn random(dice: &mut Dice) -> Self {
        let number = MANY as u64;
        Self(match dice.throw(6) {
            0 => [Change::Promiscuous(true), Change::Promiscuous(false)],
            1 => [Change::Vlan(number, true), Change::Vlan(number, false)],
            2 => [Change::Group(number, true), Change::Group(number, false)],
            3 => [Change::Processors(2), Change::Processors(1)],
            4 => [Change::Rings(128, 128), Change::Rings(512, 1024)],
            _ => [Change::Mtu(3000), Change::Mtu(1500)],
        })
    }

    /// Begins in the guest, and ends by itself.
    pub(super) fn begin(self, testbed: &Testbed) -> Result<()> {
        let [to, fro] = self.0.map(Change::command);
        let pause = format!("usleep {PAUSE_US}");
        let script = format!(
            "(for i in $(seq {TIMES}); do {to}; {pause}; {fro}; {pause}; done) > /dev/null 2>&1 &"
        );
        testbed.shell(&script).map(drop)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = |on: &bool| if *on { "" } else { " off" };
        match self {
            Self::Mtu(bytes) => write!(f, "mtu {bytes}"),
            Self::DownAndUp => write!(f, "down and up"),
            Self::Promiscuous(on) => write!(f, "promiscuous{}", off(on)),
            Self::AllGroups(on) => write!(f, "all groups{}", off(on)),
            Self::Vlan(number, on) => write!(f, "vlan {}{}", 10 + number, off(on)),
            Self::Group(number, on) => write!(f, "group {number}{}", off(on)),
            Self::Processors(mask) => write!(f, "processors {mask}"),
            Self::Batch(nanos) => write!(f, "batch {nanos} ns"),
            Self::Rings(rx, tx) => write!(f, "rings {rx} {tx}"),
            Self::Moderation(usecs) => write!(f, "interrupts {usecs} us"),
            Self::Feature(name, on) => write!(f, "{name}{}", off(on)),
        }
    }
}

impl fmt::Display for Restless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} all the time", self.0[0], self.0[1])
    }
}
