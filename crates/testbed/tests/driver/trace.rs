//! What the guest's kernel itself says of each packet, at the border between driver and stack: the
//! trace events `napi_gro_receive_entry` (from the driver) and `net_dev_start_xmit` (to it).
//!
//! Switching an event on or off changes code of the kernel while its other processor runs it. Linux
//! lays a breakpoint over such code for a moment, and QEMU's translator may keep it (`notdirty_write`
//! throws old translations away before the store, not after): "Oops: int3" in `__schedule`. So the
//! events are switched on once for each guest, and without the names of the tasks, for which the
//! kernel would hook its scheduler as well (`tracing_start_cmdline_record`); filters alone say what is
//! recorded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::Testbed;

const FOLDER: &str = "/sys/kernel/tracing";
/// The filter that lets no packet through: none is empty.
const NOTHING: &str = "len == 0";

/// An event that is being recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The driver hands over a packet. Its length is without the Ethernet header.
    Received,
    /// The driver is given a packet.
    Sent,
}

/// One packet, as its event describes it.
#[derive(Debug, Clone)]
pub(crate) struct Packet(BTreeMap<String, String>);

impl Event {
    const ALL: [Self; 2] = [Self::Received, Self::Sent];

    fn name(self) -> &'static str {
        match self {
            Self::Received => "napi_gro_receive_entry",
            Self::Sent => "net_dev_start_xmit",
        }
    }

    /// Records those of its packets that `filter` (in the kernel's syntax) lets through, in place
    /// of all that was recorded before.
    pub(crate) fn record(self, testbed: &Testbed, filter: &str) -> Result<()> {
        let mut command = format!(
            "mountpoint -q {FOLDER} || mount -t tracefs tracefs {FOLDER}; cd {FOLDER} \
             && echo 0 > options/record-cmd"
        );
        for event in Self::ALL {
            let filter = if event == self { filter } else { NOTHING };
            let name = event.name();
            write!(
                command,
                " && echo '{filter}' > events/net/{name}/filter \
                 && {{ grep -q 1 events/net/{name}/enable || echo 1 > events/net/{name}/enable; }}"
            )?;
        }
        testbed.shell(&format!("{command} && echo > trace"))?;
        Ok(())
    }
}

/// The packets recorded so far.
pub(crate) fn packets(testbed: &Testbed) -> Result<Vec<Packet>> {
    let trace = testbed.shell(&format!("grep dev=eth0 {FOLDER}/trace || true"))?;
    Ok(trace.lines().map(Packet::parse).collect())
}

/// Waits until what was recorded is `enough`.
pub(crate) fn wait_for(
    testbed: &Testbed,
    limit: Duration,
    enough: impl Fn(&[Packet]) -> bool,
) -> Result<Vec<Packet>> {
    let deadline = Instant::now() + limit;
    loop {
        let packets = packets(testbed)?;
        if enough(&packets) {
            return Ok(packets);
        }
        ensure!(
            Instant::now() < deadline,
            "the guest's kernel has not seen all that it should in {limit:?}, but {packets:#?}"
        );
    }
}

impl Packet {
    /// `... event: dev=eth0 queue_mapping=1 ...`
    fn parse(line: &str) -> Self {
        let fields = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        Self(
            fields
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// The value of a field.
    pub(crate) fn get(&self, field: &str) -> Result<u64> {
        let text = self
            .0
            .get(field)
            .with_context(|| format!("no `{field}` in {self:?}"))?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .with_context(|| format!("`{field}` is `{text}`"))
    }

    /// Whether a field has this value.
    pub(crate) fn is(&self, field: &str, value: u64) -> bool {
        self.get(field).is_ok_and(|found| found == value)
    }
}
