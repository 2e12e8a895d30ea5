//! Drivers of the control device that break the protocol, each in its way: scripts in the guest
//! that poke its registers.

use std::time::Duration;

use anyhow::Result;
use ferry::Strategy;
use testbed::{Help, Options, Testbed};

use crate::{arrived_whole, device, fell_back, start};

/// Registers of `docs/guest-protocol.md`: reads and writes them, and says that it can do it all.
const PRELUDE: &str = r"
dev=/sys/bus/pci/devices/0000:00:07.0
echo 1 > $dev/enable
printf '\006' | dd of=$dev/config bs=1 seek=4 conv=notrunc 2> /dev/null
bar=$(head -n 1 $dev/resource | cut -d ' ' -f 1)
get() { devmem $((bar + $1)) 32; }
put() { devmem $((bar + $1)) 32 $(($2)); }
put 0x0c 0x80000007
";

/// Runs `answer` once for each request, which is in `$request`, and its command in `$command`.
fn rogue(answer: &str) -> String {
    format!(
        "cat > /tmp/rogue.sh <<'END'\n{PRELUDE}\n\
         last=0\n\
         while :; do\n\
         request=$(get 0x10)\n\
         if [ $request != $last ]; then\n\
         last=$request; command=$((request >> 4 & 15))\n{answer}\nfi\n\
         usleep 10000\n\
         done\nEND\n\
         kill $(cat /tmp/rogue.pid) 2> /dev/null\n\
         sh /tmp/rogue.sh > /tmp/rogue.log 2>&1 & echo $! > /tmp/rogue.pid; sleep 1"
    )
}

/// What it answers, and why its device goes over by its state then.
const ROGUES: [(&str, &str, &str); 5] = [
    ("says nothing", ":", "did not stop it within"),
    (
        "answers the epoch before",
        "put 0x108 'request - 0x100 | 1'",
        "did not stop it within",
    ),
    (
        "says that it has stopped a device that runs",
        "put 0x108 'request | 1'",
        "left bus mastering on",
    ),
    (
        "answers twice, and differently",
        "put 0x108 'request | 15'; put 0x108 'request | 1'",
        "no driver",
    ),
    (
        "begins anew instead of answering",
        "put 0x0c 0x80000007",
        "did not stop it within",
    ),
];

fn options() -> Options {
    Options {
        guest: Help::NoDriver,
        strategy: Some(Strategy::Cooperative),
        // A script looks and answers, by a program for each register.
        quiesce_deadline: Duration::from_secs(4),
        ..Options::default()
    }
}

#[test]
fn a_driver_that_breaks_the_protocol_cannot_make_a_page_stale() -> Result<()> {
    let mut testbed = start(options())?;
    let mut migrations = Vec::new();
    for (what, answer, why) in ROGUES {
        testbed.shell(&rogue(answer))?;
        let migration = testbed.migrate()?;
        eprintln!("a rogue that {what}: {:?}", migration.report.devices);
        fell_back(device(&migration, "net0"), why);
        migrations.push(migration);
    }
    arrived_whole(&testbed, &migrations)
}

/// A device whose pages only the guest knows, and a guest that lies about where it says them.
#[test]
fn a_table_that_cannot_be_is_refused_and_the_vm_runs_on() -> Result<()> {
    let mut testbed = start(Options {
        dirty_log_of_guest: true,
        compare: Some("never"),
        // Slow enough for what a script does in between.
        max_bandwidth: Some(50 << 20),
        ..options()
    })?;
    let tables = [
        (
            "0xfffff000",
            "0xffffffff",
            "4",
            "directory at 0xfffffffffffff000",
        ),
        ("0x1001", "0", "4", "directory at 0x1001"),
        ("0x1000", "0", "0xffffffff", "entries"),
    ];
    for (low, high, chunks, why) in tables {
        testbed.shell(&rogue(&format!(
            "put 0x20 {low}; put 0x24 {high}; put 0x28 {chunks}; put 0x108 'request | 1'"
        )))?;
        refused(&mut testbed, why)?;
    }
    // It promises, and does not keep it.
    testbed.shell(&rogue(
        "[ $command = 1 ] && put 0x20 0x1000 && put 0x24 0 && put 0x28 1 && put 0x108 'request | 2'",
    ))?;
    refused(&mut testbed, "did not stop it within")?;
    // It keeps it, but is another driver when it counts.
    testbed.shell(&rogue(
        "[ $command = 1 ] && put 0x20 0x1000 && put 0x24 0 && put 0x28 1 && put 0x108 'request | 1' \
         && sleep 1 && put 0x0c 0x80000007",
    ))?;
    refused(&mut testbed, "net0")
}

/// A guest that promises to tell and does not is not needed.
#[test]
fn what_a_guest_fails_to_tell_is_found_by_comparing_memory() -> Result<()> {
    let mut testbed = start(Options {
        dirty_log_of_guest: true,
        ..options()
    })?;
    for answer in [
        "put 0x20 0x1001; put 0x24 0; put 0x28 4; put 0x108 'request | 1'",
        "[ $command = 1 ] && put 0x20 0x1000 && put 0x24 0 && put 0x28 1 && put 0x108 'request | 2'",
    ] {
        testbed.shell(&rogue(answer))?;
        let migration = testbed.migrate()?;
        let report = &migration.report;
        assert!(report.compared.is_some(), "{answer}: {report:#?}");
        assert_eq!(report.stale_pages, Some(0));
        let device = device(&migration, "net0");
        assert_eq!(
            (device.strategy, &device.fault),
            (Strategy::Transparent, &None)
        );
    }
    Ok(())
}

fn refused(testbed: &mut Testbed, why: &str) -> Result<()> {
    let next = testbed.next_host()?;
    let error = testbed.run_migrate(&next).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
    assert!(testbed.host.vm.qmp().run_status()?.running);
    testbed.wait_for_traffic()
}
