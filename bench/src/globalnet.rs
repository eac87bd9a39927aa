//! The bench of Globalnet: how soon one of many services changes in the kernel, what the daemon costs with them, and what
//! they cost the packets.
//!
//! For each number of services stands a gateway with the real daemon beside a stand-in for the API server
//! ([`server`]), all at the same time, so that each is measured in turn.

mod notices;
mod objects;
mod report;
mod server;
mod site;
mod traffic;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use culvert_netns_tests::wait_for;

use crate::path::{machine, remove_when_interrupted};
use notices::Notices;
use objects::{PORT, Service, TARGET_PORT, new_address};
use report::{Report, Row, Sample, Visit};
use site::Site;

/// Between two changes: the daemon is at rest before each.
const PAUSE: Duration = Duration::from_millis(150);
/// Since the last write of all that a start leads to.
const REST: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);

/// What the Globalnet bench is told.
#[derive(Args)]
pub(crate) struct GlobalnetArgs {
    /// How many services are exported, one gateway each; separated by commas. A gateway without any stands beside them.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000", value_parser = clap::value_parser!(u32).range(1..=30_000))]
    services: Vec<u32>,
    /// How many endpoints change, one after the other.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    changes: u32,
    /// How many services are exported one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    exports: u32,
    /// Seconds in which nothing changes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=600))]
    seconds: u64,
    /// How often the packets' way through each gateway is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Write all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Measures, and prints the tables to standard output; progress goes to standard error.
///
/// # Errors
///
/// A gateway could not be set up, or a change did not come to the kernel.
pub(crate) fn run(args: &GlobalnetArgs) -> Result<()> {
    remove_when_interrupted()?;
    let machine = machine()?;
    let directory = std::env::temp_dir().join(format!("culvert-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut sites = Vec::new();
    for &services in [0].iter().chain(&args.services) {
        say(&format!("a gateway with {services} exported services"));
        sites.push(Site::set_up(services, args.exports, &directory)?);
    }
    thread::sleep(REST);
    say("nothing changes");
    let before: Vec<_> = sites.iter().map(|site| site.process.usage()).collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(args.seconds));
    let mut rows = Vec::new();
    for (site, before) in sites.iter().zip(before) {
        let idle = site.process.usage()?.since(&before);
        rows.push(Row::new(site.services, site.settled_seconds, idle));
    }
    say("the packets' way");
    let mut visits = Vec::new();
    for round in 0..args.rounds {
        for at in 0..sites.len() {
            // In another order each round.
            let site = &sites[(at + usize::from(round)) % sites.len()];
            visits.push(visited(site)?);
        }
    }
    for (site, row) in sites.iter().zip(&mut rows).filter(|(site, _)| site.services > 0) {
        say(&format!("{} endpoints of {} services change", args.changes, site.services));
        let before = site.process.usage()?;
        row.changes = (0..args.changes).map(|number| changed(site, number)).collect::<Result<_>>()?;
        row.changing = Some(site.process.usage()?.since(&before));
        say(&format!("{} more services are exported", args.exports));
        row.exports = (0..args.exports).map(|number| exported(site, number)).collect::<Result<_>>()?;
    }
    drop(sites);
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    let report = Report { machine, seconds: args.seconds, rows, visits };
    println!("{}", report.text());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).context("the report is no JSON")?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Puts one endpoint in place of another; returns how long it took until the kernel had it, in milliseconds.
fn changed(site: &Site, number: u32) -> Result<f64> {
    thread::sleep(PAUSE);
    let service = Service(number * 7919 % site.services);
    let mut addresses = service.addresses();
    let endpoint = new_address(number);
    addresses[3] = endpoint;
    let notices = Notices::of(&site.gateway)?;
    let slice = service.slice(&addresses);
    let begun = Instant::now();
    site.server.put("endpointslices", slice);
    Ok(milliseconds(begun, notices.wait_for(endpoint, TARGET_PORT)?))
}

/// Exports one service more; returns when it was translated, when its address was known, and when it answered.
fn exported(site: &Site, number: u32) -> Result<Sample> {
    thread::sleep(PAUSE * 4);
    let service = Service(site.services + number);
    let first = service.addresses()[0];
    let notices = Notices::of(&site.gateway)?;
    let begun = Instant::now();
    site.server.put("serviceexports", service.export());
    let translated = notices.wait_for(first, TARGET_PORT)?;
    let address = wait_for("the address of a service", PATIENCE, || Ok(site.address(service)))?;
    let known = Instant::now();
    let answered = traffic::connect(&site.remote, SocketAddr::from((address, PORT)))?;
    Ok(Sample {
        translated: milliseconds(begun, translated),
        known: milliseconds(begun, known),
        answered: milliseconds(begun, answered),
    })
}

/// Measures the ways through a gateway: to a pod itself, and to one by its service, if there is any.
fn visited(site: &Site) -> Result<Visit> {
    let phase = Duration::from_secs(1);
    let pod = Ipv4Addr::new(10, 200, 0, 1);
    let direct = traffic::measure(&site.remote, SocketAddr::from((pod, TARGET_PORT)), phase)?;
    let address = site.services.checked_sub(1).and_then(|last| site.address(Service(last / 2)));
    let served = address.map(|address| traffic::measure(&site.remote, SocketAddr::from((address, PORT)), phase));
    Ok(Visit { services: site.services, direct, served: served.transpose()? })
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

fn say(what: &str) {
    eprintln!("{what}");
}
