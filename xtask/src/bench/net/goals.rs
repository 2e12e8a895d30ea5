//! How far vferry's NIC is from what it should be, and what keeps it there.

use std::fmt::Write;

use super::super::scatter::nine_in_ten;
use super::super::spent::{self, Rates, Shares, WHO};
use super::super::{Breakdown, goal, median, ratios};
use super::{ECHO, ECHOES, EMULATED, NICS, OURS, OfNics, QUANTITIES, Runs, VIRTIO};

/// Of QEMU's own NICs that are emulated, and of its virtio-net.
const OF_EMULATED: f64 = 1.5;
const OF_VIRTIO: f64 = 1.0;
/// A NIC that carries less than one part in so many of what vferry's does carries next to nothing: how much less is
/// no measure of either.
const NEXT_TO_NONE: f64 = 100.0;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) runs: &'a Runs,
    pub(super) shares: &'a [OfNics<Shares>],
    /// What each did for an echo.
    pub(super) echoes: &'a OfNics<Rates>,
}

/// vferry's beside another's, more of it being better.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Beside {
    Times(Times),
    /// The other carries next to nothing.
    NextToNone,
}

/// So many times as much.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    is: f64,
    /// Where that lies in nine of ten measurements.
    between: [f64; 2],
    /// What it would be if vferry took no time.
    could_be: f64,
}

pub(super) fn goals(seen: Seen<'_>) -> Vec<String> {
    let all: Vec<_> = (0..seen.runs.len()).collect();
    let without_echo: Vec<_> = all.iter().copied().filter(|at| *at != ECHO).collect();
    let emulated = EMULATED.map(|other| seen.against(other, OF_EMULATED, &all));
    let virtio = seen.against(VIRTIO, OF_VIRTIO, &without_echo);
    emulated.into_iter().chain([virtio]).collect()
}

/// What a NIC would do in a second in which its vCPU waits for nobody: what the guest's kernel leaves to win.
pub(super) fn per_vcpu_second(quantity: usize, values: &[f64], shares: &[Shares]) -> Vec<f64> {
    let units = |value: f64| {
        if quantity == ECHO {
            f64::from(ECHOES)
        } else {
            value
        }
    };
    let each = values.iter().zip(shares);
    each.map(|(value, shares)| units(*value) / (shares[spent::VCPU] / 100.0))
        .collect()
}

/// What an echo takes of whom, and how often each has to be woken for it.
pub(super) fn echoes(echoes: &OfNics<Rates>) -> [Breakdown; 2] {
    let rows = |of: fn(&Rates) -> [f64; WHO.len()]| {
        let row = |(nic, rates): (usize, &Vec<Rates>)| {
            let median_of = |who: usize| median_of(rates, |rates| of(rates)[who]);
            let values = (0..WHO.len()).map(median_of).collect();
            (NICS[nic].name.to_owned(), values)
        };
        echoes.iter().enumerate().map(row).collect()
    };
    let breakdown = |what: &str, rows| Breakdown {
        what: what.into(),
        columns: WHO.to_vec(),
        rows,
    };
    [
        breakdown(
            "processor time for an echo, beyond what each takes while nothing flows, microseconds; medians",
            rows(|rates| rates.micros),
        ),
        breakdown(
            "how often somebody of each is woken for an echo, beyond how often while nothing flows; medians",
            rows(|rates| rates.wakes),
        ),
    ]
}

fn median_of(rates: &[Rates], of: impl Fn(&Rates) -> f64) -> f64 {
    median(&rates.iter().map(of).collect::<Vec<_>>())
}

impl Seen<'_> {
    fn beside(&self, quantity: usize, other: usize) -> Beside {
        let (ours, others) = (&self.runs[quantity][OURS], &self.runs[quantity][other]);
        let (is, could_be) = if quantity == ECHO {
            let least = ours.iter().zip(&self.echoes[OURS]);
            let least: Vec<_> = least
                .map(|(echo, rates)| echo - rates.micros[spent::VFERRY])
                .collect();
            (ratios(others, ours), ratios(others, &least))
        } else {
            let free = per_vcpu_second(quantity, ours, &self.shares[quantity][OURS]);
            (ratios(ours, others), ratios(&free, others))
        };
        if median(&is) >= NEXT_TO_NONE {
            return Beside::NextToNone;
        }
        Beside::Times(Times {
            is: median(&is),
            between: nine_in_ten(&[&is], |medians| medians[0]),
            could_be: median(&could_be),
        })
    }

    fn against(&self, other: usize, goal_is: f64, quantities: &[usize]) -> String {
        let name = NICS[other].name;
        let beside = quantities.iter().map(|at| (*at, self.beside(*at, other)));
        let beside: Vec<_> = beside.collect();
        let times = beside.iter().filter_map(|(at, beside)| match beside {
            Beside::Times(times) => Some((*at, *times)),
            Beside::NextToNone => None,
        });
        let times: Vec<_> = times.collect();
        let least = times.iter().min_by(|a, b| a.1.is.total_cmp(&b.1.is));
        let (at, is) = least.map_or((0, f64::NAN), |(at, times)| (*at, times.is));
        let missed = times.iter().filter(|(_, times)| times.is < goal_is);
        let (open, closed): (Vec<_>, Vec<_>) =
            missed.partition(|(_, times)| times.could_be >= goal_is);
        let (chance, open): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|(_, times)| times.between[1] >= goal_is);
        let all: Vec<_> = beside.iter().map(|(_, beside)| beside.tell(name)).collect();
        let mut text = format!(
            "That is the least, of: {}. All, in the order of the tables, and in brackets where they lie in nine of ten \
             measurements, and what they would be if vferry's vCPU waited for nobody, or for an echo vferry's \
             threads took no time: {}.",
            QUANTITIES[at],
            all.join(", ")
        );
        if !closed.is_empty() {
            let _ = write!(
                text,
                " With no device behind vfio-user is {goal_is} times {name} to be had here of: {}. There takes too much of \
                 the time what is not vferry's: the guest's kernel, which is translated, its driver, for an echo QEMU's \
                 threads and the peer, too.",
                names(&closed)
            );
        }
        if !chance.is_empty() {
            let _ = write!(text, " Missed by no more than chance: {}.", names(&chance));
        }
        if !open.is_empty() {
            let _ = write!(text, " Missed and left to win: {}.", names(&open));
        }
        if times.len() < beside.len() {
            let _ = write!(
                text,
                " Where {name} carries next to nothing, that says nothing of vferry, and does not count."
            );
        }
        let what = format!("at least {goal_is} times {name}");
        goal(&what, is, is >= goal_is, &text)
    }
}

impl Beside {
    fn tell(self, other: &str) -> String {
        match self {
            Self::Times(Times {
                is,
                between: [low, high],
                could_be,
            }) => format!("{is:.2} ({low:.2} to {high:.2}; {could_be:.2})"),
            Self::NextToNone => format!("next to nothing by {other}"),
        }
    }
}

/// Without their units.
fn names(quantities: &[(usize, Times)]) -> String {
    let short = |(at, _): &(usize, Times)| {
        let name = QUANTITIES[*at];
        name.split(',').next().unwrap_or(name)
    };
    let names: Vec<_> = quantities.iter().map(short).collect();
    names.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// vferry's are twice as good, by a vCPU that waits for half of the time; of its echo of 2 us 1 is its device's.
    fn seen() -> (Runs, Vec<OfNics<Shares>>, OfNics<Rates>) {
        let mut runs: Runs = vec![Default::default(); QUANTITIES.len()];
        for (quantity, of_nics) in runs.iter_mut().enumerate() {
            for (nic, runs) in of_nics.iter_mut().enumerate() {
                let better = (nic == OURS) != (quantity == ECHO);
                runs.push(if better { 4.0 } else { 2.0 });
            }
        }
        let half = [50.0, 0.0, 0.0, 0.0];
        let shares = vec![std::array::from_fn(|_| vec![half]); QUANTITIES.len()];
        let rates = Rates {
            micros: [1.0, 0.5, 0.5, 0.25],
            wakes: [1.0, 2.0, 2.0, 1.0],
        };
        (runs, shares, std::array::from_fn(|_| vec![rates]))
    }

    fn told((runs, shares, echoes): &(Runs, Vec<OfNics<Shares>>, OfNics<Rates>)) -> Vec<String> {
        goals(Seen {
            runs,
            shares,
            echoes,
        })
    }

    #[test]
    fn an_echo_is_better_when_it_is_shorter() {
        let mut measured = seen();
        for goal in told(&measured) {
            assert!(goal.contains("Found: 2.000; met"), "{goal}");
            assert!(goal.contains("2.00 (2.00 to 2.00; 4.00)"), "{goal}");
        }
        measured.0[4][OURS][0] = 0.5;
        for goal in told(&measured) {
            assert!(goal.contains("Found: 0.250; **missed**"), "{goal}");
            assert!(goal.contains(QUANTITIES[4]), "{goal}");
        }
    }

    #[test]
    fn what_takes_too_long_without_vferry_is_out_of_reach() {
        let mut measured = seen();
        // Of 3 us that vferry's takes half a one is its own: at most 4 : 2.5.
        measured.0[ECHO][OURS][0] = 3.0;
        let [igb, ..] = &told(&measured)[..] else {
            panic!("there are three");
        };
        assert!(igb.contains("Found: 1.333; **missed**"), "{igb}");
        assert!(igb.ends_with("left to win: an echo."), "{igb}");
        measured.2[OURS][0].micros = [2.8, 0.2, 0.1, 0.2];
        let [igb, ..] = &told(&measured)[..] else {
            panic!("there are three");
        };
        assert!(igb.contains("to be had here of: an echo."), "{igb}");
    }

    #[test]
    fn what_is_as_often_met_is_missed_by_chance() {
        let mut measured = seen();
        for nic in 0..NICS.len() {
            measured.0[0][nic] = vec![2.0; 3];
        }
        measured.0[0][OURS] = vec![2.9, 2.9, 4.0];
        measured.1[0][OURS] = vec![[50.0, 0.0, 0.0, 0.0]; 3];
        let [igb, ..] = &told(&measured)[..] else {
            panic!("there are three");
        };
        assert!(igb.contains("1.45 (1.45 to 2.00; 2.90)"), "{igb}");
        assert!(igb.contains("no more than chance: "), "{igb}");
    }

    #[test]
    fn a_nic_that_carries_nothing_is_not_compared() {
        let mut measured = seen();
        measured.0[5][EMULATED[0]][0] = 0.0;
        measured.0[7][EMULATED[0]][0] = 0.01;
        measured.0[8][EMULATED[0]][0] = 3.0;
        let [igb, e1000e, _] = &told(&measured)[..] else {
            panic!("there are three");
        };
        assert!(
            igb.contains("next to nothing by igb, 1.33 (1.33 to 1.33; 2.67)"),
            "{igb}"
        );
        assert!(igb.contains("Found: 1.333; **missed**"), "{igb}");
        assert!(igb.contains("does not count"), "{igb}");
        assert!(!e1000e.contains("next to nothing"), "{e1000e}");
        for goal in told(&measured) {
            assert!(!goal.contains("inf") && !goal.contains("NaN"), "{goal}");
        }
    }
}
