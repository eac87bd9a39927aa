//! Decides whether a remote gateway answers through its cable, from the echo requests that are sent to it.
//!
//! Sans-IO: the caller sends what [`Health::poll_transmit`] returns to the address, and passes answers and the time in.
//! States follow Submariner chapter 4.10; echoes are sent on whatever the state, so a cable comes back with the first
//! answer.
//!
//! ```text
//!   Unknown --answer--> Up --N echoes in a row without an answer--> Down --answer--> Up
//!      +-----------------N echoes in a row without an answer---------^
//! ```

mod statistics;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use statistics::RoundTrips;

/// How many unanswered echoes are remembered: an answer that is later than these is not one any more.
const REMEMBERED: usize = 64;

/// How health is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthTiming {
    /// Between two echo requests.
    pub interval: Duration,
    /// So many in a row without an answer bring the cable down.
    pub max_lost: u32,
}

impl Default for HealthTiming {
    /// Down within a second.
    fn default() -> Self {
        Self { interval: Duration::from_millis(200), max_lost: 4 }
    }
}

/// An echo request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    pub sequence: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// Neither answered nor lost enough yet.
    Unknown,
    Up,
    /// Says what is not answered, in words that stay the same while it lasts.
    Down(String),
}

/// Health of one remote address.
#[derive(Clone, Debug)]
pub struct Health {
    address: IpAddr,
    timing: HealthTiming,
    state: HealthState,
    next_sequence: u16,
    next_echo: Instant,
    /// Echoes without an answer, oldest first.
    outstanding: VecDeque<(u16, Instant)>,
    /// Echoes since the last answer.
    unanswered: u32,
    round_trips: RoundTrips,
}

impl Health {
    /// Starts with an echo that is due at once.
    pub fn new(address: IpAddr, timing: HealthTiming, now: Instant) -> Self {
        Self {
            address,
            timing,
            state: HealthState::Unknown,
            next_sequence: 0,
            next_echo: now,
            outstanding: VecDeque::new(),
            unanswered: 0,
            round_trips: RoundTrips::default(),
        }
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn state(&self) -> &HealthState {
        &self.state
    }

    pub fn round_trips(&self) -> &RoundTrips {
        &self.round_trips
    }

    /// Returns the echo that is due, at most one for each interval: what a stopped process missed is not made up for.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Echo> {
        if now < self.next_echo {
            return None;
        }
        self.handle_timeout(now);
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        self.next_echo = now + self.timing.interval;
        if self.outstanding.len() == REMEMBERED {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((sequence, now));
        self.unanswered = self.unanswered.saturating_add(1);
        self.round_trips.count_sent();
        Some(Echo { sequence })
    }

    /// Takes an answer; one that was never asked for, or came already, counts for nothing.
    pub fn handle_reply(&mut self, sequence: u16, now: Instant) {
        let Some(position) = self.outstanding.iter().position(|(asked, _)| *asked == sequence) else { return };
        let (_, sent) = self.outstanding.remove(position).expect("the position was just found");
        self.round_trips.add(now.saturating_duration_since(sent));
        self.unanswered = 0;
        self.state = HealthState::Up;
    }

    /// Brings the cable down if enough echoes have had their interval and no answer.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next_echo || self.unanswered < self.timing.max_lost.max(1) {
            return;
        }
        self.state = match self.state {
            HealthState::Unknown | HealthState::Up => HealthState::Down(format!(
                "{} does not answer to echo requests through the cable ({} in a row were lost)",
                self.address, self.unanswered
            )),
            HealthState::Down(ref message) => HealthState::Down(message.clone()),
        };
    }

    /// Returns when the next echo is due; there always is one.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next_echo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::address;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn health(start: Instant) -> Health {
        Health::new(address("10.2.0.1"), HealthTiming::default(), start)
    }

    fn up_at(start: Instant) -> Health {
        let mut health = health(start);
        let echo = health.poll_transmit(start).unwrap();
        health.handle_reply(echo.sequence, start);
        assert_eq!(*health.state(), HealthState::Up);
        health
    }

    fn is_down(health: &Health) -> bool {
        matches!(health.state(), HealthState::Down(_))
    }

    #[test]
    fn four_lost_echoes_bring_a_cable_down_within_a_second() {
        let start = Instant::now();
        let mut health = up_at(start);
        for n in 1..=4 {
            health.poll_transmit(start + INTERVAL * n).unwrap();
        }
        health.handle_timeout(start + INTERVAL * 5 - Duration::from_millis(1));
        assert_eq!(*health.state(), HealthState::Up);

        health.handle_timeout(start + INTERVAL * 5);

        let HealthState::Down(message) = health.state() else { panic!("still up") };
        assert!(message.contains("10.2.0.1"));
    }

    #[test]
    fn a_cable_that_never_answers_is_first_unknown_and_then_down() {
        let start = Instant::now();
        let mut health = health(start);
        for n in 0..4 {
            health.poll_transmit(start + INTERVAL * n).unwrap();
            assert_eq!(*health.state(), HealthState::Unknown);
        }
        health.poll_transmit(start + INTERVAL * 4).unwrap();
        assert!(is_down(&health));
    }

    #[test]
    fn the_first_answer_brings_it_up_again() {
        let start = Instant::now();
        let mut health = up_at(start);
        let mut last = 0;
        for n in 1..=20 {
            last = health.poll_transmit(start + INTERVAL * n).unwrap().sequence;
        }
        assert!(is_down(&health));
        health.handle_reply(last, start + INTERVAL * 20);
        assert_eq!(*health.state(), HealthState::Up);
    }

    #[test]
    fn a_path_slower_than_all_lost_echoes_together_is_up() {
        let start = Instant::now();
        let mut health = health(start);
        let lag = 10;
        for n in 0..100_u16 {
            let now = start + INTERVAL * u32::from(n);
            health.poll_transmit(now).unwrap();
            if let Some(sequence) = n.checked_sub(lag) {
                health.handle_reply(sequence, now);
                assert_eq!(*health.state(), HealthState::Up);
            }
        }
        assert_eq!(health.round_trips().last(), Some(INTERVAL * u32::from(lag)));
    }

    #[test]
    fn answers_that_were_not_asked_for_or_came_already_count_for_nothing() {
        let start = Instant::now();
        let mut health = up_at(start);
        health.handle_reply(0, start + INTERVAL);
        health.handle_reply(777, start + INTERVAL);
        assert_eq!(health.round_trips().received(), 1);
        for n in 1..=5 {
            health.poll_transmit(start + INTERVAL * n).unwrap();
            health.handle_reply(0, start + INTERVAL * n);
        }
        assert!(is_down(&health));
    }

    #[test]
    fn an_answer_later_than_what_is_remembered_counts_for_nothing() {
        let start = Instant::now();
        let mut health = health(start);
        for n in 0..=64 {
            health.poll_transmit(start + INTERVAL * n).unwrap();
        }
        health.handle_reply(0, start + INTERVAL * 65);
        assert!(is_down(&health));
        health.handle_reply(1, start + INTERVAL * 65);
        assert_eq!(*health.state(), HealthState::Up);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let start = Instant::now();
        let mut health = health(start);
        for n in 0..70_000 {
            let now = start + INTERVAL * n;
            let echo = health.poll_transmit(now).unwrap();
            health.handle_reply(echo.sequence, now);
        }
        assert_eq!((health.state(), health.round_trips().received()), (&HealthState::Up, 70_000));
    }

    #[test]
    fn a_process_that_was_stopped_does_not_bring_the_cable_down() {
        let start = Instant::now();
        let mut health = up_at(start);
        health.poll_transmit(start + INTERVAL).unwrap();
        let woken = start + INTERVAL * 1000;
        health.handle_timeout(woken);
        assert!(health.poll_transmit(woken).is_some());
        assert_eq!(health.poll_transmit(woken), None);
        assert_eq!(*health.state(), HealthState::Up);
    }
}
