//! The commands.

mod check;
mod kept;
mod migrate;
mod programs;
mod qemu_args;
mod rehearse;
mod resolve;
mod status;
mod upgrade;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferry::comparison::Comparison;
use ferry::{Controls, Strategy};

use crate::config::Config;
use crate::daemon::{self, Halted, Survival};
use crate::host::{Keeper, back};
use crate::told::told;

/// Live migration of QEMU virtual machines with their passed-through PCI devices.
#[derive(Debug, Parser)]
#[command(name = "vferry", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one VM's devices, until its QEMU ends. Start it before QEMU.
    Run(Run),
    /// Print the QEMU arguments that go with a configuration.
    QemuArgs(QemuArgs),
    /// Move a running VM to another host.
    Migrate(Migrate),
    /// Tell whether a VM could be moved to another host now, and how it would be. Touches nothing.
    Check(Check),
    /// Have the guest do its part of a migration without one: devices stop and start again.
    Rehearse(Rehearse),
    /// A migration ended without it being known which host runs the VM: tell what can be done.
    Resolve(Resolve),
    /// Tell how a VM's process is.
    Status(Status),
    /// Have the program that lies where `vferry run` was started from serve the VM from here on: a newer one, as a
    /// package has put it there. Where it cannot, the one that serves goes on. Needs a keeper.
    Upgrade(Upgrade),
    /// Give back what a run of this VM has changed on this host and nobody has given back: after both of
    /// its processes were killed. `vferry run` does the same first.
    GiveBack(GiveBack),
    /// What `vferry run` starts to give the host back.
    #[command(hide = true)]
    GiveBackRecord(GiveBackRecord),
}

#[derive(Debug, Args)]
struct Run {
    /// The VM's configuration file.
    config: PathBuf,
    /// UNSOUND, LOSES DATA: switch off one law of migration, to prove that the checks see it.
    #[arg(long, value_name = "LAW", hide_short_help = true)]
    unsound_control: Option<UnsoundControl>,
    /// UNPROTECTED, FOR DEBUGGING: keep all privileges that the process was started with, so that
    /// whoever takes it over by a fault has them too.
    #[arg(long, hide_short_help = true)]
    keep_privileges_for_debugging: bool,
    /// What the keeper starts.
    #[arg(long, hide = true)]
    kept: bool,
    /// What it holds outlives the keeper.
    #[arg(long, hide = true)]
    stored: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UnsoundControl {
    /// Mark dirty pages first and halt the devices afterwards.
    NaiveOrder,
    /// Do not log what devices write.
    NoLog,
}

#[derive(Debug, Args)]
struct QemuArgs {
    /// The VM's configuration file.
    config: PathBuf,
    /// For the destination: wait for the VM to arrive.
    #[arg(long)]
    incoming: bool,
    /// As a JSON array, instead of a line for the shell.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compare {
    /// A device whose writes nobody knows keeps the VM here.
    Never,
    /// If there is a device whose writes nobody knows.
    IfNeeded,
    /// Whatever is known.
    Always,
}

impl From<Compare> for Comparison {
    fn from(compare: Compare) -> Self {
        match compare {
            Compare::Never => Self::Never,
            Compare::IfNeeded => Self::IfNeeded,
            Compare::Always => Self::Always,
        }
    }
}

#[derive(Debug, Args)]
struct Migrate {
    /// The configuration file of the VM on this host.
    config: PathBuf,
    /// The `link` of the destination's configuration: `unix:PATH` or `tcp:ADDRESS:PORT`.
    #[arg(long)]
    to: String,
    /// Compare every page of guest memory at the destination with the source. Lengthens the pause.
    #[arg(long)]
    verify: bool,
    /// Whether guest memory is compared before the VM runs there, and what differs is sent: the last
    /// means to find what a device wrote. Lengthens the pause.
    #[arg(long, value_enum, default_value_t = Compare::IfNeeded)]
    compare: Compare,
    /// How the devices' state goes over; chosen by the check if left out.
    #[arg(long)]
    strategy: Option<Strategy>,
    /// Longest pause that QEMU may plan for its last pass, instead of the configuration's.
    #[arg(long, value_name = "MS")]
    downtime_limit_ms: Option<u64>,
    /// Print progress and result as JSON, one object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Check {
    /// The configuration file of the VM on this host.
    config: PathBuf,
    /// The `link` of the destination's configuration: `unix:PATH` or `tcp:ADDRESS:PORT`.
    #[arg(long)]
    to: String,
    /// As for `migrate`.
    #[arg(long, value_enum, default_value_t = Compare::IfNeeded)]
    compare: Compare,
    /// As for `migrate`.
    #[arg(long)]
    strategy: Option<Strategy>,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Rehearse {
    /// The VM's configuration file.
    config: PathBuf,
    /// How long the guest tracks what devices write before it stops them, to see what that costs.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    hold_ms: u64,
    /// How long the devices stay stopped, to see what notices.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    stopped_ms: u64,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Resolve {
    /// The configuration file of the VM on the host that keeps it paused.
    config: PathBuf,
    /// Let the VM run on here. Refused if the other host says that it runs the VM.
    #[arg(long, conflicts_with = "give_up_here")]
    run_here: bool,
    /// End this host's QEMU, as the other host runs the VM.
    #[arg(long)]
    give_up_here: bool,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Status {
    /// The VM's configuration file.
    config: PathBuf,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Upgrade {
    /// The VM's configuration file.
    config: PathBuf,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct GiveBack {
    /// The VM's configuration file.
    config: PathBuf,
}

#[derive(Debug, Args)]
struct GiveBackRecord {
    /// Where it is written what the host was.
    record: PathBuf,
    /// Only if it is this one's.
    #[arg(long)]
    owner: Option<String>,
    /// Once standard input ends; and however long somebody has a function.
    #[arg(long)]
    watch: bool,
    /// The exit status, if everything is given back.
    #[arg(long, default_value_t = 0)]
    status: u8,
}

/// Runs a command. Exit status: 0 done, 1 failed, 2 a wrong command line or configuration.
pub fn run(cli: Cli) -> ExitCode {
    let serving = matches!(cli.command, Command::Run(_) | Command::GiveBackRecord(_));
    start_log(serving);
    let path = match &cli.command {
        Command::GiveBackRecord(args) => return args.run(),
        Command::Run(run) if run.kept => return run.run_kept(),
        Command::Run(run) => &run.config,
        Command::QemuArgs(args) => &args.config,
        Command::Migrate(migrate) => &migrate.config,
        Command::Check(check) => &check.config,
        Command::Rehearse(rehearse) => &rehearse.config,
        Command::Resolve(resolve) => &resolve.config,
        Command::Status(status) => &status.config,
        Command::Upgrade(upgrade) => &upgrade.config,
        Command::GiveBack(args) => &args.config,
    };
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Run(run) => return run.run(config),
        Command::GiveBack(_) => back::by_hand(&config),
        // It has no configuration.
        Command::GiveBackRecord(args) => return args.run(),
        Command::QemuArgs(args) => qemu_args::print(&config, args.incoming, args.json),
        Command::Migrate(migrate) => migrate::migrate(&config, &migrate),
        Command::Check(check) => check::check(&config, &check),
        Command::Rehearse(rehearse) => rehearse::rehearse(&config, &rehearse),
        Command::Resolve(resolve) => resolve::resolve(&config, &resolve),
        Command::Status(status) => status::print(&config, status.json),
        Command::Upgrade(upgrade) => upgrade::upgrade(&config, upgrade.json),
    };
    ExitCode::from(status(result))
}

fn status(result: anyhow::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            // Nothing hangs on whether that is read: a host may still have to be given back.
            let _ = writeln!(std::io::stderr(), "vferry: {}", told(&error));
            1
        }
    }
}

impl GiveBackRecord {
    fn run(&self) -> ExitCode {
        let owner = self.owner.as_deref();
        let given = if self.watch {
            back::watch(&self.record, owner)
        } else {
            back::after_run(&self.record, owner, self.status)
        };
        given.unwrap_or_else(|error| ExitCode::from(status(Err(error))))
    }
}

impl Run {
    fn run(&self, config: Config) -> ExitCode {
        if let Some(replaced) = config.keeper {
            let kept = kept::run(replaced.rate, self);
            return kept.unwrap_or_else(|error| ExitCode::from(status(Err(error))));
        }
        self.serve(config, None)
    }

    /// Serves as the worker of a keeper, by the configuration of the first one.
    fn run_kept(&self) -> ExitCode {
        let begun = Survival::begin(&self.config, self.stored).and_then(|(survival, text)| {
            let config = Config::parse(&self.config, &text)?;
            Ok((survival, config))
        });
        match begun {
            Ok((survival, config)) => self.serve(config, Some(survival)),
            Err(error) => {
                let is_final = error.is::<Halted>();
                let code = status(Err(error));
                ExitCode::from(if is_final { kept::GIVEN_UP } else { code })
            }
        }
    }

    fn serve(&self, config: Config, survival: Option<Survival>) -> ExitCode {
        let keeper = Arc::new(Keeper::new(&config));
        let confinement = if self.keep_privileges_for_debugging {
            daemon::Confinement::None
        } else {
            daemon::Confinement::Full
        };
        let result = daemon::run(config, &keeper, self.controls(), confinement, survival);
        keeper.finish(status(result))
    }

    fn controls(&self) -> Controls {
        Controls {
            naive_order: matches!(self.unsound_control, Some(UnsoundControl::NaiveOrder)),
            no_log: matches!(self.unsound_control, Some(UnsoundControl::NoLog)),
        }
    }
}

/// To standard error; `VFERRY_LOG` chooses what, as in `VFERRY_LOG=ferry=debug`.
fn start_log(serving: bool) {
    use tracing_subscriber::EnvFilter;
    let default = if serving { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("VFERRY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Not into a file or a journal.
        .with_ansi(std::io::stderr().is_terminal())
        // A standard error that nobody reads any more ends no process that serves a VM.
        .log_internal_errors(false)
        .init();
}
