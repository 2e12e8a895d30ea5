//! The peer's accounts.

use load_format::{Arrival, Checked, Gap, Numbered, Run, Sequence, Silence};

use super::report::{
    Activity, IcmpReport, Loss, Moves, PeerReport, RoundTrips, TcpReport, UdpFromGuest, UdpToGuest,
    WindowReport,
};
use super::times::{SendLog, Times};
use crate::{Port, SwitchReport};

/// What is told as a silence, in ns: twenty times what a guest's program sleeps between two looks.
const SILENCE: u64 = 20_000_000;

/// All that the peer counts. Its memory is bounded.
#[derive(Debug)]
pub(crate) struct Ledger {
    since_nanos: u64,
    udp_sent: u64,
    udp_send_log: SendLog,
    /// The highest number that the guest said it had.
    udp_seen: Option<u64>,
    udp_seen_times: Times,
    udp_from_guest: Sequence,
    udp_times: Times,
    pub(super) udp_corrupt: u64,
    echoes_sent: u64,
    echoes: Sequence,
    echo_times: Times,
    round_trips: Spread,
    pub(super) icmp_corrupt: u64,
    tcp: TcpLedger,
    pub(super) foreign: u64,
    moves: Moves,
}

/// The accounts of the TCP transfer.
#[derive(Debug, Default)]
pub(super) struct TcpLedger {
    report: TcpReport,
    times: Times,
    acknowledged_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Spread {
    min: u64,
    max: u64,
    sum: u128,
    count: u64,
}

impl Ledger {
    pub(crate) fn new(now_nanos: u64) -> Self {
        Self {
            since_nanos: now_nanos,
            udp_sent: 0,
            udp_send_log: SendLog::default(),
            udp_seen: None,
            udp_seen_times: Times::default(),
            udp_from_guest: Sequence::default(),
            udp_times: Times::default(),
            udp_corrupt: 0,
            echoes_sent: 0,
            echoes: Sequence::default(),
            echo_times: Times::default(),
            round_trips: Spread::default(),
            icmp_corrupt: 0,
            tcp: TcpLedger::default(),
            foreign: 0,
            moves: Moves::default(),
        }
    }

    /// Sets all counts to 0; what is needed to notice the next loss and to answer questions about
    /// earlier windows stays.
    pub(super) fn start_window(&mut self, now_nanos: u64) {
        self.since_nanos = now_nanos;
        self.udp_sent = 0;
        self.udp_from_guest.start_window();
        self.udp_corrupt = 0;
        self.echoes_sent = 0;
        self.echoes.start_window();
        self.round_trips = Spread::default();
        self.icmp_corrupt = 0;
        self.foreign = 0;
        self.moves.count = 0;
        self.tcp.start_window();
        for times in [
            &mut self.udp_seen_times,
            &mut self.udp_times,
            &mut self.echo_times,
        ] {
            times.start_window();
        }
    }

    pub(super) fn udp_sent(&mut self, now_nanos: u64) {
        self.udp_sent += 1;
        self.udp_send_log.note(now_nanos);
    }

    pub(super) fn udp_received(&mut self, packet: &Numbered, now_nanos: u64) {
        let arrival = self
            .udp_from_guest
            .arrive(packet.stream, packet.number, now_nanos);
        if arrival != Arrival::Before {
            self.udp_times.note(now_nanos);
        }
        // Only numbers that were sent count, whatever the guest says.
        let Some(seen) = packet
            .seen
            .filter(|seen| self.udp_send_log.sent_at(seen.number).is_some())
        else {
            return;
        };
        if self.udp_seen.is_none_or(|before| seen.number > before) {
            self.udp_seen = Some(seen.number);
            self.udp_seen_times
                .note(now_nanos.saturating_sub(seen.age_nanos));
        }
    }

    pub(super) fn echo_sent(&mut self) {
        self.echoes_sent += 1;
    }

    pub(super) fn echo_answered(&mut self, packet: &Numbered, now_nanos: u64) {
        self.echo_times.note(now_nanos);
        let arrival = self.echoes.arrive(packet.stream, packet.number, now_nanos);
        if matches!(arrival, Arrival::New | Arrival::Late) {
            self.round_trips
                .note(now_nanos.saturating_sub(packet.sent_nanos));
        }
    }

    /// Notes at which wire the guest's address is.
    pub(super) fn guest_at(&mut self, port: Port, now_nanos: u64) {
        if self
            .moves
            .port
            .replace(port)
            .is_some_and(|before| before != port)
        {
            self.moves.count += 1;
            self.moves.last_nanos = Some(now_nanos);
        }
    }

    pub(super) fn tcp_mut(&mut self) -> &mut TcpLedger {
        &mut self.tcp
    }

    pub(super) fn sent_at(&self, number: u64) -> Option<u64> {
        self.udp_send_log.sent_at(number)
    }

    pub(super) fn activity(&self) -> Activity {
        Activity {
            udp_from_guest: self.udp_times.last(),
            udp_to_guest: self.udp_seen_times.last(),
            icmp: self.echo_times.last(),
            tcp_to_guest: self.tcp.acknowledged_at,
            tcp_from_guest: self.tcp.times.last(),
        }
    }

    pub(super) fn report(&self, now_nanos: u64, switch: SwitchReport) -> PeerReport {
        let udp = &self.udp_from_guest;
        PeerReport {
            since_nanos: self.since_nanos,
            until_nanos: now_nanos,
            udp_to_guest: UdpToGuest {
                sent: self.udp_sent,
                highest_received: self.udp_seen,
                longest_silence: self.udp_seen_times.longest(now_nanos),
            },
            udp_from_guest: UdpFromGuest {
                received: udp.received(),
                lost: udp.lost(),
                gaps: udp.gaps().copied().collect(),
                duplicates: udp.duplicates(),
                reordered: udp.reordered(),
                corrupt: self.udp_corrupt,
                restarts: udp.restarts(),
                longest_silence: self.udp_times.longest(now_nanos),
            },
            icmp: IcmpReport {
                sent: self.echoes_sent,
                answered: self.echoes.received(),
                lost: self.echoes.lost(),
                duplicates: self.echoes.duplicates(),
                reordered: self.echoes.reordered(),
                corrupt: self.icmp_corrupt,
                round_trips: self.round_trips.report(),
                longest_silence: self.echo_times.longest(now_nanos),
            },
            tcp: TcpReport {
                longest_silence: self.tcp.times.longest(now_nanos),
                ..self.tcp.report.clone()
            },
            foreign_frames: self.foreign,
            moves: self.moves,
            switch,
        }
    }

    pub(super) fn window(&self, since: u64, until: u64, now: u64) -> WindowReport {
        let lost = |sequence: &Sequence| {
            let within = |gap: &&Gap| gap.before_nanos < until && gap.after_nanos > since;
            sequence
                .gaps()
                .filter(within)
                .map(Gap::len)
                .fold(0, u64::saturating_add)
        };
        let silences = [&self.udp_times, &self.udp_seen_times]
            .into_iter()
            .flat_map(|times| times.silences_within(since, until, now))
            .filter(|silence| silence.nanos() >= SILENCE);
        WindowReport {
            since_nanos: since,
            until_nanos: until,
            udp_silences: silences.collect(),
            udp_from_guest: self.udp_times.longest_within(since, until, now),
            udp_to_guest: self.udp_seen_times.longest_within(since, until, now),
            icmp: self.echo_times.longest_within(since, until, now),
            tcp: self.tcp.times.longest_within(since, until, now),
            udp_lost_from_guest: lost(&self.udp_from_guest),
            icmp_lost: lost(&self.echoes),
        }
    }

    pub(super) fn loss_from_guest(&self, outages: &[Silence], slack_nanos: u64) -> Loss {
        let sequence = &self.udp_from_guest;
        let forgotten = Loss {
            inside: 0,
            outside: sequence.lost_in_forgotten_gaps(),
        };
        sequence.gaps().fold(forgotten, |loss, gap| {
            let missed = gap.silence();
            let inside = outages
                .iter()
                .any(|outage| outage.covers(&missed, slack_nanos));
            loss + if inside {
                Loss {
                    inside: gap.len(),
                    outside: 0,
                }
            } else {
                Loss {
                    inside: 0,
                    outside: gap.len(),
                }
            }
        })
    }

    pub(super) fn loss_to_guest(
        &self,
        runs: &[Run],
        outages: &[Silence],
        slack_nanos: u64,
    ) -> Loss {
        let in_outage = |sent: &u64| {
            let moment = Silence {
                from_nanos: *sent,
                to_nanos: *sent,
            };
            outages
                .iter()
                .any(|outage| outage.covers(&moment, slack_nanos))
        };
        runs.iter().fold(Loss::default(), |loss, run| {
            let sent = self.udp_send_log.known(run.first, run.last);
            let inside = sent.filter(in_outage).count() as u64;
            loss + Loss {
                inside,
                outside: run.count().saturating_sub(inside),
            }
        })
    }
}

impl TcpLedger {
    pub(super) fn connected(&mut self) {
        self.report.connected = true;
        self.report.connections += 1;
    }

    pub(super) fn closed(&mut self) {
        self.report.connected = false;
        self.report.closed += 1;
    }

    pub(super) fn received(&mut self, bytes: usize, checked: Checked, now_nanos: u64) {
        self.times.note(now_nanos);
        self.report.from_guest_bytes += bytes as u64;
        self.report.wrong_bytes += checked.wrong;
        self.report.first_wrong = self.report.first_wrong.or(checked.first_wrong);
    }

    pub(super) fn acknowledged(&mut self, bytes: u64, now_nanos: u64) {
        if bytes > 0 {
            self.acknowledged_at = Some(now_nanos);
            self.report.to_guest_bytes += bytes;
        }
    }

    fn start_window(&mut self) {
        self.report = TcpReport {
            connected: self.report.connected,
            ..TcpReport::default()
        };
        self.times.start_window();
    }
}

impl Spread {
    fn note(&mut self, nanos: u64) {
        self.min = if self.count == 0 {
            nanos
        } else {
            self.min.min(nanos)
        };
        self.max = self.max.max(nanos);
        self.sum += u128::from(nanos);
        self.count += 1;
    }

    fn report(&self) -> Option<RoundTrips> {
        let mean = self.sum.checked_div(self.count.into())?;
        Some(RoundTrips {
            min_nanos: self.min,
            mean_nanos: u64::try_from(mean).unwrap_or(u64::MAX),
            max_nanos: self.max,
        })
    }
}

#[cfg(test)]
mod tests;
