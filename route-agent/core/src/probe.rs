//! Decides whether other clusters answer from this node, by echo requests to their health check addresses.
//!
//! Sans-IO: the caller sends what [`Probes::poll_transmit`] returns, passes replies to [`Probes::handle_reply`] and
//! the time to both. Who is probed and how often follows Submariner chapter 7.9; unlike there, a probe that misses an
//! answer quickens until the next one, so that a loss is known in seconds.
//!
//! ```text
//! Connecting --reply--> Connected        Error --reply--> Connected
//! Connecting, Connected --more than `max_lost` unanswered in a row--> Error
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_model::IpFamily;

use crate::{Inputs, Role};

/// After so many round trips average and deviation begin anew, so that they follow the path (Submariner chapter 4.10).
const WINDOW: u32 = 1000;

/// How often echoes are sent and how many may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From an echo that was answered to the next.
    pub answered: Duration,
    /// From an echo that was not answered to the next: as long as an answer is waited for.
    pub unanswered: Duration,
    /// Losses in a row that do not count as an error yet.
    pub max_lost: u32,
}

impl Pace {
    /// Derives the pace from the gateways' interval: nodes are many, so they probe 60 times more seldom.
    pub fn of_node(gateway_interval: Duration, max_lost: u32) -> Self {
        Self { answered: gateway_interval * 60, unanswered: gateway_interval * 5, max_lost }
    }
}

/// Why a remote endpoint is not probed; the text is the status message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoProbe {
    #[error("health check is disabled")]
    Disabled,
    #[error("health check is the gateway's on this node")]
    OnGateway,
    #[error("the endpoint has no health check address")]
    NoAddress,
    #[error("this node has no address in a pod CIDR that the other cluster could answer to")]
    NoSource,
}

/// Whether an endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeState {
    Connecting,
    Connected,
    /// Too many echoes in a row were lost.
    Error,
}

/// Round-trip times; average and deviation over the last thousand at most, the others over all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    pub last: Duration,
    pub min: Duration,
    pub average: Duration,
    pub max: Duration,
    pub deviation: Duration,
}

/// An echo request to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    pub destination: IpAddr,
    pub sequence: u16,
}

/// Returns for each remote endpoint, by cable name, the address to probe or the reason not to.
pub fn targets(inputs: &Inputs, enabled: bool) -> BTreeMap<String, Result<IpAddr, NoProbe>> {
    let on_gateway = match inputs.role() {
        Role::Gateway(_) => true,
        Role::Worker(_) | Role::Waiting => false,
    };
    let target = |addresses: culvert_model::Addresses| match addresses.iter().next() {
        _ if !enabled => Err(NoProbe::Disabled),
        _ if on_gateway => Err(NoProbe::OnGateway),
        None => Err(NoProbe::NoAddress),
        Some(address) if inputs.source(IpFamily::of(address)).is_none() => Err(NoProbe::NoSource),
        Some(address) => Ok(address),
    };
    let endpoints = inputs.remote_endpoints();
    endpoints.map(|endpoint| (endpoint.cable_name.clone(), target(endpoint.health_check))).collect()
}

/// The probes of a node, by cable name.
#[derive(Debug)]
pub struct Probes {
    pace: Pace,
    probes: BTreeMap<String, Probe>,
    /// More than times is different since the last [`Self::take_changed`].
    changed: bool,
}

#[derive(Debug)]
struct Probe {
    address: IpAddr,
    state: ProbeState,
    /// Number and time of the echo that is waited for.
    waiting: Option<(u16, Instant)>,
    next_sequence: u16,
    due: Instant,
    lost: u32,
    times: RoundTrips,
}

impl Probes {
    /// Makes probes of nothing yet.
    pub fn new(pace: Pace) -> Self {
        Self { pace, probes: BTreeMap::new(), changed: false }
    }

    /// Takes what is to be probed; a probe whose address is as before goes on.
    pub fn handle_targets(&mut self, targets: &BTreeMap<String, IpAddr>, now: Instant) {
        self.probes.retain(|name, probe| targets.get(name) == Some(&probe.address));
        for (name, &address) in targets {
            self.probes.entry(name.clone()).or_insert_with(|| Probe::new(address, now));
        }
        self.changed = true;
    }

    /// Takes an echo reply.
    pub fn handle_reply(&mut self, from: IpAddr, sequence: u16, now: Instant) {
        for probe in self.probes.values_mut().filter(|probe| probe.address == from) {
            let before = probe.state;
            probe.handle_reply(sequence, now, self.pace);
            self.changed |= probe.state != before;
        }
    }

    /// Gives an echo that is due; to be called until there is none.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Echo> {
        let probe = self.probes.values_mut().find(|probe| probe.due <= now)?;
        let before = probe.state;
        let echo = probe.transmit(now, self.pace);
        self.changed |= probe.state != before;
        Some(echo)
    }

    /// Tells, once, whether a probe came, went or changed its state.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Gives the time at which the next echo is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probes.values().map(|probe| probe.due).min()
    }

    /// Returns the state of each probe.
    pub fn states(&self) -> BTreeMap<String, (ProbeState, Option<RoundTrip>)> {
        self.probes.iter().map(|(name, probe)| (name.clone(), (probe.state, probe.times.summary()))).collect()
    }
}

impl Probe {
    fn new(address: IpAddr, now: Instant) -> Self {
        Self {
            address,
            state: ProbeState::Connecting,
            waiting: None,
            next_sequence: 1,
            due: now,
            lost: 0,
            times: RoundTrips::default(),
        }
    }

    fn transmit(&mut self, now: Instant, pace: Pace) -> Echo {
        if self.waiting.is_some() {
            self.lost = self.lost.saturating_add(1);
        }
        self.state = match self.state {
            _ if self.lost > pace.max_lost => ProbeState::Error,
            state @ (ProbeState::Connecting | ProbeState::Connected | ProbeState::Error) => state,
        };
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        self.waiting = Some((sequence, now));
        self.due = now + pace.unanswered;
        Echo { destination: self.address, sequence }
    }

    fn handle_reply(&mut self, sequence: u16, now: Instant, pace: Pace) {
        let Some((_, sent)) = self.waiting.filter(|(waiting, _)| *waiting == sequence) else {
            return;
        };
        self.waiting = None;
        self.lost = 0;
        self.due = sent + pace.answered;
        self.times.add(now.saturating_duration_since(sent));
        self.state = ProbeState::Connected;
    }
}

/// Sums instead of samples: a node may have a thousand probes.
#[derive(Debug, Default)]
struct RoundTrips {
    last: Option<Duration>,
    /// Least and largest of all.
    extremes: Option<(Duration, Duration)>,
    /// Samples in the window, their mean, and the sum of squared differences from it (Welford's method), in seconds.
    samples: u32,
    mean: f64,
    squares: f64,
}

impl RoundTrips {
    fn add(&mut self, time: Duration) {
        if self.samples == WINDOW {
            (self.samples, self.mean, self.squares) = (0, 0.0, 0.0);
            if let Some(last) = self.last {
                self.add_sample(last);
            }
        }
        self.add_sample(time);
        self.last = Some(time);
        let (min, max) = self.extremes.unwrap_or((time, time));
        self.extremes = Some((min.min(time), max.max(time)));
    }

    fn add_sample(&mut self, time: Duration) {
        let value = time.as_secs_f64();
        self.samples += 1;
        let before = value - self.mean;
        self.mean += before / f64::from(self.samples);
        self.squares += before * (value - self.mean);
    }

    fn summary(&self) -> Option<RoundTrip> {
        let (min, max) = self.extremes?;
        let deviation = (self.squares / f64::from(self.samples)).sqrt();
        let [average, deviation] = [self.mean, deviation].map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        Some(RoundTrip { last: self.last?, min, average, max, deviation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::inputs;

    const PACE: Pace = Pace { answered: Duration::from_secs(12), unanswered: Duration::from_secs(1), max_lost: 4 };

    fn far() -> IpAddr {
        "10.2.0.1".parse().unwrap()
    }

    fn probing(start: Instant) -> Probes {
        let mut probes = Probes::new(PACE);
        probes.handle_targets(&BTreeMap::from([("west".to_owned(), far())]), start);
        probes
    }

    fn state(probes: &Probes) -> ProbeState {
        probes.states()["west"].0
    }

    fn connected(start: Instant) -> Probes {
        let mut probes = probing(start);
        let echo = probes.poll_transmit(start).unwrap();
        probes.handle_reply(echo.destination, echo.sequence, start + Duration::from_millis(3));
        probes
    }

    #[test]
    fn the_first_echo_is_due_at_once_and_its_reply_connects() {
        let start = Instant::now();
        let mut probes = probing(start);
        assert_eq!(state(&probes), ProbeState::Connecting);

        let echo = probes.poll_transmit(start).unwrap();
        assert_eq!(probes.poll_transmit(start), None);
        probes.handle_reply(far(), echo.sequence, start + Duration::from_millis(3));

        assert_eq!(state(&probes), ProbeState::Connected);
        assert_eq!(probes.poll_timeout(), Some(start + PACE.answered));
    }

    #[test]
    fn five_lost_echoes_are_an_error_and_a_reply_ends_it() {
        let start = Instant::now();
        let mut probes = connected(start);
        let lost = start + PACE.answered;
        for n in 0..=4 {
            probes.poll_transmit(lost + PACE.unanswered * n).unwrap();
            assert_eq!(state(&probes), ProbeState::Connected, "after {n} losses");
        }

        let echo = probes.poll_transmit(lost + PACE.unanswered * 5).unwrap();
        assert_eq!(state(&probes), ProbeState::Error);
        probes.handle_reply(far(), echo.sequence, lost + PACE.unanswered * 5);

        assert_eq!(state(&probes), ProbeState::Connected);
    }

    #[test]
    fn a_probe_that_was_never_answered_becomes_an_error() {
        let start = Instant::now();
        let mut probes = probing(start);
        for n in 0..=5 {
            probes.poll_transmit(start + PACE.unanswered * n).unwrap();
        }
        assert_eq!(state(&probes), ProbeState::Error);
    }

    #[test]
    fn replies_of_others_late_ones_and_doubles_count_for_nothing() {
        let start = Instant::now();
        let mut probes = probing(start);
        let first = probes.poll_transmit(start).unwrap();
        let second = probes.poll_transmit(start + PACE.unanswered).unwrap();
        let now = start + PACE.unanswered;

        probes.handle_reply("10.2.0.9".parse().unwrap(), second.sequence, now);
        probes.handle_reply(far(), first.sequence, now);
        probes.handle_reply(far(), second.sequence.wrapping_add(1), now);
        assert_eq!(state(&probes), ProbeState::Connecting);

        probes.handle_reply(far(), second.sequence, now + Duration::from_millis(1));
        probes.handle_reply(far(), second.sequence, now + Duration::from_millis(9));
        assert_eq!(probes.states()["west"].1.unwrap().max, Duration::from_millis(1));
    }

    #[test]
    fn only_a_change_of_state_is_one() {
        let start = Instant::now();
        let mut probes = probing(start);
        assert!(probes.take_changed(), "it is new");
        let echo = probes.poll_transmit(start).unwrap();
        assert!(!probes.take_changed());
        probes.handle_reply(far(), echo.sequence, start);
        assert!(probes.take_changed() && !probes.take_changed());

        let next = start + PACE.answered;
        let echo = probes.poll_transmit(next).unwrap();
        probes.handle_reply(far(), echo.sequence, next);
        assert!(!probes.take_changed(), "its times are others, its state is the same");
        for n in 0..=5 {
            assert!(!probes.take_changed(), "after {n} losses");
            probes.poll_transmit(next + PACE.answered + PACE.unanswered * n).unwrap();
        }
        assert!(probes.take_changed());
    }

    #[test]
    fn a_probe_goes_on_while_its_address_stays() {
        let start = Instant::now();
        let mut probes = connected(start);

        probes.handle_targets(&BTreeMap::from([("west".to_owned(), far())]), start);
        assert_eq!(state(&probes), ProbeState::Connected);

        probes.handle_targets(&BTreeMap::from([("west".to_owned(), "10.2.0.2".parse().unwrap())]), start);
        assert_eq!(state(&probes), ProbeState::Connecting);
        probes.handle_targets(&BTreeMap::new(), start);
        assert_eq!(probes.poll_timeout(), None);
    }

    #[test]
    fn statistics_forget_all_but_the_window_and_the_extremes() {
        let mut times = RoundTrips::default();
        assert_eq!(times.summary(), None);
        times.add(Duration::from_millis(50));
        for _ in 0..WINDOW / 2 {
            times.add(Duration::from_millis(2));
            times.add(Duration::from_millis(4));
        }

        let summary = times.summary().unwrap();

        assert_eq!((summary.min, summary.max), (Duration::from_millis(2), Duration::from_millis(50)));
        assert_eq!(summary.last, Duration::from_millis(4));
        let near = |time: Duration, milliseconds| time.abs_diff(Duration::from_millis(milliseconds)).as_micros() < 1;
        assert!(near(summary.average, 3) && near(summary.deviation, 1), "{summary:?}");
    }

    #[test]
    fn targets_say_why_an_endpoint_is_not_probed() {
        let mut inputs = inputs();
        let name = inputs.endpoints[1].cable_name.clone();
        let target = |inputs: &Inputs, enabled| targets(inputs, enabled)[&name];
        assert_eq!(target(&inputs, true), Err(NoProbe::NoAddress));

        inputs.endpoints[1].health_check = far().into();
        assert_eq!(target(&inputs, true), Ok(far()));
        assert_eq!(target(&inputs, false), Err(NoProbe::Disabled));

        let cni = inputs.interfaces.remove("cni0").unwrap();
        assert_eq!(target(&inputs, true), Err(NoProbe::NoSource));

        inputs.interfaces.insert("cni0".to_owned(), cni);
        inputs.endpoints[0].hostname = "worker".to_owned();
        assert_eq!(target(&inputs, true), Err(NoProbe::OnGateway));
    }
}
