//! The lab's promises, each with a real QEMU.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Initrd, Lab, ONE_CPU, Vm, progress_on_stderr};
use qemu::args::{QemuArgs, RootPort};
use qemu::bridge::{Bridge, Window};
use qemu::migration::{MigrationSettings, MigrationStatus};
use qemu::monitor::Width;
use qemu::system::RunState;
use qemu::{PciAddress, Place, Qmp, QmpError};

const BOOT: Duration = Duration::from_mins(2);
const COMMAND: Duration = Duration::from_secs(30);

/// Tells the re-executed test below to play the parent that gets killed.
const PARENT_FOLDER: &str = "LAB_TEST_PARENT_FOLDER";

fn lab() -> Lab {
    Lab::ensure(&progress_on_stderr).unwrap()
}

#[test]
fn a_guest_boots_to_a_shell() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let script = folder.path().join("greet.sh");
    fs::write(&script, "#!/bin/sh\necho \"hello $1\"\n").unwrap();
    let initrd = Initrd::new()
        .module("8021q")
        .program(&script, "greet")
        .packaged("/usr/sbin/nvme");
    let vm = Vm::builder(&lab, folder.path(), "vm")
        .initrd(initrd)
        .append("lab.word=xyzzy")
        .spawn()
        .unwrap();
    vm.wait_ready(BOOT).unwrap();

    let shell = |command: &str| vm.shell(command, COMMAND).unwrap();
    assert_eq!(
        shell("uname -r").success().unwrap().trim(),
        lab.kernel_version()
    );
    assert_eq!(shell("greet you").success().unwrap(), "hello you\n");
    assert_eq!(shell("nproc").success().unwrap(), "2\n");
    let version = shell("nvme version").success().unwrap();
    assert!(version.starts_with("nvme version "), "{version}");
    assert!(shell("cat /proc/cmdline").stdout.contains("lab.word=xyzzy"));
    assert!(shell("ip address show lo").stdout.contains("127.0.0.1"));
    // 8021q needs garp and mrp, which need llc and stp.
    let modules = shell("cut -d' ' -f1 /proc/modules").stdout;
    for module in ["8021q", "garp", "mrp", "llc", "stp"] {
        assert!(
            modules.lines().any(|line| line == module),
            "{module} not in {modules}"
        );
    }

    let failed = shell("echo out; echo err >&2; exit 7");
    assert_eq!(
        (failed.status, &*failed.stdout, &*failed.stderr),
        (7, "out\n", "err\n")
    );
    let long = shell("seq 1 20000").success().unwrap();
    assert_eq!(long.lines().count(), 20_000);
    assert!(long.ends_with("20000\n"));
    let script = format!("cat <<'END' | wc -c\n{}\nEND", "x".repeat(12_000));
    assert_eq!(shell(&script).stdout.trim(), "12001");
    // What runs on in the background holds nothing up.
    shell("sleep 1000 & echo $! > /tmp/background")
        .success()
        .unwrap();
    shell("kill $(cat /tmp/background)").success().unwrap();

    let error = vm
        .shell("sleep 1000", Duration::from_millis(300))
        .unwrap_err();
    assert!(format!("{error:#}").contains("`sleep 1000`"), "{error:#}");
    assert_eq!(
        shell("echo alive").stdout,
        "alive\n",
        "after a command that timed out"
    );
}

/// Each orphan's end interrupts process 1, also while a request is on the line.
#[test]
fn a_guest_that_is_to_have_one_cpu_has_one() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let vm = Vm::builder(&lab, folder.path(), "vm")
        .append(ONE_CPU)
        .spawn()
        .unwrap();
    vm.wait_ready(BOOT).unwrap();
    let online = "nproc; cat /sys/devices/system/cpu/present";
    let online = vm.shell(online, COMMAND).unwrap();
    assert_eq!(online.success().unwrap(), "1\n0-1\n");
}

#[test]
fn a_guest_whose_orphans_end_all_the_time_hears_every_request() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let vm = Vm::builder(&lab, folder.path(), "vm").spawn().unwrap();
    vm.wait_ready(BOOT).unwrap();
    let shell = |command: &str| vm.shell(command, COMMAND).unwrap();
    shell("(while :; do (usleep 1000 & usleep 1000 &); done) > /dev/null 2>&1 &");
    for number in 0..40 {
        // Longer than the line's FIFO, so that it comes in pieces.
        let answer = shell(&format!("echo {number} # {}", "x".repeat(300)));
        assert_eq!(answer.success().unwrap(), format!("{number}\n"));
    }
}

#[test]
fn a_panic_is_told_with_the_consoles_last_words() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let vm = Vm::builder(&lab, folder.path(), "vm").spawn().unwrap();
    vm.wait_ready(BOOT).unwrap();
    let error = vm
        .shell("echo c > /proc/sysrq-trigger", COMMAND)
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("QEMU"), "{text}");
    assert!(text.contains("sysrq triggered crash"), "{text}");
}

#[test]
fn a_qemu_that_does_not_start_is_told_in_its_own_words() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let builder = Vm::builder(&lab, folder.path(), "vm").args(["-device", "no-such-device"]);
    let error = builder.spawn().unwrap_err();
    assert!(
        format!("{error:#}").contains("'no-such-device' is not a valid device"),
        "{error:#}"
    );
}

#[test]
fn a_guest_migrates_between_two_qemus() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let source = Vm::builder(&lab, folder.path(), "source").spawn().unwrap();
    let destination = Vm::builder(&lab, folder.path(), "destination")
        .incoming()
        .spawn()
        .unwrap();
    source.wait_ready(BOOT).unwrap();
    source
        .shell("echo kept > /tmp/memory", COMMAND)
        .unwrap()
        .success()
        .unwrap();

    let machine = source.qmp().machine().unwrap();
    assert_eq!(machine, destination.qmp().machine().unwrap());
    assert!(machine.version.is_supported() && machine.main_memory_is_shared());
    assert!(
        machine.machine_type.starts_with("pc-q35-"),
        "{}",
        machine.machine_type
    );
    assert_eq!((machine.base_memory, machine.cpus.len()), (512 << 20, 2));

    let settings = MigrationSettings {
        max_bandwidth: Some(0),
        ..MigrationSettings::default()
    };
    let mut events = source.qmp().events();
    let uri = format!("unix:{}", folder.path().join("stream").display());
    for vm in [&source, &destination] {
        vm.qmp().prepare_migration(&settings).unwrap();
    }
    destination.qmp().migrate_incoming(&uri).unwrap();
    source.qmp().migrate(&uri).unwrap();
    let deadline = Instant::now() + BOOT;
    events.wait_for("STOP", |_| true, deadline).unwrap();
    events
        .wait_for(
            "MIGRATION",
            |event| event.data["status"] == "completed",
            deadline,
        )
        .unwrap();

    let info = source.qmp().migration().unwrap();
    assert_eq!(info.status, MigrationStatus::Completed);
    let downtime = info.downtime.expect("a completed migration has a downtime");
    assert!(downtime < Duration::from_secs(5), "{downtime:?}");
    assert!(info.ram.expect("and RAM counters").transferred > 1 << 20);
    eprintln!("QEMU reports {downtime:?} of downtime");
    assert_eq!(
        source.qmp().run_status().unwrap().status,
        RunState::PostMigrate
    );
    let kept = destination
        .shell("cat /tmp/memory", COMMAND)
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(kept, "kept\n");
    source.quit(COMMAND).unwrap();
    destination.quit(COMMAND).unwrap();
}

#[test]
fn configuration_space_can_be_programmed_before_a_migration_comes_in() {
    let (lab, folder) = (lab(), tempfile::tempdir().unwrap());
    let device = r#"{"driver":"virtio-rng-pci","id":"rng0","addr":"05.0"}"#;
    let port = PciAddress::new(0, 6, 0).unwrap();
    let root_port = QemuArgs::new()
        .root_port(&RootPort {
            id: "rng1-port".to_owned(),
            address: port,
        })
        .unwrap();
    let behind = r#"{"driver":"virtio-rng-pci","id":"rng1","bus":"rng1-port"}"#;
    let vm = Vm::builder(&lab, folder.path(), "vm")
        .args(["-device", device])
        .args(root_port.into_vec())
        .args(["-device", behind])
        .incoming()
        .spawn()
        .unwrap();
    let qmp = vm.qmp();
    assert_eq!(qmp.run_status().unwrap().status, RunState::InMigrate);

    let address = PciAddress::new(0, 5, 0).unwrap();
    let function = qmp
        .pci_functions()
        .unwrap()
        .into_iter()
        .find(|f| f.id == "rng0")
        .unwrap();
    assert_eq!(
        (function.address, function.vendor, function.behind_bridge),
        (address, 0x1af4, false)
    );
    qmp.write_port(0xcf8, Width::Word, 0x8000_1234).unwrap();
    qmp.with_pci_config(|config| {
        assert_eq!(config.read(address, 0, Width::Half)?, 0x1af4);
        assert_eq!(
            config.read(address, 2, Width::Half)?,
            u32::from(function.device)
        );
        assert_eq!(config.read(address, 4, Width::Half)?, 0);
        config.write(address, 0x20, Width::Word, 0xfe00_0000)?;
        config.write(address, 4, Width::Half, 6)?;
        assert_eq!(config.read(address, 4, Width::Half)?, 6);
        let absent = PciAddress::new(0, 9, 0).expect("device 9 is below 32");
        assert_eq!(config.read(absent, 0, Width::Word)?, u32::MAX);
        Ok::<_, qemu::QmpError>(())
    })
    .unwrap();
    assert_eq!(qmp.read_port(0xcf8, Width::Word).unwrap(), 0x8000_1234);
    // BAR 4 holds the virtio registers, which answer now that memory decoding is on.
    assert_eq!(qmp.read_physical(0xfe00_0000, 5).unwrap().len(), 5);

    let bridge_of = |qmp: &Qmp| {
        let functions = qmp.pci_functions().unwrap();
        functions
            .into_iter()
            .find(|f| f.id == "rng1-port")
            .unwrap()
            .bridge
            .unwrap()
    };
    assert_eq!(bridge_of(qmp).secondary, 0);
    let bridge = Bridge {
        secondary: 3,
        subordinate: 3,
        memory: Window {
            base: 0xfc00_0000,
            limit: 0xfc1f_ffff,
        },
        prefetchable: Window {
            base: 0x80_0000_0000,
            limit: 0x80_000f_ffff,
        },
    };
    let behind = Place::RootPort(port).address(3).unwrap();
    qmp.with_pci_config(|config| {
        assert_eq!(
            config.read(behind, 0, Width::Half)?,
            0xffff,
            "no number yet"
        );
        bridge.program(config, port)?;
        assert_eq!(config.read(behind, 0, Width::Half)?, 0x1af4);
        config.write(behind, 0x20, Width::Word, 0)?;
        config.write(behind, 0x24, Width::Word, 0x80)?;
        config.write(behind, 4, Width::Half, 6)
    })
    .unwrap();
    assert_eq!(bridge_of(qmp), bridge);
    assert_eq!(qmp.read_physical(0x80_0000_0000, 5).unwrap().len(), 5);
    assert!(matches!(
        qmp.read_physical(0xfd00_0000, 1),
        Err(QmpError::Monitor { .. })
    ));
}

#[test]
fn killing_the_parent_leaves_no_qemu_behind() {
    if let Some(folder) = std::env::var_os(PARENT_FOLDER) {
        let vm = Vm::builder(&lab(), folder, "vm").spawn().unwrap();
        println!("\nQEMU {}", vm.pid());
        thread::sleep(BOOT);
        return;
    }
    lab();
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "killing_the_parent_leaves_no_qemu_behind",
            "--nocapture",
        ])
        .env(PARENT_FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(parent.stdout.take().unwrap());
    let pid = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("QEMU ")?.parse::<u32>().ok())
        .expect("the parent names its QEMU");
    assert!(runs(pid));
    assert!(
        Qmp::connect(&folder.path().join("vm.qmp"), Instant::now()).is_err(),
        "it is taken"
    );
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + COMMAND;
    while runs(pid) {
        assert!(Instant::now() < deadline, "QEMU {pid} outlived its parent");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie does not run; who has to reap it depends on the system.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
