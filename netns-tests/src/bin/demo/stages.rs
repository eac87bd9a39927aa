//! The stages of the demo, in order, with the loss budget that each one has to keep.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use culvert_netns_tests::{
    Capture, Deployment, Lab, Namespace, NodePlan, Pinger, Pings, Role, Settings, Topology, Watchlist, ping,
    throughput, transfer,
};

use crate::PREFIX;
use crate::report::{Facts, Report};

const CLUSTERS: [&str; 2] = ["east", "west"];
/// The nodes whose pods talk, by name within their clusters.
const NODES: [&str; 2] = ["gw", "worker"];
/// A second node of `east` that may be a gateway.
const STANDBY: &str = "standby";

const PORT: u16 = 7000;
const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);
/// How long probes go on around an event, so that a loss just before or after is seen.
const MARGIN: Duration = Duration::from_millis(500);

/// The longest outage after SIGKILL and restart.
const RESTART_BUDGET: Duration = Duration::from_secs(1);
/// The longest outage when a node dies: the lease (15 s), one retry (2 s), and one more second.
const NODE_DEATH_BUDGET: Duration = Duration::from_secs(18);

const MARKER: &[u8] = b"This text must not be readable on the Internet. ";

/// Runs all stages; later ones only if the clusters were joined at all.
pub(crate) fn run(report: &mut Report, keep: bool) {
    let deployment = report.stage("Two clusters, east and west (behind NAT), of network namespaces", build);
    let Some(mut deployment) = deployment else { return };
    let started = report.stage("The daemons run on every node", |_| deployment.start_clusters(&CLUSTERS));
    let joined = started.and_then(|()| report.stage("The clusters are connected", |facts| connect(&deployment, facts)));
    if joined.is_some() {
        report.stage("Ping between all pods, both ways", |facts| pings(&deployment, facts));
        report.stage("TCP between all pods, both ways, source address kept", |facts| transfers(&deployment, facts));
        report.stage("The payload does not appear on the Internet", |facts| capture(&deployment, facts));
        report.stage("Throughput of one TCP flow between worker pods", |facts| speed(&deployment, facts));
        for cluster in CLUSTERS {
            report.stage(&format!("The gateway of {cluster} is killed and started again"), |facts| {
                restart(&mut deployment, cluster, facts)
            });
        }
        report.stage("The gateway of east is stopped, a standby takes over", |facts| take_over(&mut deployment, facts));
        report.stage("The node of the active gateway dies", |facts| node_death(&mut deployment, facts));
    }
    if keep {
        deployment.lab.keep();
        tell_how_to_step_in(report, &deployment.lab);
    } else if started.is_some() {
        report.stage("Removal leaves no link, route, rule or nft table", |facts| remove(&mut deployment, facts));
    }
}

fn build(facts: &mut Facts) -> Result<Deployment> {
    let mut topology = Topology::east_west();
    topology.cluster_mut("east").nodes.push(NodePlan::worker(STANDBY));
    let deployment = Deployment::new(Lab::build_named(PREFIX, &topology)?, Settings::default())?;
    for cluster in deployment.lab.clusters() {
        let plan = &cluster.plan;
        let nat = if plan.behind_nat { ", behind NAT" } else { "" };
        facts.say(format!(
            "{}: nodes {}{nat}, pods {}, services {}",
            plan.id, plan.node_network, plan.pod_cidr, plan.service_cidr
        ));
    }
    Ok(deployment)
}

fn connect(deployment: &Deployment, facts: &mut Facts) -> Result<()> {
    deployment.wait_connected(&CLUSTERS)?;
    for cluster in CLUSTERS {
        facts.say(format!("$ culvert show connections   (in {cluster})"));
        facts.say(deployment.show("connections", cluster)?);
    }
    Ok(())
}

/// Returns all ordered pairs of nodes in different clusters, as cluster and name.
fn pairs() -> impl Iterator<Item = [(&'static str, &'static str); 2]> {
    let ways = [("east", "west"), ("west", "east")];
    let nodes = NODES.into_iter().flat_map(|from| NODES.into_iter().map(move |to| (from, to)));
    ways.into_iter().flat_map(move |(here, there)| nodes.clone().map(move |(from, to)| [(here, from), (there, to)]))
}

fn pings(deployment: &Deployment, facts: &mut Facts) -> Result<()> {
    for [(here, from), (there, to)] in pairs() {
        let (from, to) = (deployment.lab.node(here, from), deployment.lab.node(there, to));
        let pings = ping(&from.pod, to.pod_address, 20, PROBE)?;
        let round_trip = pings.round_trip.map_or("none".to_owned(), |time| format!("{:.2} ms", milliseconds(time)));
        facts.say(format!("{:<12} -> {:<12} {}/{} lost, {round_trip}", from.name, to.name, pings.lost, pings.sent));
        facts.value(format!("{} {}", from.name, to.name), pings.round_trip.map(milliseconds));
        facts.expect(pings.lost == 0, || format!("{} of {} probes lost", pings.lost, pings.sent));
    }
    Ok(())
}

fn transfers(deployment: &Deployment, facts: &mut Facts) -> Result<()> {
    let payload = MARKER.repeat(20_000);
    for [(here, from), (there, to)] in pairs() {
        let (from, to) = (deployment.lab.node(here, from), deployment.lab.node(there, to));
        let seen = transfer(&from.pod, &to.pod, SocketAddrV4::new(to.pod_address, PORT), &payload)?;
        facts.say(format!(
            "{:<12} -> {:<12} {} kB both ways from {}",
            from.name,
            to.name,
            payload.len() / 1000,
            seen.source
        ));
        facts.expect(seen.source == from.pod_address, || format!("{} was seen as {}", from.pod_address, seen.source));
    }
    Ok(())
}

fn capture(deployment: &Deployment, facts: &mut Facts) -> Result<()> {
    let (from, to) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    let watchlist = Watchlist { markers: vec![MARKER.to_vec()], subnets: pod_networks(deployment) };
    let inside = Capture::start(&from.pod, "eth0", watchlist.clone())?;
    let outside = Capture::start(&deployment.lab.internet()[0], "core", watchlist)?;
    transfer(&from.pod, &to.pod, SocketAddrV4::new(to.pod_address, PORT), &MARKER.repeat(1000))?;
    let (inside, outside) = (inside.finish()?, outside.finish()?);
    facts.say(format!("at the pod:      {} packets, {} with the text", inside.packets, inside.with_marker));
    facts.say(format!("on the Internet: {} packets, {} with the text", outside.packets, outside.with_marker));
    facts.value("packets", outside.packets);
    facts.value("readable", outside.with_marker);
    facts.expect(inside.with_marker > 0, || "the capture does not see the text where it must".to_owned());
    facts.expect(outside.packets > 0, || "the transfer did not cross the Internet".to_owned());
    facts.expect(outside.with_marker == 0, || "the text is readable on the Internet".to_owned());
    facts.expect(outside.addresses.is_empty(), || format!("pod addresses on the Internet: {:?}", outside.addresses));
    Ok(())
}

fn speed(deployment: &Deployment, facts: &mut Facts) -> Result<()> {
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    for (from, to) in [(east, west), (west, east)] {
        let bits = throughput(&from.pod, &to.pod, to.pod_address, 3)?;
        facts.say(format!("{} -> {}: {:.2} Gbit/s", from.name, to.name, bits / 1e9));
        facts.value(format!("{} {}", from.name, to.name), bits);
    }
    Ok(())
}

fn restart(deployment: &mut Deployment, cluster: &str, facts: &mut Facts) -> Result<()> {
    let watchlist = Watchlist { markers: Vec::new(), subnets: pod_networks(deployment) };
    let capture = Capture::start(&deployment.lab.internet()[0], "core", watchlist)?;
    let pings = probe(deployment, |deployment| {
        deployment.kill(cluster, "gw", Role::Gateway)?;
        deployment.start(cluster, "gw", Role::Gateway)?;
        deployment.daemon(cluster, "gw", Role::Gateway).wait_ready(READY)
    })?;
    let leaked = capture.finish()?.addresses;
    tell_loss(&pings, facts);
    facts.expect(pings.longest_outage < RESTART_BUDGET, || format!("the outage has to be under {RESTART_BUDGET:?}"));
    facts.expect(leaked.is_empty(), || format!("meanwhile in the clear: {leaked:?}"));
    Ok(())
}

fn take_over(deployment: &mut Deployment, facts: &mut Facts) -> Result<()> {
    deployment.start("east", STANDBY, Role::Gateway)?;
    deployment.daemon("east", STANDBY, Role::Gateway).wait_ready(READY)?;
    let pings = probe(deployment, |deployment| {
        deployment.terminate("east", "gw", Role::Gateway)?;
        deployment.wait_active("east", STANDBY)
    })?;
    tell_loss(&pings, facts);
    facts.expect(pings.lost == 0, || "no probe may be lost".to_owned());
    Ok(())
}

fn node_death(deployment: &mut Deployment, facts: &mut Facts) -> Result<()> {
    deployment.start("east", "gw", Role::Gateway)?;
    deployment.daemon("east", "gw", Role::Gateway).wait_ready(READY)?;
    let pings = probe(deployment, |deployment| {
        deployment.kill_node("east", STANDBY)?;
        deployment.wait_active("east", "gw")
    })?;
    deployment.revive_node("east", STANDBY)?;
    tell_loss(&pings, facts);
    facts.expect(pings.longest_outage < NODE_DEATH_BUDGET, || {
        format!("the outage has to be under {NODE_DEATH_BUDGET:?}")
    });
    Ok(())
}

fn remove(deployment: &mut Deployment, facts: &mut Facts) -> Result<()> {
    for cluster in CLUSTERS {
        deployment.uninstall(cluster)?;
    }
    for cluster in CLUSTERS {
        for leftover in deployment.leftovers(cluster)? {
            facts.expect(false, || leftover);
        }
    }
    Ok(())
}

/// Probes from a worker's pod to one of the other cluster while something happens, and until it is answered again.
fn probe(deployment: &mut Deployment, event: impl FnOnce(&mut Deployment) -> Result<()>) -> Result<Pings> {
    let (from, to) = ends(deployment);
    let pinger = Pinger::start(&from, to, PROBE)?;
    thread::sleep(MARGIN);
    event(deployment)?;
    deployment.wait_reachable(&from, to)?;
    thread::sleep(MARGIN);
    pinger.finish()
}

fn ends(deployment: &Deployment) -> (Namespace, std::net::Ipv4Addr) {
    (deployment.lab.node("east", "worker").pod.clone(), deployment.lab.node("west", "worker").pod_address)
}

fn pod_networks(deployment: &Deployment) -> Vec<ipnet::Ipv4Net> {
    deployment.lab.clusters().iter().map(|cluster| cluster.plan.pod_cidr).collect()
}

fn tell_loss(pings: &Pings, facts: &mut Facts) {
    let outage = milliseconds(pings.longest_outage);
    facts.say(format!("{} of {} probes lost, longest outage {outage:.0} ms", pings.lost, pings.sent));
    facts.value("lost", pings.lost);
    facts.value("sent", pings.sent);
    facts.value("outage_ms", outage);
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn tell_how_to_step_in(report: &Report, lab: &Lab) {
    report.say("The clusters stay. Step into a node or a pod:");
    let culvert =
        std::env::current_exe().map(|demo| demo.with_file_name("culvert")).unwrap_or_else(|_| "culvert".into());
    for cluster in lab.clusters() {
        for node in &cluster.nodes {
            report.say(&format!("    ip netns exec {} bash    # its pod: {}", node.namespace.name(), node.pod.name()));
        }
        report.say(&format!("    ip netns exec {} bash", cluster.router.name()));
        report.say(&format!("    {} show all --records {}", culvert.display(), cluster.records().display()));
    }
    report.say("Remove them: cargo xtask demo --remove");
}
