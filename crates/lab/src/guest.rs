//! One guest: boots it, talks to it, and takes it down.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qemu::Qmp;
use qemu::args::{QemuArgs, option_value};

use crate::control::{Control, Output};
use crate::process::Guarded;
use crate::{Accelerator, Initrd, Lab};

/// How long a QEMU may take until its monitor answers; a tenth of a second on an idle machine.
const START: Duration = Duration::from_secs(30);
/// How often a starting QEMU is looked after.
const CHECK: Duration = Duration::from_millis(10);
/// What an error quotes of the console and of QEMU's own output.
const TAIL: usize = 4000;

const APPEND: &str = "console=ttyS0 quiet panic=-1 oops=panic";

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct VmBuilder<'a> {
    lab: &'a Lab,
    folder: PathBuf,
    name: String,
    initrd: Initrd,
    memory: Option<u64>,
    cpus: u32,
    append: String,
    args: Vec<String>,
    incoming: bool,
    without_kernel: bool,
}

/// A guest and its QEMU. Dropping it kills the QEMU.
#[derive(Debug)]
pub struct Vm {
    name: String,
    console: PathBuf,
    log: PathBuf,
    qmp: Qmp,
    control: Mutex<Line>,
    // Last, so that the connections above are closed before it is killed.
    process: Guarded,
}

#[derive(Debug)]
struct Line {
    control: Control,
    ready: bool,
}

impl VmBuilder<'_> {
    /// What it starts with beside busybox. The destination of a migration needs the same.
    #[must_use]
    pub fn initrd(mut self, initrd: Initrd) -> Self {
        self.initrd = initrd;
        self
    }

    /// Memory in bytes; 512 MiB unless told otherwise, in a memfd that other processes can map.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Leaves machine and memory to the arguments given by [`VmBuilder::args`].
    #[must_use]
    pub fn machine_from_args(mut self) -> Self {
        self.memory = None;
        self
    }

    /// Number of vCPUs; 2 unless told otherwise.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn append(mut self, parameters: &str) -> Self {
        self.append = format!("{} {parameters}", self.append);
        self
    }

    /// Adds arguments to QEMU's command line, devices for example.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Gives firmware no kernel to boot.
    #[must_use]
    pub fn without_kernel(mut self) -> Self {
        self.without_kernel = true;
        self
    }

    /// Does not boot, but waits for a migration (`-incoming defer`).
    #[must_use]
    pub fn incoming(mut self) -> Self {
        self.incoming = true;
        self
    }

    /// Starts it. Returns when QEMU's monitor answers; the guest has only begun to boot then.
    ///
    /// # Errors
    ///
    /// If the initrd cannot be built or QEMU does not start, with what QEMU says.
    pub fn spawn(self) -> Result<Vm> {
        let file = |end: &str| self.folder.join(format!("{}.{end}", self.name));
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let (monitor, line) = (file("qmp"), file("control"));
        let (console, log) = (file("console"), file("log"));
        let mut command = self.lab.emulator().command();
        command.args(self.qemu_args(&monitor, &line, &console)?);
        let output =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let process = Guarded::spawn(command, &output)?;
        let connected = connect(&process, &monitor).and_then(|qmp| {
            // QEMU makes all its sockets before its monitor answers.
            let stream = UnixStream::connect(&line).context("cannot reach the control line")?;
            Ok((qmp, stream))
        });
        let (qmp, stream) =
            connected.with_context(|| format!("{}: {}", self.name, evidence(&console, &log)))?;
        // QEMU has it mapped; nobody else wants it, and a hundred guests would fill a disk.
        let initrd = file("initrd");
        fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
        let control = Mutex::new(Line {
            control: Control::new(stream),
            ready: self.incoming,
        });
        Ok(Vm {
            name: self.name,
            console,
            log,
            qmp,
            control,
            process,
        })
    }

    fn qemu_args(&self, monitor: &Path, line: &Path, console: &Path) -> Result<Vec<String>> {
        let initrd = self.folder.join(format!("{}.initrd", self.name));
        fs::write(&initrd, self.initrd.build(self.lab)?)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        let accelerator = Accelerator::detect();
        let mut args = QemuArgs::new();
        if let Some(memory) = self.memory {
            args = args.machine("q35", memory)?;
        }
        args = args
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(accelerator.args())
            .args(["-smp".to_owned(), self.cpus.to_string()])
            .args(serial("console", "file", console, "")?)
            .args(serial("control", "socket", line, ",server=on,wait=off")?)
            .qmp(monitor)?
            .args(self.args.iter().cloned());
        if !self.without_kernel {
            let append = format!("{} {}", self.append, accelerator.kernel_parameters());
            args = args
                .args(["-kernel", text(&self.lab.kernel())?])
                .args(["-initrd", text(&initrd)?])
                .args(["-append", &append]);
        }
        if self.incoming {
            args = args.args(["-incoming", "defer"]);
        }
        Ok(args.into_vec())
    }
}

impl Vm {
    /// Describes a guest whose files go into `folder` under names that begin with `name`. Sockets
    /// are among them, so the whole path must stay below 100 bytes.
    pub fn builder<'a>(lab: &'a Lab, folder: impl Into<PathBuf>, name: &str) -> VmBuilder<'a> {
        VmBuilder {
            lab,
            folder: folder.into(),
            name: name.to_owned(),
            initrd: Initrd::new(),
            memory: Some(512 << 20),
            cpus: 2,
            append: APPEND.to_owned(),
            args: Vec::new(),
            incoming: false,
            without_kernel: false,
        }
    }

    /// Waits until the guest has booted and takes commands. A guest that comes by migration takes
    /// them as soon as it runs.
    ///
    /// # Errors
    ///
    /// If it does not come up in time, panics, or QEMU ends; with the end of its console.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut line = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        self.ready(&mut line, deadline)
    }

    /// The guest came by migration, but has yet to boot: [`Vm::wait_ready`] waits for that here.
    pub fn expect_boot(&self) {
        let mut line = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        line.ready = false;
    }

    /// Runs a command in the guest's shell and waits for it, first for the guest to be ready. The
    /// command is killed at the timeout; what it leaves in the background stays. Works on whichever
    /// QEMU the guest runs on now, but a command must not be in flight while the guest moves.
    ///
    /// # Errors
    ///
    /// If no answer comes in time or QEMU ends; with the end of the console. A command that fails
    /// is no error, see [`Output::success`].
    pub fn shell(&self, command: &str, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        let mut line = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        self.ready(&mut line, deadline)?;
        line.control
            .run(command, deadline, || self.alive())
            .with_context(|| format!("`{command}` in the guest"))
            .with_context(|| self.evidence())
    }

    /// QEMU's monitor. It is the lab's own; whoever else needs one adds another `-qmp`.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Fails if QEMU has ended.
    ///
    /// # Errors
    ///
    /// With how it ended and the end of the console.
    pub fn check(&self) -> Result<()> {
        self.alive().with_context(|| self.evidence())
    }

    /// All that the guest wrote to its console on this QEMU.
    pub fn console(&self) -> String {
        read_lossy(&self.console)
    }

    /// All that QEMU itself wrote.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Kills QEMU, as when its host's power is cut. It has ended when this returns.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// How QEMU ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.process.exit_status()
    }

    /// Ends QEMU in order and waits for it.
    ///
    /// # Errors
    ///
    /// If it does not end within `timeout`; it is killed then.
    pub fn quit(self, timeout: Duration) -> Result<()> {
        self.qmp.quit()?;
        let ended = self.process.wait(Instant::now() + timeout);
        ensure!(
            ended.is_some(),
            "{}: QEMU did not quit within {timeout:?}",
            self.name
        );
        Ok(())
    }

    fn ready(&self, line: &mut Line, deadline: Instant) -> Result<()> {
        if !line.ready {
            line.control
                .wait_ready(deadline, || self.alive())
                .context("the guest did not come up")
                .with_context(|| self.evidence())?;
            line.ready = true;
        }
        Ok(())
    }

    fn alive(&self) -> Result<()> {
        match self.process.exit_status() {
            None => Ok(()),
            Some(status) => bail!("QEMU ended by itself ({status})"),
        }
    }

    /// What may explain a failure: whether QEMU still runs, what it said last, and what the guest
    /// wrote to its console.
    pub fn evidence(&self) -> String {
        let evidence = evidence(&self.console, &self.log);
        match self.alive() {
            Ok(()) => format!("{}: {evidence}", self.name),
            Err(ended) => format!("{}: {ended}; {evidence}", self.name),
        }
    }
}

/// The guest's next serial port, and what is at its other end.
pub(crate) fn serial(id: &str, kind: &str, path: &Path, options: &str) -> Result<[String; 4]> {
    let path = option_value(text(path)?);
    let chardev = format!("{kind},id={id},path={path}{options}");
    Ok([
        "-chardev".to_owned(),
        chardev,
        "-serial".to_owned(),
        format!("chardev:{id}"),
    ])
}

/// Waits for the monitor's socket. Once it accepts, a QEMU that ends closes it, which the client
/// notices by itself.
fn connect(process: &Guarded, monitor: &Path) -> Result<Qmp> {
    let deadline = Instant::now() + START;
    loop {
        match UnixStream::connect(monitor) {
            Ok(stream) => return Ok(Qmp::from_stream(stream, deadline)?),
            Err(error) => {
                if let Some(status) = process.exit_status() {
                    bail!("QEMU did not start ({status})");
                }
                if Instant::now() >= deadline {
                    return Err(error).context("QEMU did not make its monitor's socket");
                }
            }
        }
        thread::sleep(CHECK);
    }
}

fn evidence(console: &Path, log: &Path) -> String {
    let quote = |what: &str, path: &Path| match tail(&read_lossy(path)) {
        "" => format!("{what} said nothing"),
        text => format!("{what} said last:\n{text}\n"),
    };
    format!(
        "{}; {}",
        quote("QEMU", log),
        quote("the guest's console", console)
    )
}

fn read_lossy(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn tail(text: &str) -> &str {
    let text = text.trim();
    let from = text.ceil_char_boundary(text.len().saturating_sub(TAIL));
    &text[from..]
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
