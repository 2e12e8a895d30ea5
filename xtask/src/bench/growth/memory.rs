//! What grows with a guest's memory, and by how much more than it scatters.

use super::super::moves::{Move, PHASES};
use super::super::scatter::nine_in_ten;
use super::super::{Breakdown, Variant, goal, median};
use super::LINES;

/// What the outage may grow by, of what QEMU's own device's does.
const GOAL: f64 = 1.15;
/// In a row of [`split`]'s first, and the name of its last rows.
const WHOLE: [&str; 3] = ["the pause", "outage less pause", "outage"];
const FOR_EACH_GIB: &str = "more for each GiB";

/// Of a line through the outages of each round, by least squares.
pub(super) fn slopes(sizes: &[(u32, [&str; 2])], moves: &[Vec<Move>], line: usize) -> Vec<f64> {
    let of_line: Vec<_> = moves.iter().skip(line).step_by(LINES.len()).collect();
    let rounds = of_line.iter().map(|moves| moves.len()).min().unwrap_or(0);
    let slope = |round: usize| {
        let points = sizes.iter().zip(&of_line);
        let points = points.map(|((mib, _), moves)| (gib(*mib), moves[round].outage));
        steepness(&points.collect::<Vec<_>>())
    };
    (0..rounds).map(slope).collect()
}

fn gib(mib: u32) -> f64 {
    f64::from(mib) / 1024.0
}

fn steepness(points: &[(f64, f64)]) -> f64 {
    let count = points.iter().map(|_| 1.0).sum::<f64>();
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let products = points.iter().fold((0.0, 0.0), |(xy, xx), point| {
        let (dx, dy) = (point.0 - x, point.1 - y);
        (xy + dx * dy, xx + dx * dx)
    });
    products.0 / products.1
}

/// Where the outages are at each size, and how each part of them grows; then the same of vferry's pauses.
pub(super) fn split(sizes: &[(u32, [&str; 2])], moves: &[Vec<Move>]) -> [Breakdown; 2] {
    let micros = |moves: &[Move], of: &dyn Fn(&Move) -> f64| {
        1e3 * median(&moves.iter().map(of).collect::<Vec<_>>())
    };
    let whole = |moves: &[Move]| {
        vec![
            micros(moves, &|seen| seen.pause),
            micros(moves, &|seen| seen.outage - seen.pause),
            micros(moves, &|seen| seen.outage),
        ]
    };
    let phases = |moves: &[Move]| {
        let of = |phase: usize| {
            micros(moves, &|seen| {
                seen.phases.map_or(f64::NAN, |phases| phases[phase])
            })
        };
        (0..PHASES.len()).map(of).collect()
    };
    let line = |line: usize, of: &dyn Fn(&[Move]) -> Vec<f64>| {
        let names = sizes.iter().map(|(_, names)| names[line].to_owned());
        let moves = moves.iter().skip(line).step_by(LINES.len());
        let mut rows: Vec<_> = names.zip(moves.map(|moves| of(moves))).collect();
        let slope = slope_of(sizes, &rows);
        rows.push((format!("{}, {FOR_EACH_GIB}", LINES[line]), slope));
        rows
    };
    [
        Breakdown {
            what: "where the outage is, by guest memory, medians in microseconds".into(),
            columns: WHOLE.to_vec(),
            rows: [line(0, &whole), line(1, &whole)].concat(),
        },
        Breakdown {
            what: "where vferry's pause is, by guest memory, medians in microseconds".into(),
            columns: PHASES.iter().map(|phase| phase.name()).collect(),
            rows: line(1, &phases),
        },
    ]
}

/// Of each column, by a line through all sizes.
fn slope_of(sizes: &[(u32, [&str; 2])], rows: &[(String, Vec<f64>)]) -> Vec<f64> {
    let columns = rows.first().map_or(0, |(_, values)| values.len());
    let slope = |column: usize| {
        let points = sizes.iter().zip(rows);
        let points = points.map(|((mib, _), (_, values))| (gib(*mib), values[column]));
        steepness(&points.collect::<Vec<_>>())
    };
    (0..columns).map(slope).collect()
}

/// What the outage grows by from the least memory to the most, of what QEMU's own device's does.
pub(super) fn grown(
    outages: &[Variant],
    [their_slope, our_slope]: [f64; 2],
    [whole, phases]: &[Breakdown; 2],
) -> String {
    let [Some(ends), Some(our_ends)] = [0, 1].map(|line| ends(outages, line)) else {
        return String::new();
    };
    let growth = |[first, last]: [f64; 2]| last / first;
    let (theirs, ours) = (
        growth(ends.map(|end| end.median)),
        growth(our_ends.map(|end| end.median)),
    );
    let is = ours / theirs;
    let runs = [ends, our_ends].concat();
    let runs: Vec<_> = runs.iter().map(|end| &end.runs[..]).collect();
    let [from, to] = nine_in_ten(&runs, |medians| {
        (medians[3] / medians[2]) / (medians[1] / medians[0])
    });
    let said = match (from <= GOAL, to <= GOAL) {
        (true, true) => "so it is not by chance that it is met",
        (true, false) => "so these runs scatter by more than they could miss it by",
        (false, _) => "so it is not by chance that it is missed",
    };
    let floor = format!(
        "vferry's is {ours:.3} times as long at the most memory, virtio-net's {theirs:.3} times. Drawn anew from \
         the same runs ({} at each end) nine in ten of such ratios are from {from:.3} to {to:.3}, {said}. By a line \
         through all sizes vferry's outage is {our_slope:.2} ms longer for each GiB, virtio-net's {their_slope:.2} \
         ms. {}",
        our_ends[0].runs.len(),
        grows(whole, phases),
    );
    goal(
        "the outage grows with memory by 1.15 of what virtio-net's does or less",
        is,
        is <= GOAL,
        floor.trim(),
    )
}

/// At the least memory and at the most.
fn ends(outages: &[Variant], line: usize) -> Option<[&Variant; 2]> {
    let mut of_line = outages.iter().skip(line).step_by(LINES.len());
    Some([of_line.next()?, of_line.next_back()?])
}

/// Which part does, of the medians.
fn grows(whole: &Breakdown, phases: &Breakdown) -> String {
    let slope = |breakdown: &Breakdown, line: usize| {
        let name = format!("{}, {FOR_EACH_GIB}", LINES[line]);
        let row = breakdown.rows.iter().find(|(row, _)| *row == name);
        row.map_or_else(Vec::new, |(_, values)| values.clone())
    };
    let (theirs, ours, phase) = (slope(whole, 0), slope(whole, 1), slope(phases, 1));
    let most = phases
        .columns
        .iter()
        .zip(&phase)
        .max_by(|a, b| a.1.total_cmp(b.1));
    let ([their_pause, ..], [our_pause, rest, ..], Some((name, most))) =
        (&theirs[..], &ours[..], most)
    else {
        return String::new();
    };
    format!(
        "For each GiB vferry's pause is {} and virtio-net's {}; what grows most of vferry's is `{name}`, by {most:.0} \
         us. What comes after its pause is {}.",
        longer(*our_pause),
        longer(*their_pause),
        longer(*rest),
    )
}

fn longer(micros: f64) -> String {
    let which = if micros < 0.0 { "shorter" } else { "longer" };
    format!("{:.0} us {which}", micros.abs())
}

#[cfg(test)]
mod tests {
    use super::super::super::variants_of;
    use super::*;

    #[test]
    fn a_line_has_its_own_steepness() {
        let line = [(0.25, 10.5), (1.0, 12.0), (4.0, 18.0)];
        assert!((steepness(&line) - 2.0).abs() < 1e-9);
    }

    fn seen(pause: f64, outage: f64, phases: Option<[f64; PHASES.len()]>) -> Move {
        Move {
            pause,
            word: 0.0,
            outage,
            downtime: pause,
            without_function: None,
            phases,
            marked: None,
            still: None,
        }
    }

    const SIZES: [(u32, [&str; 2]); 2] = [(1024, ["a", "b"]), (3072, ["c", "d"])];

    #[test]
    fn what_grows_is_found_by_its_slope() {
        let moves = [
            vec![seen(4.0, 10.0, None)],
            vec![seen(5.0, 12.0, Some([0.0, 0.5, 2.0, 1.0, 1.5]))],
            vec![seen(4.5, 10.5, None)],
            vec![seen(6.0, 12.8, Some([0.0, 0.6, 2.8, 1.0, 1.6]))],
        ];
        let [whole, phases] = split(&SIZES, &moves);
        let last = |breakdown: &Breakdown| {
            let (_, values) = breakdown.rows.last().expect("there are some");
            values.iter().map(|value| value.round()).collect::<Vec<_>>()
        };
        assert_eq!(last(&whole), [500.0, -100.0, 400.0]);
        assert_eq!(last(&phases), [0.0, 50.0, 400.0, 0.0, 50.0]);
        let text = grows(&whole, &phases);
        assert!(text.contains("vferry's pause is 500 us longer and virtio-net's 250 us longer;"));
        assert!(text.contains("`copy`, by 400 us"), "{text}");
        assert!(text.contains("100 us shorter"), "{text}");
    }

    #[test]
    fn growth_is_compared_with_what_is_not_ours() {
        let nothing = || Breakdown {
            what: String::new(),
            columns: Vec::new(),
            rows: Vec::new(),
        };
        let at = |outages: [&[f64]; 4]| {
            let outages = outages.map(|ms| variants_of(vec![("", ms.to_vec())]).remove(0));
            grown(&outages, [0.0; 2], &[nothing(), nothing()])
        };
        let one = |outages: [f64; 4]| at(outages.each_ref().map(std::slice::from_ref));
        assert!(one([10.0, 20.0, 20.0, 46.0]).contains("Found: 1.150; met"));
        assert!(one([10.0, 20.0, 20.0, 46.0]).contains("not by chance that it is met"));
        let missed = one([10.0, 20.0, 20.0, 48.0]);
        assert!(missed.contains("Found: 1.200; **missed**"), "{missed}");
        assert!(
            missed.contains("not by chance that it is missed"),
            "{missed}"
        );
        let wide = at([&[10.0; 3], &[20.0; 3], &[20.0; 3], &[36.0, 48.0, 60.0]]);
        assert!(wide.contains("Found: 1.200; **missed**"), "{wide}");
        assert!(wide.contains("scatter by more"), "{wide}");
    }
}
