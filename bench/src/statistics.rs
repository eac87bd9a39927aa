//! Order statistics of small samples.

use serde::Serialize;

/// What is said of a measure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns nothing for an empty sample.
    pub(crate) fn of(sample: &[f64]) -> Option<Self> {
        let sorted = sorted(sample);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, min, max })
    }
}

/// Returns the smallest value that at least `percent` of the sample do not exceed (nearest rank).
pub(crate) fn percentile(sample: &[f64], percent: u8) -> Option<f64> {
    let rank = (sample.len() * usize::from(percent)).div_ceil(100).max(1);
    sorted(sample).get(rank - 1).copied()
}

/// Returns the arithmetic mean.
pub(crate) fn mean(sample: &[f64]) -> Option<f64> {
    (!sample.is_empty()).then(|| sample.iter().sum::<f64>() / sample.len() as f64)
}

fn sorted(sample: &[f64]) -> Vec<f64> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_sample_lies_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn the_median_of_an_odd_sample_is_one_of_it() {
        assert_eq!(Spread::of(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn an_empty_sample_has_no_statistics() {
        assert_eq!((Spread::of(&[]), percentile(&[], 99), mean(&[])), (None, None, None));
    }

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 99), Some(99.0));
        assert_eq!(percentile(&hundred, 100), Some(100.0));
        assert_eq!(percentile(&[5.0, 7.0], 50), Some(5.0));
        assert_eq!(percentile(&[5.0, 7.0], 0), Some(5.0));
    }
}
