//! The stages of the demo, in order, with the loss budget that each one has to keep.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;
use culvert_netns_tests::{Capture, Deployment, Lab, NodePlan, Role, Settings, Topology, Watchlist, transfer};

use crate::PREFIX;
use crate::report::{Facts, Report};
use crate::traffic::{MARKER, PORT, Pod, capture, pairs, ping_pairs, probe, speed};

const CLUSTERS: [&str; 2] = ["east", "west"];
/// The nodes whose pods talk, by name within their clusters.
const NODES: [&str; 2] = ["gw", "worker"];
/// A second node of `east` that may be a gateway.
const STANDBY: &str = "standby";

const READY: Duration = Duration::from_secs(20);

/// The longest outage after SIGKILL and restart.
const RESTART_BUDGET: Duration = Duration::from_secs(1);
/// The longest outage when a node dies: the lease (15 s), one retry (2 s), and one more second.
const NODE_DEATH_BUDGET: Duration = Duration::from_secs(18);

/// Runs all stages; later ones only if the clusters were joined at all.
pub(crate) fn run(report: &mut Report, keep: bool) {
    let deployment = report.stage("Two clusters, east and west (behind NAT), of network namespaces", build);
    let Some(mut deployment) = deployment else { return };
    let started = report.stage("The daemons run on every node", |_| deployment.start_clusters(&CLUSTERS));
    let joined = started.and_then(|()| report.stage("The clusters are connected", |facts| connect(&deployment, facts)));
    if joined.is_some() {
        let [east, west] = CLUSTERS.map(|cluster| pods(&deployment, cluster));
        let all = [&east[..], &west[..]];
        let workers = [&east[1], &west[1]];
        report.stage("Ping between all pods, both ways", |facts| ping_pairs(pairs(all), facts));
        report.stage("TCP between all pods, both ways, source address kept", |facts| transfers(all, facts));
        report.stage("The payload does not appear on the Internet", |facts| {
            capture(workers, &deployment.lab.internet()[0], pod_networks(&deployment), facts)
        });
        report.stage("Throughput of one TCP flow between worker pods", |facts| speed(workers, facts));
        for cluster in CLUSTERS {
            report.stage(&format!("The gateway of {cluster} is killed and started again"), |facts| {
                restart(&mut deployment, workers, cluster, facts)
            });
        }
        report.stage("The gateway of east is stopped, a standby takes over", |facts| {
            take_over(&mut deployment, workers, facts)
        });
        report.stage("The node of the active gateway dies", |facts| node_death(&mut deployment, workers, facts));
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

/// Returns the pods of a cluster that talk.
fn pods(deployment: &Deployment, cluster: &str) -> Vec<Pod> {
    let pod = |node: &str| {
        let node = deployment.lab.node(cluster, node);
        Pod { name: node.name.clone(), namespace: node.pod.clone(), address: node.pod_address }
    };
    NODES.map(pod).to_vec()
}

fn transfers(pods: [&[Pod]; 2], facts: &mut Facts) -> Result<()> {
    let payload = MARKER.repeat(20_000);
    for [from, to] in pairs(pods) {
        let seen = transfer(&from.namespace, &to.namespace, SocketAddrV4::new(to.address, PORT), &payload)?;
        facts.say(format!(
            "{:<12} -> {:<12} {} kB both ways from {}",
            from.name,
            to.name,
            payload.len() / 1000,
            seen.source
        ));
        facts.expect(seen.source == from.address, || format!("{} was seen as {}", from.address, seen.source));
    }
    Ok(())
}

fn restart(deployment: &mut Deployment, ends: [&Pod; 2], cluster: &str, facts: &mut Facts) -> Result<()> {
    let watchlist = Watchlist { markers: Vec::new(), subnets: pod_networks(deployment) };
    let capture = Capture::start(&deployment.lab.internet()[0], "core", watchlist)?;
    let pings = probe(ends, facts, |_| {
        deployment.kill(cluster, "gw", Role::Gateway)?;
        deployment.start(cluster, "gw", Role::Gateway)?;
        deployment.daemon(cluster, "gw", Role::Gateway).wait_ready(READY)?;
        wait_reachable(deployment, ends)
    })?;
    let leaked = capture.finish()?.addresses;
    facts.expect(pings.longest_outage < RESTART_BUDGET, || format!("the outage has to be under {RESTART_BUDGET:?}"));
    facts.expect(leaked.is_empty(), || format!("meanwhile in the clear: {leaked:?}"));
    Ok(())
}

fn take_over(deployment: &mut Deployment, ends: [&Pod; 2], facts: &mut Facts) -> Result<()> {
    deployment.start("east", STANDBY, Role::Gateway)?;
    deployment.daemon("east", STANDBY, Role::Gateway).wait_ready(READY)?;
    let pings = probe(ends, facts, |_| {
        deployment.terminate("east", "gw", Role::Gateway)?;
        deployment.wait_active("east", STANDBY)?;
        wait_reachable(deployment, ends)
    })?;
    facts.expect(pings.lost == 0, || "no probe may be lost".to_owned());
    Ok(())
}

fn node_death(deployment: &mut Deployment, ends: [&Pod; 2], facts: &mut Facts) -> Result<()> {
    deployment.start("east", "gw", Role::Gateway)?;
    deployment.daemon("east", "gw", Role::Gateway).wait_ready(READY)?;
    let pings = probe(ends, facts, |_| {
        deployment.kill_node("east", STANDBY)?;
        deployment.wait_active("east", "gw")?;
        wait_reachable(deployment, ends)
    })?;
    deployment.revive_node("east", STANDBY)?;
    facts.expect(pings.longest_outage < NODE_DEATH_BUDGET, || {
        format!("the outage has to be under {NODE_DEATH_BUDGET:?}")
    });
    Ok(())
}

/// Waits as [`probe`] does, but shows the daemons' logs if it is in vain.
fn wait_reachable(deployment: &Deployment, [from, to]: [&Pod; 2]) -> Result<()> {
    deployment.wait_reachable(&from.namespace, to.address)
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

fn pod_networks(deployment: &Deployment) -> Vec<ipnet::Ipv4Net> {
    deployment.lab.clusters().iter().map(|cluster| cluster.plan.pod_cidr).collect()
}

pub(crate) fn tell_how_to_step_in(report: &Report, lab: &Lab) {
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
