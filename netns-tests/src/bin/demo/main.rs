//! The demo: two clusters of network namespaces, joined by the real daemons, and what that is worth.
//!
//! It says what it does as it does it, and fails if anything is not as it should be.

mod report;
mod stages;

use std::fs::File;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use culvert_netns_tests::{Lab, run};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};

use crate::report::Report;

/// The beginning of all names of the demo's namespaces. Fixed, so that a kept demo is found again.
const PREFIX: &str = "culvert-demo";

/// Joins two clusters made of network namespaces, and shows what the connection does.
#[derive(Parser)]
struct Args {
    /// Leave everything running and say how to step into any namespace.
    #[arg(long)]
    keep: bool,
    /// Write the results as JSON to standard output, and the progress to standard error.
    #[arg(long)]
    json: bool,
    /// Only remove a demo that was kept.
    #[arg(long, conflicts_with_all = ["keep", "json"])]
    remove: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match demo(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("The demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args) -> Result<bool> {
    if args.remove {
        let _lock = only_demo()?;
        Lab::remove_named(PREFIX)?;
        return Ok(true);
    }
    let _lock = only_demo()?;
    remove_when_interrupted()?;
    run(Command::new("iperf3").arg("--version")).context("iperf3 is missing: use `cargo xtask demo`")?;
    let mut report = Report::new(args.json);
    stages::run(&mut report, args.keep);
    report.finish()
}

/// Keeps a second demo out for as long as the lock is held: the two would take each other's namespaces for leftovers.
fn only_demo() -> Result<Flock<File>> {
    let path = std::env::temp_dir().join(format!("{PREFIX}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow::anyhow!("another demo is running on this machine: wait for its end"))
}

/// An interrupt leaves nothing behind either. Must run before any other thread starts: they inherit the mask.
fn remove_when_interrupted() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("Interrupted: the lab is being removed.");
            if let Err(error) = Lab::remove_named(PREFIX) {
                eprintln!("The lab could not be removed: {error:#}");
            }
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
