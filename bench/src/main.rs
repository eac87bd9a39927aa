//! Measures Culvert beside what it is compared with, in one run, on this machine. It asserts nothing: it prints figures.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod candidate;
mod control;
mod cpu;
mod globalnet;
mod iperf;
mod latency;
mod measure;
mod path;
mod report;
mod statistics;
mod table;
mod tools;
mod tunnel;
mod udp;
mod visit;

use std::process::ExitCode;

use clap::Parser;

use crate::control::ControlArgs;
use crate::globalnet::GlobalnetArgs;
use crate::path::PathArgs;

/// Measures Culvert beside what it is compared with.
#[derive(Parser)]
enum Bench {
    /// The way of packets between two pods: throughput, latency, and what the gateways' processes cost.
    Path(PathArgs),
    /// The control plane: joining, what the components cost, and many remote clusters at the broker.
    Control(ControlArgs),
    /// Globalnet's daemon: how soon one of many services changes, what it costs, and what the packets pay.
    Globalnet(GlobalnetArgs),
}

fn main() -> ExitCode {
    let result = match Bench::parse() {
        Bench::Path(args) => path::run(&args),
        Bench::Control(args) => control::run(&args),
        Bench::Globalnet(args) => globalnet::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
