//! What the tables say: each measure as a function of a visit's raw figures.

use serde::Serialize;

use crate::iperf::Bulk;
use crate::latency::RoundTrips;
use crate::statistics::{mean, percentile};
use crate::visit::{Ladder, Metered, Outcome, Phases};

const GIB: f64 = 1_073_741_824.0;

/// A column of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    OneFlow,
    EightFlows,
    Reverse,
    Retransmits,
    CpuOneFlow,
    CpuEightFlows,
    CpuReverse,
    SmallRate,
    SmallCpu,
    LargeRate,
    LargeCpu,
    Transactions,
    TransactionCpu,
    PingIdle,
    PingIdleTail,
    PingOneFlowTail,
    PingEightFlowsTail,
}

/// Measures that stand in one table.
pub(crate) struct Topic {
    pub(crate) title: &'static str,
    pub(crate) measures: &'static [Measure],
}

/// All tables.
pub(crate) const TOPICS: [Topic; 4] = [
    Topic {
        title: "TCP, Gbit/s (more is better); segments sent again on one flow (fewer)",
        measures: &[Measure::OneFlow, Measure::EightFlows, Measure::Reverse, Measure::Retransmits],
    },
    Topic {
        title: "TCP, CPU seconds of both gateways' processes per GiB (fewer is better)",
        measures: &[Measure::CpuOneFlow, Measure::CpuEightFlows, Measure::CpuReverse],
    },
    Topic {
        title: "UDP, highest rate with under 1 % lost, in 1000 packets/s (more is better; without a process on the way \
                the sender does all the work itself and is the limit); CPU of both gateways' processes at 20,000 \
                packets/s, in µs per packet (fewer)",
        measures: &[Measure::SmallRate, Measure::SmallCpu, Measure::LargeRate, Measure::LargeCpu],
    },
    Topic {
        title: "TCP request/response, per second (more is better) and µs of both gateways' CPU each (fewer); \
                ping in ms (fewer)",
        measures: &[
            Measure::Transactions,
            Measure::TransactionCpu,
            Measure::PingIdle,
            Measure::PingIdleTail,
            Measure::PingOneFlowTail,
            Measure::PingEightFlowsTail,
        ],
    },
];

/// A measure of one visit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Figure {
    Value(f64),
    /// The candidate has no such thing: no process, no CPU time of it.
    Absent,
    Failed(String),
}

impl Measure {
    /// Returns the head of its column.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::OneFlow | Self::CpuOneFlow => "1 flow",
            Self::EightFlows | Self::CpuEightFlows => "8 flows",
            Self::Reverse | Self::CpuReverse => "reverse",
            Self::Retransmits => "retransmits",
            Self::SmallRate => "64 B",
            Self::SmallCpu => "64 B, µs",
            Self::LargeRate => "1400 B",
            Self::LargeCpu => "1400 B, µs",
            Self::Transactions => "transactions/s",
            Self::TransactionCpu => "µs each",
            Self::PingIdle => "ping idle, mean",
            Self::PingIdleTail => "idle, p99",
            Self::PingOneFlowTail => "1 flow, p99",
            Self::PingEightFlowsTail => "8 flows, p99",
        }
    }

    /// Computes the measure.
    pub(crate) fn of(self, phases: &Phases) -> Figure {
        match self {
            Self::OneFlow => figure(&phases.one_flow, gigabits),
            Self::EightFlows => figure(&phases.eight_flows, gigabits),
            Self::Reverse => figure(&phases.reverse, gigabits),
            Self::Retransmits => figure(&phases.one_flow, |bulk| Figure::Value(bulk.figures.retransmits as f64)),
            Self::CpuOneFlow => figure(&phases.one_flow, cpu_per_gib),
            Self::CpuEightFlows => figure(&phases.eight_flows, cpu_per_gib),
            Self::CpuReverse => figure(&phases.reverse, cpu_per_gib),
            Self::SmallRate => figure(&phases.udp_small, highest_rate),
            Self::SmallCpu => figure(&phases.udp_small, cpu_per_packet),
            Self::LargeRate => figure(&phases.udp_large, highest_rate),
            Self::LargeCpu => figure(&phases.udp_large, cpu_per_packet),
            Self::Transactions => figure(&phases.request_response, |exchange| {
                Figure::Value(exchange.figures.transactions as f64 / exchange.figures.seconds)
            }),
            Self::TransactionCpu => figure(&phases.request_response, |exchange| {
                share(exchange.cpu_seconds, exchange.figures.transactions as f64 / 1e6)
            }),
            Self::PingIdle => figure(&phases.ping_idle, |pings| of_sample(mean(&pings.milliseconds))),
            Self::PingIdleTail => figure(&phases.ping_idle, |pings| of_sample(percentile(&pings.milliseconds, 99))),
            Self::PingOneFlowTail => figure(&phases.ping_one_flow, loaded_tail),
            Self::PingEightFlowsTail => figure(&phases.ping_eight_flows, loaded_tail),
        }
    }
}

fn figure<T>(outcome: &Outcome<T>, compute: impl FnOnce(&T) -> Figure) -> Figure {
    match outcome {
        Outcome::Measured(value) => compute(value),
        Outcome::Failed { error } => Figure::Failed(error.clone()),
    }
}

fn gigabits(bulk: &Metered<Bulk>) -> Figure {
    Figure::Value(bulk.figures.bits_per_second / 1e9)
}

fn cpu_per_gib(bulk: &Metered<Bulk>) -> Figure {
    share(bulk.cpu_seconds, bulk.figures.bytes / GIB)
}

fn cpu_per_packet(ladder: &Ladder) -> Figure {
    share(ladder.fixed.cpu_seconds, ladder.fixed.figures.received as f64 / 1e6)
}

/// Returns CPU seconds divided by what they did.
fn share(cpu_seconds: Option<f64>, amount: f64) -> Figure {
    match cpu_seconds {
        None => Figure::Absent,
        Some(_) if amount <= 0.0 => Figure::Failed("nothing arrived".to_owned()),
        Some(seconds) => Figure::Value(seconds / amount),
    }
}

/// Returns what arrived at the highest step that lost little: less than its name where the sender was the limit.
fn highest_rate(ladder: &Ladder) -> Figure {
    let passed = ladder.steps.iter().chain([&ladder.fixed.figures]).filter(|run| run.passes());
    match passed.max_by_key(|run| run.offered) {
        Some(run) => Figure::Value(run.rate() / 1000.0),
        None => Figure::Failed(format!("at {} packets/s 1 % or more is lost", ladder.fixed.figures.offered)),
    }
}

/// The first tenth does not count: the load was not up yet.
fn loaded_tail(pings: &RoundTrips) -> Figure {
    let start = pings.milliseconds.len() / 10;
    of_sample(percentile(&pings.milliseconds[start..], 99))
}

fn of_sample(statistic: Option<f64>) -> Figure {
    statistic.map_or_else(|| Figure::Failed("no probe was answered".to_owned()), Figure::Value)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::latency::Exchange;
    use crate::udp::Flood;

    /// A visit in which everything went well, with processes or without.
    pub(crate) fn phases(cpu_seconds: Option<f64>) -> Phases {
        let bulk = Bulk { bytes: 2.0 * GIB, bits_per_second: 3e9, retransmits: 7 };
        let bulk = Outcome::Measured(Metered { cpu_seconds, figures: bulk });
        let run = |offered: u32, received: u64| Flood { offered, sent: 1000, received, seconds: 0.5 };
        let fixed = Metered { cpu_seconds, figures: run(20_000, 1000) };
        let steps = vec![run(80_000, 900), run(45_000, 999), run(60_000, 995)];
        let ladder = Outcome::Measured(Ladder { fixed, steps });
        let milliseconds: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let pings = Outcome::Measured(RoundTrips { sent: 200, milliseconds });
        let exchange = Exchange { transactions: 5000, seconds: 2.0 };
        Phases {
            ping_idle: pings.clone(),
            request_response: Outcome::Measured(Metered { cpu_seconds, figures: exchange }),
            one_flow: bulk.clone(),
            eight_flows: bulk.clone(),
            ping_one_flow: pings.clone(),
            ping_eight_flows: pings,
            reverse: bulk,
            udp_small: ladder.clone(),
            udp_large: ladder,
        }
    }

    #[test]
    fn every_measure_follows_from_the_raw_figures() {
        let phases = phases(Some(1.0));
        let of = |measure: Measure| match measure.of(&phases) {
            Figure::Value(value) => value,
            Figure::Absent => panic!("{measure:?} is absent"),
            Figure::Failed(error) => panic!("{measure:?}: {error}"),
        };
        assert_eq!((of(Measure::OneFlow), of(Measure::CpuOneFlow), of(Measure::Retransmits)), (3.0, 0.5, 7.0));
        assert_eq!((of(Measure::SmallRate), of(Measure::SmallCpu)), (1.99, 1000.0));
        assert_eq!((of(Measure::Transactions), of(Measure::TransactionCpu)), (2500.0, 200.0));
        assert_eq!((of(Measure::PingIdle), of(Measure::PingIdleTail)), (100.5, 198.0));
        assert_eq!(of(Measure::PingEightFlowsTail), 179.0);
    }

    #[test]
    fn without_a_process_there_is_no_cpu_time() {
        let phases = phases(None);
        for measure in [Measure::CpuOneFlow, Measure::SmallCpu, Measure::TransactionCpu] {
            assert_eq!(measure.of(&phases), Figure::Absent);
        }
    }

    #[test]
    fn a_phase_that_failed_fails_its_measures_only() {
        let mut phases = phases(Some(1.0));
        phases.one_flow = Outcome::Failed { error: "no route".to_owned() };
        assert_eq!(Measure::CpuOneFlow.of(&phases), Figure::Failed("no route".to_owned()));
        assert_eq!(Measure::Reverse.of(&phases), Figure::Value(3.0));
    }

    #[test]
    fn every_measure_stands_in_one_table() {
        let mut all: Vec<Measure> = TOPICS.iter().flat_map(|topic| topic.measures).copied().collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!((all.len(), all.last()), (count, Some(&Measure::PingEightFlowsTail)));
        assert_eq!(count, Measure::PingEightFlowsTail as usize + 1);
    }
}
