//! Several migrations in one report: what the demo prints and its exit status stands for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ferry::report::DeviceReport;
use ferry::{Phase, Strategy};
use load_format::{DiskReport, GuestReport};
use serde::Serialize;
use uplink::peer::{Loss, PeerReport};
use vferry::rehearsal::{Answer, DeviceRehearsal, Rehearsal};

use crate::migration::Interrupts;
use crate::split::{RecoverySplit, Split};
use crate::{Migration, Testbed};

/// How long a packet may be on its way before the silence begins or after it ends: between the
/// sender's clock and the receiver's lie queues of an emulated machine.
const SLACK: Duration = Duration::from_millis(50);
/// The same where the guest's driver stops its device: what waits in its rings then is lost, and a
/// guest that shares its processor with others has left it there for longer.
const RINGS: Duration = Duration::from_millis(250);

/// The demo's report.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The strategy that was asked for or chosen.
    pub strategy: Strategy,
    /// Devices, in all migrations, that went over by another one, and why.
    pub fallbacks: Vec<String>,
    /// There and back, so many times; 0 if there was one migration only.
    pub round_trips: usize,
    /// Migrations.
    pub migrations: usize,
    /// The guest answers, and its programs run.
    pub guest_alive: bool,
    /// Pages that differed, in all migrations; `null` if not verified.
    pub stale_pages: Option<usize>,
    /// The guest's NIC, if it has one.
    #[serde(flatten)]
    pub network: Option<NetworkSummary>,
    /// The guest's disk, if it has one.
    pub disk: Option<DiskSummary>,
    /// Pages marked as written by devices, in all migrations.
    pub pages_marked: u64,
    /// The same, by who found them: while the VM ran, and after the halt.
    pub pages_marked_by: BTreeMap<String, [u64; 2]>,
    /// Pages that differed at the end and were sent, in all migrations; `null` if none compared.
    pub pages_compared: Option<usize>,
    /// Pages that the streaming test device wrote and its driver found wrong; `null` without one
    /// that has its driver.
    pub stream_wrong_pages: Option<u64>,
    /// Words of the guest's own memory that its dirtier found wrong.
    pub dirtier_wrong_words: u64,
    /// Milliseconds in each phase.
    pub phases_ms: BTreeMap<Phase, Spread>,
    /// The VM's pause as QEMU reports it.
    pub vm_pause_ms: Spread,
    /// Where the outage went, if the guest stopped and started its devices.
    pub split: Option<Split>,
    /// The same of each device that the guest's error recovery started.
    pub recovery: BTreeMap<String, RecoverySplit>,
    /// The NIC's interrupts.
    pub interrupts: Interrupts,
}

/// What the load on the guest's NIC saw.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkSummary {
    /// Every byte of TCP was right, both ways, on one connection.
    pub tcp_content_ok: bool,
    /// TCP bytes checked, to and from the guest.
    pub tcp_bytes: [u64; 2],
    /// Lost numbered UDP that was not sent within an outage.
    pub udp_lost_outside_outage: u64,
    /// Numbered UDP to the guest.
    pub udp_to_guest: Udp,
    /// Numbered UDP from the guest.
    pub udp_from_guest: Udp,
    /// ICMP echo.
    pub icmp: Udp,
    /// The longest silence around each migration, either way, as the peer saw it.
    pub device_outage_ms: Spread,
    /// The same by direction.
    pub silence_to_guest_ms: Spread,
    /// The same by direction.
    pub silence_from_guest_ms: Spread,
}

/// What the load on the guest's disk saw.
#[derive(Debug, Clone, Serialize)]
pub struct DiskSummary {
    /// In all migrations, and around them.
    pub load: DiskReport,
    /// The longest time in which no operation was completed, around each migration: at most so long
    /// as the guest saw it by its own clock, which stands still while the VM is paused, and that pause.
    pub outage_ms: Spread,
}

/// What stopping and starting the slowest device took without a migration, by the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rehearsed {
    /// Milliseconds to stop it.
    pub stop_ms: f64,
    /// Milliseconds to start it.
    pub start_ms: f64,
}

impl Rehearsed {
    /// Of `rehearsal`; `None` if a device was not stopped and started.
    pub fn of(rehearsal: &Rehearsal) -> Option<Self> {
        let slowest = |answer: fn(&DeviceRehearsal) -> &Answer| {
            let times = rehearsal.devices.iter().map(|device| match answer(device) {
                Answer::Done(ms) => Some(*ms),
                Answer::No(_) => None,
            });
            times
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .max_by(f64::total_cmp)
        };
        Some(Self {
            stop_ms: slowest(|device| &device.stop)?,
            start_ms: slowest(|device| &device.start)?,
        })
    }
}

/// Numbered packets one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Udp {
    /// Sent.
    pub sent: u64,
    /// Did not come.
    pub lost: u64,
    /// Came again.
    pub duplicated: u64,
    /// Came after a later one.
    pub reordered: u64,
    /// Came damaged.
    pub damaged: u64,
}

/// A figure of several migrations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; zero if there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => 0.0,
            len if len % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Self {
            median,
            max: values.last().copied().unwrap_or(0.0),
        }
    }
}

impl Summary {
    /// What is wrong; nothing if the migrations kept their promise.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |wrong: bool, what: String| {
            if wrong {
                faults.push(what);
            }
        };
        fault(!self.guest_alive, "the guest is not well".into());
        let stale = self.stale_pages.unwrap_or(0);
        fault(
            stale > 0,
            format!("{stale} pages of guest memory arrived stale"),
        );
        if let Some(network) = &self.network {
            fault(
                !network.tcp_content_ok,
                "TCP content was wrong, or its connection broke".into(),
            );
            let outside = network.udp_lost_outside_outage;
            fault(
                outside > 0,
                format!("{outside} UDP packets were lost outside of the outages"),
            );
            let damaged = network.udp_to_guest.damaged + network.udp_from_guest.damaged;
            fault(damaged > 0, format!("{damaged} UDP packets were damaged"));
        }
        if let Some(disk) = &self.disk {
            for what in disk_faults(&disk.load) {
                fault(true, what);
            }
        }
        let words = self.dirtier_wrong_words;
        fault(
            words > 0,
            format!("{words} words of the guest's memory were wrong"),
        );
        let pages = self.stream_wrong_pages.unwrap_or(0);
        fault(
            pages > 0,
            format!("{pages} pages of the streaming test device were wrong"),
        );
        fault(
            self.interrupts.lost > 0,
            format!("{} interrupts were lost", self.interrupts.lost),
        );
        faults
    }
}

/// What is wrong with what the load on a disk saw.
pub(crate) fn disk_faults(load: &DiskReport) -> Vec<String> {
    let DiskReport {
        wrong_blocks,
        first_wrong,
        io_errors,
        first_io_errors,
        checked_blocks,
        ..
    } = load;
    let mut faults = Vec::new();
    if *wrong_blocks > 0 {
        faults.push(format!(
            "{wrong_blocks} blocks of the disk were wrong, first {first_wrong:?}"
        ));
    }
    if *io_errors > 0 {
        faults.push(format!(
            "{io_errors} operations of the disk failed: {first_io_errors:?}"
        ));
    }
    if *checked_blocks == 0 {
        faults.push("no block of the disk was checked".into());
    }
    faults
}

/// Puts together what was seen.
///
/// # Errors
/// When the guest does not answer.
pub fn summarise(testbed: &Testbed, migrations: &[Migration]) -> Result<Summary> {
    let guest = testbed.final_report()?;
    let spread = |value: &dyn Fn(&Migration) -> Option<f64>| {
        Spread::of(migrations.iter().filter_map(value).collect())
    };
    let verified = migrations
        .iter()
        .map(|m| m.report.stale_pages)
        .collect::<Option<Vec<_>>>();
    let wrong_words = guest.dirty.as_ref().map_or(0, |dirty| dirty.wrong_words);
    Ok(Summary {
        strategy: migrations
            .first()
            .map_or_else(Strategy::default, |m| m.report.strategy),
        fallbacks: migrations.iter().flat_map(fallbacks).collect(),
        round_trips: migrations.len() / 2,
        migrations: migrations.len(),
        guest_alive: is_alive(testbed, &guest),
        stale_pages: verified.map(|stale| stale.iter().sum()),
        network: guest
            .udp
            .is_some()
            .then(|| network(testbed, &guest, migrations)),
        disk: guest.disk.clone().map(|load| disk(load, migrations)),
        pages_marked: migrations.iter().map(marked).sum(),
        pages_marked_by: marked_by(migrations),
        pages_compared: migrations
            .iter()
            .filter_map(|m| m.report.compared.map(|compared| compared.pages))
            .reduce(|sum, pages| sum + pages),
        stream_wrong_pages: testbed.stream_count("wrong")?,
        dirtier_wrong_words: wrong_words,
        phases_ms: phases(migrations),
        vm_pause_ms: spread(&|m| Some(m.report.vm_pause_ms)),
        split: Split::of(migrations),
        recovery: RecoverySplit::of(migrations),
        interrupts: migrations
            .iter()
            .fold(Interrupts::default(), |sum, m| Interrupts {
                raised: sum.raised + m.interrupts.raised,
                spurious: sum.spurious + m.interrupts.spurious,
                lost: sum.lost + m.interrupts.lost,
            }),
    })
}

fn network(testbed: &Testbed, guest: &GuestReport, migrations: &[Migration]) -> NetworkSummary {
    let peer = testbed.peer.report();
    let outages: Vec<_> = migrations
        .iter()
        .flat_map(Migration::outages)
        .copied()
        .collect();
    let runs = guest
        .udp
        .as_ref()
        .map(|udp| udp.lost_runs.clone())
        .unwrap_or_default();
    let unknown = guest.udp.as_ref().map_or(0, |udp| udp.lost_elsewhere);
    let mut devices = migrations.iter().flat_map(|m| &m.report.devices);
    let slack = if devices.any(DeviceReport::is_left_to_driver) {
        RINGS
    } else {
        SLACK
    };
    let loss = testbed.peer.loss_from_guest(&outages, slack)
        + testbed.peer.loss_to_guest(&runs, &outages, slack)
        + Loss {
            inside: 0,
            outside: unknown,
        };
    let spread = |value: &dyn Fn(&Migration) -> Option<f64>| {
        Spread::of(migrations.iter().filter_map(value).collect())
    };
    let silence = |of: Option<load_format::Silence>| of.map(|s| crate::migration::ms(&s));
    NetworkSummary {
        tcp_content_ok: tcp_ok(&peer, guest),
        tcp_bytes: [peer.tcp.to_guest_bytes, peer.tcp.from_guest_bytes],
        udp_lost_outside_outage: loss.outside,
        udp_to_guest: udp_to_guest(&peer, guest),
        udp_from_guest: udp_from_guest(&peer, guest),
        icmp: Udp {
            sent: peer.icmp.sent,
            lost: peer.icmp.lost,
            duplicated: peer.icmp.duplicates,
            reordered: peer.icmp.reordered,
            damaged: peer.icmp.corrupt,
        },
        device_outage_ms: spread(&Migration::outage_ms),
        silence_to_guest_ms: spread(&|m| silence(m.window.udp_to_guest)),
        silence_from_guest_ms: spread(&|m| silence(m.window.udp_from_guest)),
    }
}

fn disk(load: DiskReport, migrations: &[Migration]) -> DiskSummary {
    let outages = migrations.iter().filter_map(|m| m.disk_outage_ms);
    DiskSummary {
        load,
        outage_ms: Spread::of(outages.collect()),
    }
}

/// The phases that were entered.
fn phases(migrations: &[Migration]) -> BTreeMap<Phase, Spread> {
    let times = |phase| {
        let times = migrations
            .iter()
            .map(move |m| m.report.phases_ms.get(&phase));
        times.flatten().copied().collect::<Vec<_>>()
    };
    let phases = Phase::ALL.into_iter().map(|phase| (phase, times(phase)));
    phases
        .filter(|(_, times)| !times.is_empty())
        .map(|(phase, times)| (phase, Spread::of(times)))
        .collect()
}

fn fallbacks(migration: &Migration) -> Vec<String> {
    let devices = migration.report.devices.iter();
    devices
        .filter_map(|device| {
            let why = device.why.as_ref()?;
            Some(format!("{} by {}: {why}", device.name, device.strategy))
        })
        .collect()
}

/// Its shell answers, its load runs, and its kernel has no complaint about the device.
fn is_alive(testbed: &Testbed, guest: &GuestReport) -> bool {
    let complaints = testbed.shell("dmesg | grep -c -E 'BUG|Oops|Tx Unit Hang|rcu.*stall' || true");
    let quiet = complaints.is_ok_and(|count| count.trim() == "0");
    let received = guest.udp.as_ref().is_none_or(|udp| udp.received > 0);
    let worked = guest.disk.as_ref().is_none_or(|disk| disk.operations > 0);
    quiet && received && worked
}

fn tcp_ok(peer: &PeerReport, guest: &GuestReport) -> bool {
    let guest_ok = guest
        .tcp
        .as_ref()
        .is_some_and(|tcp| tcp.wrong_bytes == 0 && tcp.broken == 0);
    peer.tcp_content_ok() && guest_ok
}

fn udp_to_guest(peer: &PeerReport, guest: &GuestReport) -> Udp {
    let udp = guest.udp.clone().unwrap_or_default();
    Udp {
        sent: peer.udp_to_guest.sent,
        lost: udp.lost,
        duplicated: udp.duplicates,
        reordered: udp.reordered,
        damaged: udp.corrupt,
    }
}

fn udp_from_guest(peer: &PeerReport, guest: &GuestReport) -> Udp {
    Udp {
        sent: guest.udp.as_ref().map_or(0, |udp| udp.sent),
        lost: peer.udp_from_guest.lost,
        duplicated: peer.udp_from_guest.duplicates,
        reordered: peer.udp_from_guest.reordered,
        damaged: peer.udp_from_guest.corrupt,
    }
}

fn marked(migration: &Migration) -> u64 {
    migration
        .report
        .pages_marked
        .values()
        .map(ferry::report::Marks::total)
        .sum()
}

fn marked_by(migrations: &[Migration]) -> BTreeMap<String, [u64; 2]> {
    let mut by = BTreeMap::new();
    for (source, marks) in migrations.iter().flat_map(|m| &m.report.pages_marked) {
        let [precopy, at_halt] = by.entry(source.clone()).or_insert([0, 0]);
        *precopy += marks.precopy;
        *at_halt += marks.at_halt;
    }
    by
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_maximum_the_largest() {
        assert_eq!(
            Spread::of(vec![3.0, 1.0, 2.0]),
            Spread {
                median: 2.0,
                max: 3.0
            }
        );
        assert_eq!(
            Spread::of(vec![4.0, 1.0]),
            Spread {
                median: 2.5,
                max: 4.0
            }
        );
        assert_eq!(
            Spread::of(Vec::new()),
            Spread {
                median: 0.0,
                max: 0.0
            }
        );
    }
}
