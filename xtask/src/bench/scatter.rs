//! How far a number made of medians might lie elsewhere, had the same been measured once more.

use super::median;

/// How often runs are drawn anew.
const DRAWS: usize = 2000;
/// Of the draws, what is left out at each end: nine in ten are between.
const LEFT_OUT: usize = DRAWS / 20;

/// Between which two values nine in ten of those are that `number` makes of the medians of `samples`, where each
/// sample is drawn anew from its own runs, as many as there are (the bootstrap, by percentiles). Of the same runs
/// it is always the same.
pub(super) fn nine_in_ten(samples: &[&[f64]], number: impl Fn(&[f64]) -> f64) -> [f64; 2] {
    if samples.iter().any(|runs| runs.is_empty()) {
        return [f64::NAN; 2];
    }
    let mut draws = Draws(0);
    let mut made: Vec<_> = (0..DRAWS)
        .map(|_| {
            let medians: Vec<_> = samples.iter().map(|runs| draws.median(runs)).collect();
            number(&medians)
        })
        .collect();
    made.sort_by(f64::total_cmp);
    [made[LEFT_OUT], made[DRAWS - 1 - LEFT_OUT]]
}

/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014).
struct Draws(u64);

impl Draws {
    fn median(&mut self, runs: &[f64]) -> f64 {
        let drawn: Vec<_> = runs.iter().map(|_| runs[self.below(runs.len())]).collect();
        median(&drawn)
    }

    /// Its bias is some 2^-60.
    #[expect(clippy::cast_possible_truncation, reason = "below `end`")]
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z % end as u64) as usize
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values are exact")]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_scatter_is_where_it_is() {
        let ratio = |medians: &[f64]| medians[0] / medians[1];
        assert_eq!(nine_in_ten(&[&[6.0; 4], &[3.0; 5]], ratio), [2.0; 2]);
    }

    #[test]
    fn what_scatters_is_about_its_median_and_closer_with_more_runs() {
        // From 0 to 100, evenly.
        let runs = |count: u32| -> Vec<f64> {
            let each = |at| 100.0 * f64::from(at) / f64::from(count - 1);
            (0..count).map(each).collect()
        };
        let between = |count| nine_in_ten(&[&runs(count)], |medians| medians[0]);
        let ([few, many], [less, more]) = (between(9), between(101));
        assert!(few < less && less < 50.0, "{few} {less}");
        assert!(50.0 < more && more < many, "{more} {many}");
        // The median of n even values has a deviation of some 50 / sqrt(n).
        assert!(
            (more - less - 2.0 * 1.645 * 5.0).abs() < 4.0,
            "{less} {more}"
        );
    }
}
