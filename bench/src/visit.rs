//! One visit to one candidate: all phases, and their raw figures. A phase that fails does not end the visit.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::candidate::Candidate;
use crate::iperf::{Bulk, Shape, bulk};
use crate::latency::{Exchange, RoundTrips, ping, request_response};
use crate::tunnel::Standing;
use crate::udp::{FIXED_RATE, Flood, climb, flood};

/// Payload of a small and of a large datagram, in bytes.
const SMALL: usize = 64;
const LARGE: usize = 1400;

/// What was measured, or why it was not.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome<T> {
    Measured(T),
    Failed { error: String },
}

impl<T> From<Result<T>> for Outcome<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(value) => Self::Measured(value),
            Err(error) => Self::Failed { error: format!("{error:#}") },
        }
    }
}

/// A visit.
#[derive(Debug, Serialize)]
pub(crate) struct Visit {
    pub(crate) candidate: Candidate,
    /// From 1.
    pub(crate) round: usize,
    pub(crate) phases: Outcome<Phases>,
}

/// The phases' raw figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Phases {
    pub(crate) one_flow: Outcome<Metered<Bulk>>,
    /// Beside the one flow.
    pub(crate) ping_one_flow: Outcome<RoundTrips>,
    pub(crate) eight_flows: Outcome<Metered<Bulk>>,
    /// Beside the eight flows.
    pub(crate) ping_eight_flows: Outcome<RoundTrips>,
    pub(crate) reverse: Outcome<Metered<Bulk>>,
    pub(crate) ping_idle: Outcome<RoundTrips>,
    pub(crate) request_response: Outcome<Metered<Exchange>>,
    pub(crate) udp_small: Outcome<Ladder>,
    pub(crate) udp_large: Outcome<Ladder>,
}

/// Figures, and the CPU seconds that the gateways' processes used meanwhile, if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Metered<T> {
    pub(crate) cpu_seconds: Option<f64>,
    #[serde(flatten)]
    pub(crate) figures: T,
}

/// A run at the fixed rate, and the search for the highest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Ladder {
    pub(crate) fixed: Metered<Flood>,
    pub(crate) steps: Vec<Flood>,
}

impl Phases {
    /// Goes through all phases; a TCP phase takes `seconds`, the others half of that, a step of the ladder a quarter.
    pub(crate) fn measure(standing: &Standing, seconds: u32) -> Self {
        let (from, far) = standing.pods();
        let (server, to) = (&far.pod, far.pod_address);
        let whole = Duration::from_secs(u64::from(seconds));
        let (half, quarter) = (whole / 2, whole / 4);
        let tcp = |shape: Shape| metered(standing, || bulk(from, server, to, shape, seconds));
        let udp = |size: usize| {
            let fixed = metered(standing, || flood(from, server, to, size, FIXED_RATE, half))?;
            let steps = climb(|rate| flood(from, server, to, size, rate, quarter))?;
            anyhow::Ok(Ladder { fixed, steps })
        };
        let loaded = |shape: Shape, name: &'static str| {
            std::thread::scope(|scope| {
                let pinging = scope.spawn(|| ping(from, to, whole));
                let bulk = tcp(shape).context(name).into();
                let pings = pinging.join().expect("the prober does not panic");
                (bulk, pings.context("ping, under load").into())
            })
        };
        let (one_flow, ping_one_flow) = loaded(Shape::OneFlow, "TCP, one flow");
        let (eight_flows, ping_eight_flows) = loaded(Shape::EightFlows, "TCP, eight flows");
        let reverse = tcp(Shape::Reverse).context("TCP, reverse").into();
        // Not at the beginning: daemons that have just started still settle.
        let ping_idle = ping(from, to, half).context("ping, idle").into();
        let request_response = metered(standing, || request_response(from, server, to, half)).into();
        Self {
            one_flow,
            ping_one_flow,
            eight_flows,
            ping_eight_flows,
            reverse,
            ping_idle,
            request_response,
            udp_small: udp(SMALL).context("UDP, 64 bytes").into(),
            udp_large: udp(LARGE).context("UDP, 1400 bytes").into(),
        }
    }
}

fn metered<T>(standing: &Standing, work: impl FnOnce() -> Result<T>) -> Result<Metered<T>> {
    let seconds = || standing.cpu().map(|group| group.seconds()).transpose();
    let before = seconds()?;
    let figures = work()?;
    let cpu_seconds = seconds()?.zip(before).map(|(after, before)| after - before);
    Ok(Metered { cpu_seconds, figures })
}
