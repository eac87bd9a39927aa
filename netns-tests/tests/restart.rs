//! Daemons that end, by accident or by order, and what that costs (Submariner's cases R1 to R4, and suspension).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_netns_tests::{
    Bulk, CableDriver, Conversation, Deployment, Namespace, NodePlan, Pinger, Pings, Role, Settings, Topology, wait_for,
};
use nix::sys::signal::Signal;

const PORT: u16 = 7000;
const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);
/// Bytes; more than was on its way before an outage.
const BULK: u64 = 32 << 20;
/// Nodes of east: whose gateway ends, and whose takes over. The second time it is one that was active before.
const HAND_OVERS: [(&str, &str); 2] = [("gw", "standby"), ("standby", "gw")];

fn worker_pods(deployment: &Deployment) -> (Namespace, Namespace, Ipv4Addr) {
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    (east.pod.clone(), west.pod.clone(), west.pod_address)
}

fn restart(deployment: &mut Deployment, cluster: &str, node: &str, role: Role) {
    deployment.kill(cluster, node, role).unwrap();
    deployment.start(cluster, node, role).unwrap();
    deployment.daemon(cluster, node, role).wait_ready(READY).unwrap();
}

/// Says something and hears the answer.
fn exchange(conversation: &mut Conversation, words: &str) {
    conversation.say(words.as_bytes()).unwrap();
    conversation.hear(words.as_bytes(), READY).unwrap_or_else(|error| panic!("{words}: {error:#}"));
}

/// Waits until so much has arrived that it was sent after the last outage.
fn wait_flowing(bulk: &Bulk, when: &str) {
    let enough = bulk.received() + BULK;
    wait_for(&format!("the flow {when}"), READY, || Ok((bulk.received() >= enough).then_some(()))).unwrap();
}

/// Ends the active gateway of east while another stands by; returns what that cost probes of pods on a worker and on both
/// gateways' nodes.
fn replace(deployment: &mut Deployment, ending: &str, taking: &str) -> Vec<(String, Pings)> {
    let (east, _, address) = worker_pods(deployment);
    deployment.start("east", taking, Role::Gateway).unwrap();
    deployment.daemon("east", taking, Role::Gateway).wait_ready(READY).unwrap();
    let start = |node: &str| {
        let pod = deployment.lab.node("east", node).pod.clone();
        (node.to_owned(), Pinger::start(&pod, address, PROBE).unwrap())
    };
    let pingers = ["worker", ending, taking].map(start);
    deployment.terminate("east", ending, Role::Gateway).unwrap();
    deployment.wait_active("east", taking).unwrap();
    deployment.wait_reachable(&east, address).unwrap();
    pingers.into_iter().map(|(node, pinger)| (node, pinger.finish().unwrap())).collect()
}

/// A connection that always has a few packets on their way, both ways. Not more: the probes shall not wait in a queue.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Load {
    fn start(from: &Namespace, server: &Namespace, to: SocketAddrV4) -> Self {
        let mut conversation = Conversation::open(from, server, to).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let chunk = [7; 10_000];
            let mut chunks = 0;
            while !stopped.load(Ordering::Relaxed) {
                conversation.say(&chunk).unwrap();
                conversation.hear(&chunk, READY).unwrap();
                chunks += 1;
            }
            conversation.close().unwrap();
            chunks
        });
        Self { stop, thread }
    }

    /// Stops and returns how much went both ways; fails if the connection broke.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// R1, with SIGKILL and under load: the load's connection and an idle one live through it.
#[test]
fn a_gateway_killed_under_load_is_back_and_connections_live() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let (east, west, address) = worker_pods(&deployment);
    let mut conversation = Conversation::open(&east, &west, SocketAddrV4::new(address, PORT)).unwrap();
    for cluster in ["east", "west"] {
        let load = Load::start(&east, &west, SocketAddrV4::new(address, PORT + 1));
        let pinger = Pinger::start(&east, address, PROBE).unwrap();
        exchange(&mut conversation, "before");

        restart(&mut deployment, cluster, "gw", Role::Gateway);
        deployment.wait_reachable(&east, address).unwrap();

        exchange(&mut conversation, "after");
        let pings = pinger.finish().unwrap();
        assert!(load.finish() > 0, "{cluster}: no load, {pings:?}");
    }
    conversation.close().unwrap();
}

/// R1 and R2 beside a stream as fast as it goes: all of it arrives.
#[test]
fn a_bulk_transfer_lives_through_kills_and_hand_overs() {
    let mut topology = Topology::east_west();
    topology.cluster_mut("east").nodes.push(NodePlan::worker("standby"));
    let mut deployment = Deployment::connected(&topology, Settings::default()).unwrap();
    let (east, west, address) = worker_pods(&deployment);
    let bulk = Bulk::start(&east, &west, SocketAddrV4::new(address, PORT)).unwrap();
    wait_flowing(&bulk, "at first");
    for cluster in ["east", "west"] {
        restart(&mut deployment, cluster, "gw", Role::Gateway);
        wait_flowing(&bulk, &format!("after a kill in {cluster}"));
    }
    for (ending, taking) in HAND_OVERS {
        replace(&mut deployment, ending, taking);
        wait_flowing(&bulk, &format!("{ending} to {taking}"));
    }
    bulk.finish().unwrap();
}

/// R2: when the active gateway is told to end while another stands by, no probe of a worker's pod is lost and a connection
/// lives, also on the way back. Pods on the gateways' nodes lose a few at most: their way in and their way out change one
/// after the other, and connection tracking drops an answer whose question went elsewhere.
#[test]
fn a_standby_takes_over_without_loss() {
    let mut topology = Topology::east_west();
    topology.cluster_mut("east").nodes.push(NodePlan::worker("standby"));
    let mut deployment = Deployment::connected(&topology, Settings::default()).unwrap();
    let (east, west, address) = worker_pods(&deployment);
    let pod = |node: &str| deployment.lab.node("east", node).pod.clone();
    let mut conversations = Vec::new();
    for (port, from) in (PORT..).zip([east, pod("gw"), pod("standby")]) {
        conversations.push(Conversation::open(&from, &west, SocketAddrV4::new(address, port)).unwrap());
    }
    for (ending, taking) in HAND_OVERS {
        let pings = replace(&mut deployment, ending, taking);
        for (node, pings) in pings {
            let most = if node == "worker" { 0 } else { pings.sent / 10 };
            assert!(pings.lost <= most, "{ending} to {taking}, from {node}: {pings:?}\n{}", deployment.logs());
        }
        for conversation in &mut conversations {
            exchange(conversation, &format!("{ending} to {taking}"));
        }
        // A Submariner peer must find exactly one Endpoint of ours.
        let published = fs::read_dir(deployment.lab.broker().join("endpoints")).unwrap();
        let names = published.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.starts_with("east")).count(), 1);
    }
    for conversation in conversations {
        conversation.close().unwrap();
    }
}

/// R1 and R2 over VXLAN; a connection lives through all of it.
#[test]
fn a_vxlan_gateway_is_restarted_and_replaced() {
    let mut topology = Topology::routed();
    topology.cluster_mut("east").nodes.push(NodePlan::worker("standby"));
    let settings = Settings { driver: CableDriver::Vxlan, ..Settings::default() };
    let mut deployment = Deployment::connected(&topology, settings).unwrap();
    let (east, west, address) = worker_pods(&deployment);
    let mut conversation = Conversation::open(&east, &west, SocketAddrV4::new(address, PORT)).unwrap();
    restart(&mut deployment, "east", "gw", Role::Gateway);
    deployment.wait_reachable(&east, address).unwrap();
    exchange(&mut conversation, "restarted");
    for (ending, taking) in HAND_OVERS {
        let pings = replace(&mut deployment, ending, taking);
        for (node, pings) in pings {
            assert!(pings.lost < pings.sent, "{ending} to {taking}, from {node}: {pings:?}\n{}", deployment.logs());
        }
        exchange(&mut conversation, &format!("{ending} to {taking}"));
    }
    conversation.close().unwrap();
}

/// R3 and R4: what the route agent made in the kernel stays while it is away.
#[test]
fn a_route_agent_restarts_without_loss() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let (east, _, address) = worker_pods(&deployment);
    for node in ["gw", "worker"] {
        let pinger = Pinger::start(&east, address, PROBE).unwrap();
        restart(&mut deployment, "east", node, Role::RouteAgent);
        deployment.wait_reachable(&east, address).unwrap();
        let pings = pinger.finish().unwrap();
        assert_eq!(pings.lost, 0, "{node}: {pings:?}\n{}", deployment.logs());
    }
}

#[test]
fn a_suspended_peer_is_reported_and_comes_back() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let (east, _, address) = worker_pods(&deployment);
    let gateway = deployment.daemon("west", "gw", Role::Gateway);
    gateway.signal(Signal::SIGSTOP).unwrap();
    deployment.wait_disconnected("east", "west").unwrap();
    deployment.daemon("west", "gw", Role::Gateway).signal(Signal::SIGCONT).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    deployment.wait_reachable(&east, address).unwrap();
}

#[test]
fn a_peer_whose_address_changes_is_followed() {
    let deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let (east, _, address) = worker_pods(&deployment);
    let west = deployment.lab.cluster("west");
    // The router masquerades to another address from now on; the flows it knows are cut.
    west.router.ip("addr add 203.0.113.100/32 dev wan").unwrap();
    deployment.lab.internet()[1].ip(&format!("route add 203.0.113.100/32 via {}", west.wan_address)).unwrap();
    deployment.lab.internet()[0].ip("route add 203.0.113.100/32 via 203.0.113.254").unwrap();
    west.router.nft("flush table ip router\nadd rule ip router postrouting oifname wan snat to 203.0.113.100").unwrap();
    west.router.run("conntrack -F").unwrap();
    wait_for("an answer along the new address", READY, || {
        let pings = culvert_netns_tests::ping(&east, address, 1, PROBE)?;
        Ok((pings.lost == 0).then_some(()))
    })
    .unwrap();
}
