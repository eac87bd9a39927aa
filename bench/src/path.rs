//! The bench of the packets' way: visits every candidate in every round, one after the other, in another order each
//! round, so that what else the machine does is spread over all.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use culvert_netns_tests::Lab;
use nix::sys::signal::{SigSet, Signal};

use crate::candidate::Candidate;
use crate::measure::{Figure, Measure};
use crate::report::{Machine, Report, summarise};
use crate::table::number;
use crate::tools::Tool;
use crate::tunnel::{PREFIX, Standing};
use crate::visit::{Outcome, Phases, Visit};

/// What the path bench is told.
#[derive(Args)]
pub(crate) struct PathArgs {
    /// How often each candidate is visited.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of a TCP phase; the others take half of it, a step of the UDP ladder a quarter.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Measure these only; separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Candidate>,
    /// Write every raw figure to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Measures, and prints the tables to standard output; progress goes to standard error.
///
/// # Errors
///
/// The figures could not be written. A candidate that fails is no error: the tables say so.
pub(crate) fn run(args: &PathArgs) -> Result<()> {
    remove_when_interrupted()?;
    let machine = machine()?;
    let all = if args.only.is_empty() { Candidate::value_variants() } else { &args.only };
    let tools: BTreeMap<Candidate, Result<Option<Tool>>> =
        all.iter().map(|&candidate| (candidate, Tool::of(candidate))).collect();
    let mut candidates: Vec<Candidate> = tools.keys().copied().collect();

    let total = candidates.len() * usize::from(args.rounds);
    let mut visits = Vec::new();
    for round in 1..=usize::from(args.rounds) {
        for &candidate in &candidates {
            let start = Instant::now();
            let number = visits.len() + 1;
            eprintln!("[{number:>2}/{total}] round {round}, {}", candidate.as_str());
            let visit = Visit { candidate, round, phases: visit(&tools[&candidate], candidate, args.seconds).into() };
            eprintln!("        {} ({:.0} s)", in_short(&visit), start.elapsed().as_secs_f64());
            visits.push(visit);
        }
        candidates.rotate_left(1);
    }

    let tools = tools.into_iter().filter_map(|(candidate, tool)| Some((candidate, tool.ok()??))).collect();
    let (rounds, seconds) = (usize::from(args.rounds), args.seconds);
    let report = Report { machine, rounds, seconds, tools, summary: summarise(&visits), visits };
    println!("{}", report.text());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).context("the report is no JSON")?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn visit(tool: &Result<Option<Tool>>, candidate: Candidate, seconds: u32) -> Result<Phases> {
    let tool = tool.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let standing = Standing::set_up(candidate, tool.as_ref()).context("cannot be set up")?;
    Ok(Phases::measure(&standing, seconds))
}

/// Says the most important of a visit in a few words.
fn in_short(visit: &Visit) -> String {
    let phases = match &visit.phases {
        Outcome::Measured(phases) => phases,
        Outcome::Failed { error } => return error.clone(),
    };
    let text = |measure: Measure| match measure.of(phases) {
        Figure::Value(value) => number(value),
        Figure::Absent => "-".to_owned(),
        Figure::Failed(_) => "error".to_owned(),
    };
    format!(
        "TCP {} Gbit/s, UDP {} kpackets/s, {} transactions/s",
        text(Measure::OneFlow),
        text(Measure::SmallRate),
        text(Measure::Transactions)
    )
}

pub(crate) fn machine() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    Ok(Machine {
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cpus: std::thread::available_parallelism().context("the number of CPUs is not known")?.get(),
        load_average: read("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "),
    })
}

/// An interrupt leaves nothing behind but an empty control group, which the next run uses. Must run before any other thread starts: they inherit the mask.
pub(crate) fn remove_when_interrupted() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("Interrupted: the networks are being removed.");
            if let Err(error) = Lab::remove_named(PREFIX) {
                eprintln!("They could not be removed: {error:#}");
            }
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
