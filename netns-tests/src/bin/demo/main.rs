//! The demo: two clusters joined by the real daemons, and what that is worth.
//!
//! The clusters are made of network namespaces, with CIDRs of their own or the same, or are real Kubernetes clusters that are joined by the commands that one
//! would type. It says what it does as it does it, and fails if anything is not as it should be.

mod kubernetes;
mod overlap;
mod report;
mod shell;
mod stages;
mod traffic;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use culvert_netns_tests::{Lab, kubernetes as clusters, run};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};

use crate::report::Report;

/// The beginning of all names of the demo's namespaces. Fixed, so that a kept demo is found again.
const PREFIX: &str = "culvert-demo";

/// Joins two clusters, made of network namespaces or of Kubernetes, and shows what the connection does.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Args {
    /// Join real Kubernetes clusters, by the commands that one would type.
    #[arg(long)]
    kubernetes: bool,
    /// Join clusters that have the same CIDRs.
    #[arg(long, conflicts_with_all = ["kubernetes", "remove"])]
    overlap: bool,
    /// Leave everything running and say how to go on from there.
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
    let _lock = only_demo()?;
    if args.remove {
        match args.kubernetes {
            true => clusters::Lab::down(kubernetes::LAB)?,
            false => Lab::remove_named(PREFIX)?,
        }
        return Ok(true);
    }
    remove_when_interrupted(args.kubernetes)?;
    run(Command::new("iperf3").arg("--version")).context("iperf3 is missing: use `cargo xtask demo`")?;
    let mut report = Report::new(args.json);
    match (args.kubernetes, args.overlap) {
        (true, _) => kubernetes::run(&mut report, args.keep),
        (false, true) => overlap::run(&mut report, args.keep),
        (false, false) => stages::run(&mut report, args.keep),
    }
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
fn remove_when_interrupted(kubernetes: bool) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let mut remove = Command::new("sh");
    remove.args(["-c", "\"$0\" --remove \"$@\"; exit 130"]);
    remove.arg(std::env::current_exe().context("this executable has no path")?);
    remove.args(kubernetes.then_some("--kubernetes"));
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            eprintln!("Interrupted: the lab is being removed.");
            // In place of this process, whose locks end so.
            eprintln!("The lab could not be removed: {}", remove.exec());
            std::process::exit(1);
        }
    });
    Ok(())
}
