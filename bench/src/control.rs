//! The bench of the control plane: how soon a cluster that joins is reached, what Culvert's components cost when nothing
//! happens, and how soon routes to many clusters are in.
//!
//! It stands in two real Kubernetes clusters on this machine. West is measured; east has the broker, and leaves before
//! the many come, since its copies of their records would be made on the same processors.

mod crowd;
pub(crate) mod process;
mod report;
mod requests;
mod routes;
mod standing;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use culvert_netns_tests::kubernetes::{Node, Pod, serve};

use crate::path::machine;
use crowd::{Crowd, SUBNETS};
use process::{Process, Program, Usage};
use report::{Component, Idle, Join, Load, Report};
use standing::{FirstPing, Standing};

/// The lab's name; one that was left is taken down with it.
const LAB: &str = "bench";
/// How long the components have to come to rest before they are watched.
const REST: Duration = Duration::from_secs(10);

/// What the control bench is told.
#[derive(Args)]
pub(crate) struct ControlArgs {
    /// How many remote Endpoints the broker has, one after the other; separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "10,200,1000", value_parser = clap::value_parser!(u32).range(1..=1000))]
    remotes: Vec<u32>,
    /// Seconds in which nothing changes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=600))]
    seconds: u64,
    /// Write all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Measures, and prints the tables to standard output; progress goes to standard error.
///
/// # Errors
///
/// A cluster did not come up, or something did not come within minutes.
pub(crate) fn run(args: &ControlArgs) -> Result<()> {
    let machine = machine()?;
    let window = Duration::from_secs(args.seconds);
    say("two clusters come up");
    let standing = Standing::up(LAB)?;

    // Only nodes ask for Leases now, and pods do not concern them.
    let (before, began) = ([requests::of(standing.west())?, requests::of(standing.east())?], Instant::now());
    let pods = [serve(standing.west())?, serve(standing.east())?].map(|web| web.pods);
    thread::sleep(window.saturating_sub(began.elapsed()));
    let of_nodes = [requests::of(standing.west())?.since(&before[0]), requests::of(standing.east())?.since(&before[1])];

    let join = joined(&standing, &pods[0][1], &pods[1][1])?;
    standing.add_standby()?;
    say("nothing changes");
    thread::sleep(REST);
    let idle = idle(&standing, &of_nodes, window)?;

    say("east leaves, its broker stays");
    standing.culvert(standing.east(), "uninstall --yes")?;
    standing.lift_policies()?;
    let mut loads = Vec::new();
    let mut first = 0;
    for &remotes in &args.remotes {
        say(&format!("{remotes} remote clusters"));
        let crowd = Crowd::new(&standing.east().kubeconfig(), first, remotes)?;
        first += remotes;
        loads.push(loaded(&standing, &crowd, remotes, &of_nodes[0], window)?);
    }

    let report = Report { machine, seconds: args.seconds, join, idle, loads };
    println!("{}", report.text());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).context("the report is no JSON")?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Joins both clusters, and pings from a pod of the second to one of the first until that is answered.
fn joined(standing: &Standing, from: &Pod, to: &Pod) -> Result<Join> {
    say("east joins");
    standing.culvert(standing.east(), "deploy-broker")?;
    standing.join(standing.east())?;
    say("west joins");
    let ping = FirstPing::start(from, to)?;
    let start = Instant::now();
    let answered = thread::scope(|scope| {
        let answered = scope.spawn(|| ping.answered());
        standing.join(standing.west())?;
        let command_seconds = start.elapsed().as_secs_f64();
        let answered = answered.join().expect("waiting does not panic")?;
        anyhow::Ok((command_seconds, answered))
    })?;
    let (command_seconds, answered) = answered;
    Ok(Join { command_seconds, first_ping_seconds: answered.duration_since(start).as_secs_f64() })
}

/// Finds all daemons of west: the active gateway first, then the one that stands by, then the route agents.
fn components(standing: &Standing) -> Result<Vec<(String, Process)>> {
    let active = standing.active()?;
    let role = |node: &Node, program| match (program, node.name == active.name) {
        (Program::Gateway, true) => "gateway, active",
        (Program::Gateway, false) => "gateway, standby",
        (Program::RouteAgent, true) => "route agent, on the gateway",
        (Program::RouteAgent, false) => "route agent, on a worker",
    };
    let mut components = Vec::new();
    for program in Program::ALL {
        let mut nodes: Vec<&Node> = standing.west().nodes.iter().collect();
        nodes.sort_by_key(|node| node.name != active.name);
        for node in nodes {
            components.push((role(node, program).to_owned(), Process::find(node, program)?));
        }
    }
    Ok(components)
}

fn usages(components: &[(String, Process)]) -> Result<Vec<Usage>> {
    components.iter().map(|(_, process)| process.usage()).collect()
}

fn spent(components: &[(String, Process)], before: &[Usage]) -> Result<Vec<Component>> {
    let spent = |((name, process), before): (&(String, Process), &Usage)| {
        Ok(Component { name: name.clone(), spent: process.usage()?.since(before) })
    };
    components.iter().zip(before).map(spent).collect()
}

/// Watches the components for a while in which nothing changes.
fn idle(standing: &Standing, of_nodes: &[requests::Rates; 2], window: Duration) -> Result<Idle> {
    let components = components(standing)?;
    let asked = [requests::of(standing.west())?, requests::of(standing.east())?];
    let before = usages(&components)?;
    thread::sleep(window);
    let components = spent(&components, &before)?;
    let [west, east] = [(standing.west(), 0), (standing.east(), 1)]
        .map(|(cluster, at)| anyhow::Ok(requests::of(cluster)?.since(&asked[at]).without(&of_nodes[at])));
    Ok(Idle { components, west: west?, east: east? })
}

/// Lets the remote clusters join, watches the components with them, and lets them leave.
fn loaded(
    standing: &Standing,
    crowd: &Crowd,
    remotes: u32,
    of_nodes: &requests::Rates,
    window: Duration,
) -> Result<Load> {
    let (transitions, clusters) = (standing.transitions()?, standing.known_clusters()?);
    let routes = routes::Routes::on(standing.west(), standing.active()?)?;
    let wanted = usize::try_from(remotes)? * SUBNETS;
    let components = components(standing)?;
    let before = usages(&components)?;
    let (written, arrived) = thread::scope(|scope| {
        let arrived = scope.spawn(|| routes.wait_for(wanted));
        let written = crowd.join()?;
        anyhow::Ok((written, arrived.join().expect("looking does not panic")?))
    })?;
    let arriving = spent(&components, &before)?;
    let (write_seconds, routes_in) = (written.duration().as_secs_f64(), written.lag(arrived));
    say(&format!("  routes are in {:.1} s after the last record", routes_in.from_last_write));

    standing.wait_copied(clusters + usize::try_from(remotes)?)?;
    thread::sleep(REST);
    let asked = requests::of(standing.west())?;
    let before = usages(&components)?;
    thread::sleep(window);
    let steady = spent(&components, &before)?;
    let requests = requests::of(standing.west())?.since(&asked).without(of_nodes);
    let gateway_record_bytes = standing.largest("gateways.submariner.io")?;
    let route_agent_record_bytes = standing.largest("routeagents.submariner.io")?;

    let left = crowd.leave()?;
    let routes_gone = left.lag(routes.wait_for(0)?);
    Ok(Load {
        remotes,
        write_seconds,
        routes_in,
        routes_gone,
        arriving,
        steady,
        requests,
        gateway_record_bytes,
        route_agent_record_bytes,
        takeovers: standing.transitions()?.saturating_sub(transitions),
    })
}

fn say(what: &str) {
    eprintln!("{what}");
}
