//! The process that the user starts where another serves the VM: it holds what outlives that one, and starts
//! the next.

use std::cell::RefCell;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;
use clap::ValueEnum as _;
use confine::Needs;
use keeper::{Ended, Event, Keeper, Rate, Store, Which};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::Run;
use super::programs::Programs;

/// The exit status of a worker that says that no other can do better.
pub(super) const GIVEN_UP: u8 = 70;
const _: () = assert!(GIVEN_UP as i32 == keeper::GIVEN_UP);

/// Who serves now, and whether it is to end.
#[derive(Debug, Default)]
struct Serving {
    pid: Option<Pid>,
    told_to_end: bool,
}

/// Has workers serve the VM until one ends of its own accord, or this process is told to.
pub(super) fn run(rate: Rate, args: &Run) -> anyhow::Result<ExitCode> {
    let store = Store::find().context(
        "the service manager that started this process (NOTIFY_SOCKET) cannot hold what outlives it",
    )?;
    let stored = store.is_some();
    // It starts programs, which need what it was started with; for itself it needs nothing.
    if !args.keep_privileges_for_debugging {
        confine::confine(&Needs {
            starts_servers: true,
            ..Needs::default()
        })?;
    }
    room_for_descriptors()?;
    let serving = Arc::<Mutex<Serving>>::default();
    pass_signals_on(&serving)?;
    let lock = || serving.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = RefCell::new(Programs::begin()?);
    let mut worker = |which: Which| {
        let command = programs.borrow_mut().command(which);
        (!lock().told_to_end).then(|| with_arguments(command, args, stored))
    };
    let mut tell = |event| match event {
        Event::Started { pid } => {
            let mut serving = lock();
            serving.pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            tracing::info!(pid, "a process serves the VM");
            if serving.told_to_end {
                end(&serving);
            }
        }
        Event::Serves { which } => programs.borrow_mut().serves(which),
        Event::Ended => lock().pid = None,
        Event::Died { .. } => {}
    };
    let mut keeper = match store {
        Some((store, held)) => Keeper::with_store(rate, store, held),
        None => Keeper::new(rate),
    };
    match keeper.run(&mut worker, &mut tell)? {
        Ended::Exited(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ended::Unwanted => Ok(ExitCode::SUCCESS),
    }
}

/// As many as it may hold. Workers inherit the limit, and need as many themselves.
fn room_for_descriptors() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    Ok(())
}

fn with_arguments(mut command: Command, args: &Run, stored: bool) -> Command {
    let Run {
        config,
        unsound_control,
        keep_privileges_for_debugging,
        kept: _,
        stored: _,
    } = args;
    command.arg("run").arg("--kept");
    if stored {
        command.arg("--stored");
    }
    if let Some(law) = unsound_control.and_then(|law| law.to_possible_value()) {
        command.args(["--unsound-control", law.get_name()]);
    }
    if *keep_privileges_for_debugging {
        command.arg("--keep-privileges-for-debugging");
    }
    command.arg("--").arg(config);
    command
}

/// Who is told to end has its worker end, which ends QEMU's connections in order, unless somebody holds them.
fn pass_signals_on(serving: &Arc<Mutex<Serving>>) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let serving = Arc::clone(serving);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                let mut serving = serving.lock().unwrap_or_else(PoisonError::into_inner);
                serving.told_to_end = true;
                end(&serving);
            }
        })?;
    Ok(())
}

fn end(serving: &Serving) {
    if let Some(pid) = serving.pid {
        // One that has ended meanwhile needs not be told.
        let _ = kill_process(pid, Signal::TERM);
    }
}
