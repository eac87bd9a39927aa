//! The stages of the demo with real Kubernetes clusters: a platform engineer's commands, in order, and what comes of them.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_netns_tests::kubernetes::{Cluster, Lab, NAMESPACE, Plan, ProxyMode, Web, serve};
use culvert_netns_tests::{Binaries, leftovers, run as run_command, wait_for};
use ipnet::Ipv4Net;
use serde_json::Value;

use crate::report::{Facts, Report};
use crate::shell::Shell;
use crate::traffic::{Pod, capture, pairs, ping_pairs, probe, speed};

/// The lab's name. Fixed, so that a kept demo is found again.
pub(crate) const LAB: &str = "demo";

const CLUSTERS: [&str; 2] = ["east", "west"];
/// How long pods and cables may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest outage after SIGKILL: kubelet looks once a second which containers have ended, and starts them again.
const RESTART_BUDGET: Duration = Duration::from_secs(10);

/// Kinds of objects that belong to no namespace, and of which Culvert or a broker makes some.
const CLUSTER_WIDE: &str = "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,\
                            validatingadmissionpolicies,validatingadmissionpolicybindings";

/// A web server in a pod.
struct Server {
    cluster: &'static str,
    /// As `kubectl exec` takes it.
    name: String,
    /// ADDRESS:PORT.
    url: String,
    pod: Pod,
}

/// Runs all stages; later ones only if the clusters were joined at all.
pub(crate) fn run(report: &mut Report, keep: bool) {
    let title = "Two Kubernetes clusters of two nodes, east and west (behind NAT), and Culvert's image on all nodes";
    let Some((lab, shell)) = report.stage(title, bring_up) else { return };
    let before = CLUSTERS.map(|name| cluster_wide(lab.cluster(name)));
    if join(report, &lab, &shell).is_some() {
        if let Some(servers) = report.stage("A web server in a pod on every node, and a Service for them", |facts| {
            serve_both(&lab, &shell, facts)
        }) {
            show_traffic(report, &lab, &shell, &servers);
        }
        if !keep {
            report.stage("Both clusters leave, and the broker goes", |facts| uninstall(&lab, &shell, before, facts));
        }
    }
    if keep {
        shell.tell(report);
        for node in lab.clusters().iter().flat_map(|cluster| &cluster.nodes) {
            report.say(&format!("    nsenter --net=/run/netns/{} bash    # the node's network", node.namespace.name()));
        }
        report.say("Remove them: cargo xtask demo --kubernetes --remove");
        report.stage("Everything is left running", |_| lab.keep());
    }
}

fn bring_up(facts: &mut Facts) -> Result<(Lab, Shell)> {
    let mut plan = Plan::new(LAB, &CLUSTERS, 2, ProxyMode::Iptables)?;
    let west = plan.cluster_mut("west");
    west.network.behind_nat = true;
    west.proxy_mode = ProxyMode::Nftables;
    let lab = Lab::up(&plan)?;
    for cluster in lab.clusters() {
        let network = &cluster.plan.network;
        let nat = if network.behind_nat { ", behind NAT" } else { "" };
        facts.say(format!(
            "{}: API server https://{}:6443, nodes {}{nat}, pods {}, services {} (kube-proxy: {})",
            cluster.name(),
            cluster.public_address,
            network.node_network,
            network.pod_cidr,
            network.service_cidr,
            cluster.plan.proxy_mode
        ));
    }
    let shell = Shell::open(&lab)?;
    let directory = lab.directory().join("images");
    let tool = Binaries::find()?.tool();
    let binaries = tool.parent().expect("a binary is in a directory");
    // As `cargo xtask images` makes it.
    let archive = culvert_image::culvert(culvert_image::REFERENCE, binaries, &directory)?.write(&directory)?;
    lab.clusters().iter().try_for_each(|cluster| cluster.import(&archive))?;
    for name in CLUSTERS {
        shell.types(&format!("kubectl --context {name} get nodes"), facts)?;
    }
    Ok((lab, shell))
}

/// Makes a broker and joins both clusters; returns nothing if that failed.
fn join(report: &mut Report, lab: &Lab, shell: &Shell) -> Option<()> {
    report.stage("East becomes the broker: it keeps the records of all clusters", |facts| {
        types_without_warning(shell, "culvert deploy-broker --context east", facts)
    })?;
    for name in CLUSTERS {
        report.stage(&format!("The cluster {name} joins"), |facts| {
            types_without_warning(shell, &join_line(lab.cluster(name)), facts)
        })?;
    }
    report.stage("The clusters are connected", |facts| {
        for name in CLUSTERS {
            let connections = wait_connected(shell, name)?;
            shell.types(&format!("culvert show connections --context {name}"), facts)?;
            facts.value(name, connections);
        }
        Ok(())
    })
}

/// The line by which a cluster joins. Only what the lab's network plugin does not tell is given by hand.
fn join_line(cluster: &Cluster) -> String {
    let (name, pods) = (cluster.name(), cluster.plan.network.pod_cidr);
    format!("culvert join broker-info.subm --context {name} --clusterid {name} --clustercidr {pods}")
}

fn types_without_warning(shell: &Shell, line: &str, facts: &mut Facts) -> Result<()> {
    let text = shell.types(line, facts)?;
    let warnings: Vec<&str> = text.lines().filter(|line| line.starts_with("warning:")).collect();
    ensure!(warnings.is_empty(), "{}", warnings.join("\n"));
    Ok(())
}

/// Waits until a cluster is connected to the other, and returns its connections.
fn wait_connected(shell: &Shell, name: &str) -> Result<Value> {
    wait_for(&format!("the connection of {name}"), PATIENCE, || {
        let mut shown = shell.json(&format!("culvert show connections --context {name}"))?;
        let rows = shown["connections"].as_array().map_or(&[][..], Vec::as_slice);
        let connected = !rows.is_empty() && rows.iter().all(|row| row["status"] == "connected");
        Ok(connected.then(|| shown["connections"].take()))
    })
}

fn serve_both(lab: &Lab, shell: &Shell, facts: &mut Facts) -> Result<[(Vec<Server>, Web); 2]> {
    let [east, west] = CLUSTERS.map(|name| (name, lab.cluster(name)));
    let both = thread::scope(|scope| {
        let threads = [east, west].map(|(_, cluster)| scope.spawn(|| serve(cluster)));
        threads.map(|thread| thread.join().expect("serving does not panic"))
    });
    let servers = |name: &'static str, web: Web| -> Result<(Vec<Server>, Web)> {
        let server = |pod: &culvert_netns_tests::kubernetes::Pod| {
            let seen = Pod { name: pod.node.name.clone(), namespace: pod.network()?, address: pod.address };
            Ok(Server { cluster: name, name: pod.name.clone(), url: pod.web(), pod: seen })
        };
        Ok((web.pods.iter().map(server).collect::<Result<_>>()?, web))
    };
    let [at_east, at_west] = both;
    let found = [servers("east", at_east?)?, servers("west", at_west?)?];
    for name in CLUSTERS {
        shell.types(&format!("kubectl --context {name} get pods,services --output wide"), facts)?;
    }
    Ok(found)
}

fn show_traffic(report: &mut Report, lab: &Lab, shell: &Shell, [east, west]: &[(Vec<Server>, Web); 2]) {
    let servers = [&east.0[..], &west.0[..]];
    let pods = servers.map(|servers| servers.iter().map(|server| server.pod.clone()).collect::<Vec<_>>());
    let all = [&pods[0][..], &pods[1][..]];
    let workers = [&pods[0][1], &pods[1][1]];
    report.stage("Ping between all pods, both ways", |facts| ping_pairs(pairs(all), facts));
    report.stage("HTTP between all pods, both ways: a server sees the address of the pod that asks", |facts| {
        pairs(servers).try_for_each(|[from, to]| asks(shell, from, &to.url, facts))
    });
    report.stage("HTTP to the other cluster's Service by its address", |facts| {
        for (from, to) in [(&east.0[1], west), (&west.0[1], east)] {
            asks(shell, from, &to.1.service.to_string(), facts)?;
        }
        Ok(())
    });
    report.stage("The payload does not appear on the Internet", |facts| {
        capture(workers, &lab.internet(), pod_networks(lab), facts)
    });
    report.stage("Throughput of one TCP flow between pods of worker nodes", |facts| speed(workers, facts));
    report.stage("The gateway of west is killed (SIGKILL); kubelet starts it again", |facts| {
        kill_gateway(lab, shell, workers, facts)
    });
    let standby = report.stage("A second node of west stands by as gateway", |facts| stand_by(shell, facts));
    if standby.is_some() {
        report.stage("A rolling update of west: other settings, one gateway after the other", |facts| {
            let line = format!("{} --health-check-interval 1", join_line(lab.cluster("west")));
            let pings = probe(workers, facts, |facts| types_without_warning(shell, &line, facts))?;
            facts.expect(pings.lost == 0, || "no probe may be lost".to_owned());
            Ok(())
        });
    }
}

/// Lets a pod ask a web server whom it sees.
fn asks(shell: &Shell, from: &Server, server: &str, facts: &mut Facts) -> Result<()> {
    let Server { cluster, name, pod, .. } = from;
    let line = format!("kubectl --context {cluster} exec {name} -- wget -q -O - http://{server}/cgi-bin/source");
    let seen = shell.types(&line, facts)?;
    let seen = seen.trim();
    facts.value(format!("{} {server}", pod.address), seen);
    facts.expect(seen == pod.address.to_string(), || format!("{} was seen as {seen}", pod.address));
    Ok(())
}

fn kill_gateway(lab: &Lab, shell: &Shell, ends: [&Pod; 2], facts: &mut Facts) -> Result<()> {
    let node = lab.cluster("west").node("node1");
    let pods = format!("kubectl --context west --namespace {NAMESPACE} get pods --selector app=culvert-gateway");
    let pings = probe(ends, facts, |facts| {
        facts.say(format!("$ killall -KILL culvert-gateway    # on {}", node.name));
        run_command(node.command("busybox")?.args(["killall", "-KILL", "culvert-gateway"]))?;
        wait_for("the gateway's restart", PATIENCE, || {
            let status = &shell.json(&pods)?["items"][0]["status"]["containerStatuses"][0];
            Ok((status["restartCount"].as_u64() > Some(0) && status["ready"] == true).then_some(()))
        })
    })?;
    shell.types(&pods, facts)?;
    facts.expect(pings.longest_outage < RESTART_BUDGET, || format!("the outage has to be under {RESTART_BUDGET:?}"));
    Ok(())
}

fn stand_by(shell: &Shell, facts: &mut Facts) -> Result<()> {
    shell.types("kubectl --context west label node west-node2 submariner.io/gateway=true", facts)?;
    wait_for("a gateway that stands by", PATIENCE, || {
        let shown = shell.json("culvert show gateways --context west")?;
        Ok((shown["gateways"].as_array().map_or(0, Vec::len) == 2).then_some(()))
    })?;
    shell.types("culvert show gateways --context west", facts)?;
    Ok(())
}

fn uninstall(lab: &Lab, shell: &Shell, before: [Result<BTreeSet<String>>; 2], facts: &mut Facts) -> Result<()> {
    for name in ["west", "east"] {
        shell.types(&format!("culvert uninstall --context {name} --yes"), facts)?;
    }
    // The broker went with the last of its members.
    let mut left = Vec::new();
    for (name, before) in CLUSTERS.into_iter().zip(before) {
        let cluster = lab.cluster(name);
        let before = before?;
        left.extend(cluster_wide(cluster)?.difference(&before).map(|object| format!("{name}: {object}")));
        for node in &cluster.nodes {
            left.extend(leftovers(&node.namespace)?);
        }
    }
    ensure!(left.is_empty(), "this is left: {}", left.join("; "));
    facts.say("No link, route, rule or nft table is left on any node, and no object in any API server.");
    Ok(())
}

/// Returns the names of objects that belong to no namespace.
fn cluster_wide(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let names = cluster.kubectl(&format!("get {CLUSTER_WIDE} --output name"))?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn pod_networks(lab: &Lab) -> Vec<Ipv4Net> {
    lab.clusters().iter().map(|cluster| cluster.plan.network.pod_cidr).collect()
}
