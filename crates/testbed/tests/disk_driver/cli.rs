//! What `nvme-cli` reads of the controller, by passed-through commands and from its registers.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::guest::{DISK_MIB, Guest};

const SECTORS: u64 = DISK_MIB << 11;

/// All it reads without changing anything agrees with the configuration of the testbed and with
/// what the model announces.
pub(crate) fn agrees(guest: &Guest) -> Result<()> {
    for (command, expected) in readings(guest)? {
        let text = guest
            .shell(&format!("nvme {command} --output-format=json"))
            .with_context(|| format!("nvme {command}"))?;
        let read: Value = serde_json::from_str(&text)
            .with_context(|| format!("nvme {command} printed {text:?}"))?;
        ensure!(
            holds(&read, &expected),
            "nvme {command} reads {read:#}\nwithout {expected:#}"
        );
    }
    Ok(())
}

fn readings(guest: &Guest) -> Result<Vec<(&'static str, Value)>> {
    let attribute = |name: &str| -> Result<String> {
        let text = guest.shell(&format!("cat /sys/block/nvme0n1/{name}"))?;
        Ok(text.trim().to_owned())
    };
    let mdts = 8;
    let longest = 4_u32 << mdts;
    let driver_takes = attribute("queue/max_hw_sectors_kb")?;
    ensure!(
        driver_takes == longest.to_string(),
        "the driver's longest transfer is {driver_takes} KiB, not {longest}"
    );
    Ok(vec![
        (
            "list",
            json!({ "Devices": [{
                "DevicePath": "/dev/nvme0n1",
                "ModelNumber": "vferry NVMe controller",
                "SerialNumber": "LAB0",
                "PhysicalSize": DISK_MIB << 20,
                "SectorSize": 512,
            }] }),
        ),
        (
            "id-ctrl /dev/nvme0",
            json!({
                "sn": format!("{:20}", "LAB0"),
                "ver": 0x1_04_00,
                "cntrltype": 1,
                "mdts": mdts,
                "nn": 1,
                // There is one, and Flush may name all namespaces at once.
                "vwc": 0b111,
                // Compare, Dataset Management, Write Zeroes.
                "oncs": 0b1101,
                // No SGLs.
                "sgls": 0,
            }),
        ),
        (
            "id-ns /dev/nvme0n1",
            json!({
                "nsze": SECTORS, "ncap": SECTORS, "nuse": SECTORS,
                "flbas": 0,
                "lbafs": [{ "ms": 0, "ds": 9 }],
                // Deallocated blocks read as zeroes.
                "dlfeat": 0b1001,
            }),
        ),
        (
            "smart-log /dev/nvme0",
            json!({
                "critical_warning": 0,
                "avail_spare": 100,
                "percent_used": 0,
                "media_errors": 0,
            }),
        ),
        // As many entries as it announces.
        (
            "error-log /dev/nvme0",
            json!({ "errors": [{}, {}, {}, {}] }),
        ),
        (
            "fw-log /dev/nvme0",
            json!({ "nvme0": { "Active Firmware Slot (afi)": 1 } }),
        ),
        (
            "list-ns /dev/nvme0",
            json!({ "nsid_list": [{ "nsid": 1 }] }),
        ),
        (
            "ns-descs /dev/nvme0n1",
            json!({ "ns-descs": [{ "Type": "uuid", "uuid": attribute("uuid")? }] }),
        ),
        // The write cache is on.
        (
            "get-feature /dev/nvme0 -f 6",
            json!({ "feature: 0x06": [{ "Current": "0x00000001" }] }),
        ),
        // Eight queues of either kind, counted from 0.
        (
            "get-feature /dev/nvme0 -f 7",
            json!({ "feature: 0x07": [{ "Current": "0x00070007" }] }),
        ),
        // Supported, and those that change content say so.
        (
            "effects-log /dev/nvme0",
            json!([{
                "admin_cmd_set": { "ACS_2 (Get Log Page)": 0b1, "ACS_6 (Identify)": 0b1 },
                "io_cmd_set": {
                    "IOCS_0 (Flush)": 0b1,
                    "IOCS_1 (Write)": 0b11,
                    "IOCS_2 (Read)": 0b1,
                    "IOCS_5 (Compare)": 0b1,
                    "IOCS_8 (Write Zeroes)": 0b11,
                    "IOCS_9 (Dataset Management)": 0b11,
                },
            }]),
        ),
        // Ready, and as the driver has set it.
        (
            "show-regs /dev/nvme0",
            json!({ "vs": 0x1_04_00, "csts": 1, "cc": 0x46_0001, "cmbsz": 0 }),
        ),
    ])
}

/// `read` has all of `expected`, and perhaps more members.
fn holds(read: &Value, expected: &Value) -> bool {
    match (read, expected) {
        (Value::Object(read), Value::Object(expected)) => {
            expected.iter().all(|(name, expected)| {
                let value = read.get(name);
                value.is_some_and(|value| holds(value, expected))
            })
        }
        (Value::Array(read), Value::Array(expected)) => {
            let mut pairs = read.iter().zip(expected);
            read.len() == expected.len() && pairs.all(|(read, expected)| holds(read, expected))
        }
        _ => read == expected,
    }
}
