//! Round-trip times of echoes, as Submariner counts them (chapter 4.10).

use std::time::Duration;

/// After so many samples mean and deviation begin anew, so that they follow the path.
const WINDOW: u64 = 1000;

/// Statistics of one address. Mean and deviation are of the last 1000 samples at most, by Welford's method;
/// the others of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundTrips {
    sent: u64,
    received: u64,
    last: Option<Duration>,
    min: Option<Duration>,
    max: Option<Duration>,
    /// Samples in the window, their mean, and the sum of squared differences from it, in nanoseconds.
    samples: u64,
    mean: f64,
    squares: f64,
}

impl RoundTrips {
    pub(super) fn count_sent(&mut self) {
        self.sent += 1;
    }

    pub(super) fn add(&mut self, round_trip: Duration) {
        if self.samples == WINDOW {
            self.samples = 0;
            self.mean = 0.0;
            self.squares = 0.0;
            if let Some(last) = self.last {
                self.add_sample(last);
            }
        }
        self.add_sample(round_trip);
        self.received += 1;
        self.last = Some(round_trip);
        self.min = Some(self.min.map_or(round_trip, |min| min.min(round_trip)));
        self.max = Some(self.max.map_or(round_trip, |max| max.max(round_trip)));
    }

    fn add_sample(&mut self, round_trip: Duration) {
        let value = round_trip.as_nanos() as f64;
        self.samples += 1;
        let before = value - self.mean;
        self.mean += before / self.samples as f64;
        self.squares += before * (value - self.mean);
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the share of echoes without an answer, from 0 to 1; those under way count as lost.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { (self.sent - self.received) as f64 / self.sent as f64 }
    }

    pub fn last(&self) -> Option<Duration> {
        self.last
    }

    pub fn min(&self) -> Option<Duration> {
        self.min
    }

    pub fn max(&self) -> Option<Duration> {
        self.max
    }

    pub fn average(&self) -> Option<Duration> {
        (self.samples > 0).then(|| nanoseconds(self.mean))
    }

    /// Returns the standard deviation of the samples themselves, 0 for a single one.
    pub fn standard_deviation(&self) -> Option<Duration> {
        (self.samples > 0).then(|| nanoseconds((self.squares / self.samples as f64).sqrt()))
    }
}

/// A negative or absurd value, which rounding might give, becomes the nearest possible one.
fn nanoseconds(value: f64) -> Duration {
    Duration::from_nanos(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl IntoIterator<Item = u64>) -> RoundTrips {
        let mut round_trips = RoundTrips::default();
        for value in milliseconds {
            round_trips.count_sent();
            round_trips.add(Duration::from_millis(value));
        }
        round_trips
    }

    #[test]
    fn a_few_samples_give_the_textbook_figures() {
        let round_trips = of([2, 4, 4, 4, 5, 5, 7, 9]);

        assert_eq!(round_trips.average(), Some(Duration::from_millis(5)));
        assert_eq!(round_trips.standard_deviation(), Some(Duration::from_millis(2)));
        assert_eq!(round_trips.min(), Some(Duration::from_millis(2)));
        assert_eq!(round_trips.max(), Some(Duration::from_millis(9)));
        assert_eq!(round_trips.last(), Some(Duration::from_millis(9)));
    }

    #[test]
    fn nothing_is_known_before_the_first_sample() {
        let none = RoundTrips::default();
        assert_eq!((none.last(), none.average(), none.standard_deviation()), (None, None, None));
        assert_eq!(none.loss(), 0.0);
    }

    #[test]
    fn a_full_window_begins_anew_with_the_last_two_samples() {
        let full = of(std::iter::repeat_n(1, 1000));
        let begun = of(std::iter::repeat_n(1, 1000).chain([3]));

        assert_eq!(full.average(), Some(Duration::from_millis(1)));
        assert_eq!(begun.average(), Some(Duration::from_millis(2)));
        assert_eq!(begun.min(), Some(Duration::from_millis(1)));
    }

    #[test]
    fn loss_is_what_was_sent_and_not_received() {
        let mut round_trips = of([1, 1, 1]);
        round_trips.count_sent();
        assert_eq!(round_trips.loss(), 0.25);
    }
}
