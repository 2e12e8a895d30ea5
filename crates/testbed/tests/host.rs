//! After any end of vferry, the host whose functions it had is as it was before.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, HostOptions, Initrd, Lab, SHARE, progress_on_stderr};
use testbed::Programs;

const BOOT: Duration = Duration::from_mins(4);
/// How long anything may take that takes a second on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(100);
const MAC: &str = "02:00:00:00:00:01";

/// The command of the process that sees the other one go.
const WATCHER: &str = "give-back-record";

/// Everything of the host's that vferry may change.
const STATE: &str = "cd /sys/class/net/eth0/device; cat sriov_numvfs
    for function in $(ls -d virtfn* 2> /dev/null); do
        echo $function $(readlink $function/driver) $(cat $function/driver_override)
    done
    chroot /r /sbin/ip link show eth0 | grep ' vf ' || true";

#[test]
fn the_host_is_as_before_after_any_end() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
    let host = Host::start(&lab, folder.path(), "host", HostOptions::default(), BOOT)?;
    fs::copy(&programs.vferry, host.share().join("vferry"))?;
    let physical = host.shell("basename $(readlink -f /sys/class/net/eth0/device)")?;
    let configuration = CONFIGURATION.replace("PHYSICAL", physical.trim());
    fs::write(host.share().join("vm.toml"), configuration)?;
    let scene = Scene { host };
    // The host's own driver takes virtual functions by itself.
    let module = format!(
        "/usr/sbin/insmod /usr/lib/modules/{}/kernel/drivers/net/ethernet/intel/igbvf/igbvf.ko.xz",
        lab.kernel_version()
    );
    scene.host.run(&module)?;

    eprintln!("killed, and it had made the functions");
    let none = scene.state()?;
    ensure!(none == "0\n", "{none}");
    scene.serve()?;
    let served = scene.state()?;
    ensure!(served.starts_with("2\n"), "{served}");
    ensure!(served.contains("vfio-pci vfio-pci"), "{served}");
    for setting in [MAC, "vlan 100", "spoof checking off", "trust on"] {
        ensure!(served.contains(setting), "{served}");
    }
    scene.kill("run")?;
    scene.wait_for(&none)?;
    ensure!(!scene.has_record()?, "there is nothing more to give back");

    eprintln!("killed, and the functions were there");
    scene
        .host
        .shell("echo 2 > /sys/class/net/eth0/device/sriov_numvfs")?;
    let before = scene.state()?;
    ensure!(before.contains("igbvf (null)"), "{before}");
    scene.serve()?;
    let served = scene.state()?;
    ensure!(
        served.contains("vfio-pci vfio-pci") && served.contains(MAC),
        "{served}"
    );
    scene.kill("run")?;
    scene.wait_for(&before)?;

    eprintln!("told to end, and the card is switched off meanwhile");
    scene.host.shell("ip link set eth0 down")?;
    scene.serve()?;
    scene.host.shell(&format!(
        "grep 'eth0 is switched off' /r{SHARE}/vferry.log && ip link set eth0 up"
    ))?;
    ensure!(scene.state()? == served);
    scene.host.shell("kill $(cat /tmp/pid)")?;
    let status = scene.status()?;
    let after = scene.state()?;
    ensure!(
        status == "0" && after == before,
        "{status}: {after}\nbefore: {before}\n{}",
        scene.said()
    );

    eprintln!("killed, and its QEMU lives on with the function");
    scene.serve()?;
    let args = format!("{SHARE}/vferry qemu-args {SHARE}/vm.toml");
    let args = format!("{} -S", scene.host.run(&args)?.trim());
    let _guest = scene.host.power_on(&lab, &Initrd::new(), &args)?;
    // It asks for the registers after it has connected, and stopped before that it would not have it.
    scene.wait_until(
        "its QEMU has the function",
        "test -S /r/tmp/qmp.sock && grep vfio /proc/$(pidof qemu-system-x86_64)/maps && chroot /r \
        /run/share/vferry status /run/share/vm.toml --json | grep '\"connected\":true'",
    )?;
    // It would end soon, as its device is gone.
    scene.host.shell("kill -STOP $(pidof qemu-system-x86_64)")?;
    scene.kill("run")?;
    scene.wait_until(
        "somebody waits for the QEMU",
        "grep 'nobody has it open' /r/run/share/vferry.log",
    )?;
    ensure!(scene.state()? == served, "{}", scene.said());
    scene.host.shell("kill -9 $(pidof qemu-system-x86_64)")?;
    scene.wait_for(&before)?;

    eprintln!("both killed");
    scene.serve()?;
    scene.kill_both()?;
    ensure!(
        scene.has_record()? && scene.state()? == served,
        "{}",
        scene.said()
    );
    scene
        .host
        .run(&format!("{SHARE}/vferry give-back {SHARE}/vm.toml"))?;
    ensure!(scene.state()? == before, "{}", scene.said());

    eprintln!("both killed, and the next run comes first; then who watches is killed before");
    scene.serve()?;
    scene.kill_both()?;
    scene.serve()?;
    ensure!(scene.state()? == served, "{}", scene.said());
    scene.kill(WATCHER)?;
    scene.wait_until(
        "another watches",
        "for process in $(pidof vferry); do grep -a give-back-record /proc/$process/cmdline && exit; \
         done; exit 1",
    )?;
    scene.kill("run")?;
    scene.wait_for(&before)
}

#[derive(Debug)]
struct Scene {
    host: Host,
}

impl Scene {
    fn state(&self) -> Result<String> {
        self.host.shell(STATE)
    }

    fn has_record(&self) -> Result<bool> {
        let there = self
            .host
            .shell("test -e /r/tmp/control.sock.host && echo yes || true")?;
        Ok(!there.is_empty())
    }

    /// Starts `vferry run`, and waits until it serves.
    fn serve(&self) -> Result<()> {
        self.host.shell(&format!(
            "rm -f /tmp/status /r/tmp/*.sock
            (sh -c 'echo $$ > /tmp/pid; exec chroot /r {SHARE}/vferry run {SHARE}/vm.toml' \
             > /r{SHARE}/vferry.log 2>&1; echo $? > /tmp/status) &"
        ))?;
        self.wait_until(
            "vferry serves",
            &format!("grep ' serving ' /r{SHARE}/vferry.log"),
        )
    }

    /// Kills the process of vferry's that runs this command, without a chance to do anything.
    fn kill(&self, command: &str) -> Result<()> {
        self.host.shell(&format!(
            "for process in $(pidof vferry); do
                test \"$(tr '\\0' '\\n' < /proc/$process/cmdline | sed -n 2p)\" = {command} || continue
                kill -9 $process
                while grep State: /proc/$process/status | grep -qv Z; do usleep 10000; done
                exit
            done; exit 1"
        ))?;
        Ok(())
    }

    /// Kills both of vferry's processes; the one that would start the other anew stands still first.
    fn kill_both(&self) -> Result<()> {
        self.host.shell("kill -STOP $(cat /tmp/pid)")?;
        self.kill(WATCHER)?;
        self.kill("run")
    }

    /// The exit status of `vferry run`.
    fn status(&self) -> Result<String> {
        self.wait_until("vferry ends", "test -s /tmp/status")?;
        Ok(self.host.shell("cat /tmp/status")?.trim().to_owned())
    }

    fn wait_for(&self, state: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.state()?;
            if now == state && !self.has_record()? {
                return Ok(());
            }
            let said = || format!("it is:\n{now}\nit was:\n{state}\n{}", self.said());
            ensure!(Instant::now() < deadline, "not given back: {}", said());
            std::thread::sleep(LOOK);
        }
    }

    fn wait_until(&self, what: &str, condition: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self
            .host
            .shell(&format!(
                "({condition}) > /dev/null 2>&1 && echo yes || true"
            ))?
            .is_empty()
        {
            ensure!(
                Instant::now() < deadline,
                "not that {what}: {}",
                self.said()
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn said(&self) -> String {
        let log = fs::read(self.host.share().join("vferry.log")).context("no log");
        let log = log.map_or_else(
            |error| error.to_string(),
            |log| String::from_utf8_lossy(&log).into(),
        );
        format!("vferry said:\n{log}\n{}", self.host.guest_said())
    }
}

const CONFIGURATION: &str = r#"[vm]
name = "host"
memory = "64M"

[qemu]
qmp = "/tmp/qmp.sock"

[control]
socket = "/tmp/control.sock"

[sidecar]
socket = "/tmp/sidecar.sock"
address = "00:06.1"

[migration]
link = "unix:/tmp/link.sock"
incoming = "unix:/tmp/incoming.sock"

[[device]]
name = "net0"
model = "passthrough"
socket = "/tmp/net0.sock"
address = "00:05.0"
physical = "PHYSICAL"
virtual = 1
create = 2
bind = true
mac = "02:00:00:00:00:01"
vlan = 100
trust = true
spoof-check = false
"#;
