//! What those do today who cannot migrate a function: the guest has a standby interface, QEMU takes the
//! function from it before it migrates, and gives it the other host's afterwards.

use std::time::Instant;

use anyhow::{Error, Result, ensure};
use serde::Serialize;
use uplink::peer::now_nanos;

use super::{LOOK, MAC, MIGRATION, Nested, NestedHost};
use crate::migration::ms;

/// Has the guest tell on its console when its function comes and goes, by the driver's and the
/// link's word.
const TELL: &str = r#"(
    was=
    while :; do
        now=gone
        for carrier in /sys/bus/pci/drivers/igbvf/0000:*/net/*/carrier; do
            read -r state < $carrier && test "$state" = 1 && now=here
        done
        test "$now" = "$was" || echo "function $now" > /dev/console
        was=$now
        usleep 20000
    done
) > /dev/null 2>&1 &"#;
/// The address of a function that no guest has.
const NOBODYS: &str = "52:54:00:aa:bb:fe";
const HERE: &str = "function here";
const GONE: &str = "function gone";

/// What the kernel says of an interface that is to go while somebody has it, every ten seconds
/// (`netdev_wait_allrefs_any`).
const HELD: &str = "unregister_netdevice: waiting for";
/// After so many times nobody gives it back any more.
const HELD_FOR_GOOD: usize = 4;

/// The guest's kernel does not let its function go. Seen in two migrations of some sixteen, with Linux 7.3.
#[derive(Debug, thiserror::Error)]
#[error(
    "the guest's kernel does not let its function go, as somebody has its interface (`unregister_netdevice: waiting \
     for it to become free`), and QEMU waits for it without end"
)]
pub struct NeverGone;

/// One migration in which the function was unplugged and another plugged.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Replug {
    /// How long the guest had no function, in milliseconds.
    pub function_outage_ms: f64,
    /// The longest silence of its traffic meanwhile, either way, which the standby interface carries.
    pub silence_ms: Option<f64>,
}

impl Nested {
    /// Has the guest of a host with [`Way::Failover`](super::Way::Failover) tell when its function comes
    /// and goes. To be called once.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn watch_function(&mut self) -> Result<()> {
        self.shell(TELL)?;
        let deadline = Instant::now() + MIGRATION;
        self.wait_console(self.at, HERE, deadline)
    }

    /// Moves such a guest to the other host, under load, and ends what it leaves behind.
    ///
    /// # Errors
    /// When it does not arrive, or gets no function there; by a [`NeverGone`] if it is that, of which nothing is
    /// left but the guest.
    pub fn replug(&mut self) -> Result<Replug> {
        let replug = self.try_replug();
        if replug.as_ref().is_err_and(Error::is::<NeverGone>) {
            self.there().end()?;
            self.here().set_mac(MAC)?;
        }
        replug
    }

    fn try_replug(&mut self) -> Result<Replug> {
        let next = self.prepare_next()?;
        self.wait_for_traffic()?;
        let since = now_nanos();
        let deadline = Instant::now() + MIGRATION;
        let (here, there) = (self.at, 1 - self.at);
        let to = self.hosts[there].address().to_owned();
        self.hosts[here].tell_monitor(&format!("migrate -d tcp:{to}:7801"))?;
        self.wait_console(here, GONE, deadline)?;
        let gone = Instant::now();
        // As those have to do who use this: else the NIC keeps the guest's frames for the function
        // that nobody has, and the standby interface gets none.
        self.hosts[here].set_mac(NOBODYS)?;
        self.wait_console(there, HERE, deadline)?;
        let function_outage_ms = gone.elapsed().as_secs_f64() * 1e3;
        self.arrived(next);
        self.wait_for_traffic()?;
        let window = self.peer.window(since, now_nanos());
        self.hosts[here].end()?;
        self.hosts[here].set_mac(MAC)?;
        Ok(Replug {
            function_outage_ms,
            silence_ms: window.outage().map(|silence| ms(&silence)),
        })
    }

    fn wait_console(&self, host: usize, word: &str, deadline: Instant) -> Result<()> {
        let host = &self.hosts[host];
        let last = || {
            let console = host.console();
            let mut told = console.lines().rev();
            let told = told.find(|line| line.starts_with("function "));
            told.map(|line| line.trim().to_owned())
        };
        while last().as_deref() != Some(word) {
            let late = || {
                let migrations = self.hosts.each_ref().map(NestedHost::migration_said);
                format!("{}\n{}", migrations.join("\n"), host.said())
            };
            let held = self.here().console().matches(HELD).count();
            ensure!(held < HELD_FOR_GOOD, NeverGone);
            let in_time = Instant::now() < deadline;
            ensure!(in_time, "the guest did not say `{word}`: {}", late());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
