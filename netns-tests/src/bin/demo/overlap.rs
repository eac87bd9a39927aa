//! The demo of two clusters with the same CIDRs: global addresses, who is seen as whom, and what outlives what.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_netns_tests::{
    Caller, Lab, NodePlan, Overlapping, Proxy, Role, Topology, Transport, greet_from, ping, write_egress,
};
use serde_json::json;

use crate::PREFIX;
use crate::report::{Facts, Report};
use crate::stages::tell_how_to_step_in;

const NODES: [&str; 2] = ["gw", "worker"];
/// A second node of `west` that may be a gateway.
const STANDBY: &str = "standby";
const READY: Duration = Duration::from_secs(20);
const PROBE: Duration = Duration::from_millis(10);

/// Runs all stages; later ones only if the clusters were joined at all.
pub(crate) fn run(report: &mut Report, keep: bool) {
    let world = report.stage("Two clusters with the same CIDRs, a service and a headless service in each", build);
    let Some(mut world) = world else { return };
    let joined = report.stage("The daemons run, and every exported service has a global address", |facts| {
        world.join()?;
        show(&world, facts)
    });
    if joined.is_some() {
        report.stage("Pods reach services of the other cluster, and servers see who called", |facts| {
            call_services(&world, facts)
        });
        report.stage("Pods of a headless service are reached by their own addresses", |facts| {
            call_headless_pods(&world, facts)
        });
        report.stage("Chosen pods leave by addresses of their own", |facts| choose(&world, facts));
        report.stage("Addresses answer pings, and those that nobody holds refuse", |facts| refuse(&world, facts));
        report.stage("Globalnet is killed and started again: flows live, addresses stay", |facts| {
            restart(&mut world, facts)
        });
        report.stage("The gateway of west is stopped, a standby takes over: addresses stay", |facts| {
            take_over(&mut world, facts)
        });
    }
    if keep {
        world.deployment.lab.keep();
        tell_how_to_step_in(report, &world.deployment.lab);
    } else if joined.is_some() {
        report.stage("Removal leaves no link, route, rule or nft table", |facts| {
            for (cluster, _) in Overlapping::CLUSTERS {
                world.deployment.uninstall(cluster)?;
                for leftover in world.deployment.leftovers(cluster)? {
                    facts.expect(false, || leftover);
                }
            }
            Ok(())
        });
    }
}

fn build(facts: &mut Facts) -> Result<Overlapping> {
    let mut topology = Topology::overlapping(Proxy::Nftables);
    topology.cluster_mut("west").nodes.push(NodePlan::worker(STANDBY));
    for plan in &topology.clusters {
        let global = plan.global_cidr.context("the clusters have global CIDRs")?;
        facts.say(format!("{}: pods {}, services {}, global {global}", plan.id, plan.pod_cidr, plan.service_cidr));
    }
    Overlapping::prepare(Lab::build_named(PREFIX, &topology)?)
}

fn show(world: &Overlapping, facts: &mut Facts) -> Result<()> {
    for (cluster, _) in Overlapping::CLUSTERS {
        facts.say(format!("$ culvert show global-ips   (in {cluster})"));
        facts.say(world.deployment.show("global-ips", cluster)?);
    }
    Ok(())
}

fn call_services(world: &Overlapping, facts: &mut Facts) -> Result<()> {
    for (here, there) in Overlapping::CLUSTERS {
        let to = SocketAddrV4::new(world.global_address(there, "web")?, Overlapping::PORT);
        let sources = world.cluster_egress(here)?;
        for (node, transport) in NODES.into_iter().flat_map(|node| Transport::ALL.map(|transport| (node, transport))) {
            let mut servers: BTreeMap<String, u32> = BTreeMap::new();
            for _ in 0..50 {
                let greeting = world.greet(&world.pod(here, node), transport, to)?;
                *servers.entry(greeting.who).or_default() += 1;
                let source = greeting.source;
                facts.expect(sources.contains(&source), || format!("{source} is no address of {here}"));
            }
            let servers: Vec<String> = servers.iter().map(|(who, times)| format!("{who} {times}")).collect();
            facts.say(format!("{here}-{node:<6} -> {to} {transport:?}: {}", servers.join(", ")));
            facts.expect(servers.len() == 2, || "both pods of the service have to be reached".to_owned());
        }
    }
    Ok(())
}

fn call_headless_pods(world: &Overlapping, facts: &mut Facts) -> Result<()> {
    for (here, there) in Overlapping::CLUSTERS {
        for node in NODES {
            let name = format!("pod-db-{node}");
            let to = SocketAddrV4::new(world.global_address(there, &name)?, Overlapping::TARGET_PORT);
            let own = world.global_address(here, &name)?;
            let greeting = world.greet(&world.second_pod(here, node), Transport::Tcp, to)?;
            facts.say(format!("{here}-db-{node:<6} -> {to}: {} sees {}", greeting.who, greeting.source));
            facts.expect(greeting.source == own, || format!("{own} was seen as {}", greeting.source));
        }
    }
    Ok(())
}

fn choose(world: &Overlapping, facts: &mut Facts) -> Result<()> {
    write_egress(&world.store("east"), "workers", 2, Some(json!({"node": "worker"})))?;
    let sources = world.egress("east", "workers")?;
    let to = SocketAddrV4::new(world.global_address("west", "web")?, Overlapping::PORT);
    let from = world.pod("east", "worker");
    let greeting = world.wait_greeting(&from, Transport::Tcp, to, |it| sources.contains(&it.source))?;
    facts.say(format!("GlobalEgressIP shop/workers: {} sees {}", greeting.who, greeting.source));
    Ok(())
}

fn refuse(world: &Overlapping, facts: &mut Facts) -> Result<()> {
    let from = world.pod("east", "worker");
    for name in ["web", "pod-db-worker"] {
        let address = world.global_address("west", name)?;
        let pings = ping(&from, address, 20, PROBE)?;
        facts.say(format!("{name} ({address}): {}/{} lost", pings.lost, pings.sent));
        facts.expect(pings.lost == 0, || format!("{} of {} probes lost", pings.lost, pings.sent));
    }
    let nobody = SocketAddrV4::new([242, 2, 77, 77].into(), Overlapping::PORT);
    let refused = greet_from(&from, Transport::Tcp, nobody, 0).err().map(|error| format!("{error:#}"));
    facts.say(refused.clone().unwrap_or_default());
    facts.expect(refused.is_some_and(|text| text.contains("refused")), || format!("{nobody} has to refuse"));
    Ok(())
}

fn restart(world: &mut Overlapping, facts: &mut Facts) -> Result<()> {
    let to = SocketAddrV4::new(world.global_address("west", "web")?, Overlapping::PORT);
    let mut caller = Caller::open(&world.pod("east", "worker"), Transport::Tcp, to, 0)?;
    let before = caller.greet()?;
    for cluster in ["east", "west"] {
        world.deployment.kill(cluster, "gw", Role::Globalnet)?;
        world.deployment.start(cluster, "gw", Role::Globalnet)?;
        world.deployment.daemon(cluster, "gw", Role::Globalnet).wait_ready(READY)?;
    }
    let after = caller.greet()?;
    facts.say(format!("{} sees {}, as before", after.who, after.source));
    facts.expect(before == after, || format!("it was {before:?} and is {after:?}"));
    facts.expect(world.global_address("west", "web")? == *to.ip(), || "the address has changed".to_owned());
    Ok(())
}

fn take_over(world: &mut Overlapping, facts: &mut Facts) -> Result<()> {
    let to = SocketAddrV4::new(world.global_address("west", "web")?, Overlapping::PORT);
    for role in [Role::Gateway, Role::Globalnet] {
        world.deployment.start("west", STANDBY, role)?;
        world.deployment.daemon("west", STANDBY, role).wait_ready(READY)?;
    }
    world.deployment.terminate("west", "gw", Role::Gateway)?;
    world.deployment.wait_active("west", STANDBY)?;
    let sources = world.egress("east", "workers")?;
    let from = world.pod("east", "worker");
    let greeting = world.wait_greeting(&from, Transport::Tcp, to, |it| sources.contains(&it.source))?;
    facts.say(format!("{to}: {} sees {}", greeting.who, greeting.source));
    facts.expect(world.global_address("west", "web")? == *to.ip(), || "the address has changed".to_owned());
    Ok(())
}
