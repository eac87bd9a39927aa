//! Nothing for a remote subnet leaves in the clear: not while a gateway is dead, not while none is active, not while the
//! other side has left. Old connections go on afterwards.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{
    Capture, Cluster, Conversation, Deployment, Role, Seen, Settings, Topology, Watchlist, ping, wait_for,
};

const PORT: u16 = 7000;
const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);
const MARKER: &[u8] = b"words that nobody may read";

/// Captures at both routers, where every packet that leaves a cluster passes, whoever masqueraded it.
struct Watch {
    captures: Vec<Capture>,
}

impl Watch {
    fn start(deployment: &Deployment) -> Self {
        let clusters = deployment.lab.clusters();
        let subnets = clusters.iter().flat_map(|cluster| [cluster.plan.pod_cidr, cluster.plan.service_cidr]).collect();
        let watchlist = Watchlist { markers: vec![MARKER.to_vec()], subnets };
        let start = |cluster: &Cluster| Capture::start(&cluster.router, "wan", watchlist.clone()).unwrap();
        Self { captures: clusters.iter().map(start).collect() }
    }

    fn assert_clean(self) {
        for capture in self.captures {
            let seen = capture.finish().unwrap();
            assert_eq!((seen.with_marker, seen.addresses.len()), (0, 0), "{seen:?}");
        }
    }

    fn finish(self) -> Vec<Seen> {
        self.captures.into_iter().map(|capture| capture.finish().unwrap()).collect()
    }
}

/// Probes all pods and the service of `there` from every pod and node of `here`, all at once.
fn probe_everything(deployment: &Deployment, here: &str, there: &str) {
    let there = deployment.lab.cluster(there);
    let targets = there.nodes.iter().map(|node| node.pod_address).chain([there.plan.service_address()]);
    let sources = deployment.lab.cluster(here).nodes.iter().flat_map(|node| [&node.pod, &node.namespace]);
    std::thread::scope(|scope| {
        for to in targets {
            for from in sources.clone() {
                scope.spawn(move || ping(from, to, 3, PROBE).unwrap());
            }
        }
    });
}

#[test]
fn the_watch_sees_what_leaves_in_the_clear() {
    let lab = culvert_netns_tests::Lab::build(&Topology::routed()).unwrap();
    let deployment = Deployment::new(lab, Settings::default()).unwrap();
    let watch = Watch::start(&deployment);
    probe_everything(&deployment, "east", "west");
    let seen = watch.finish();
    assert!(!seen[0].addresses.is_empty(), "{seen:?}");
}

/// Opens a connection between the workers' pods over which something was said.
fn conversation(deployment: &Deployment) -> Conversation {
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    let to = SocketAddrV4::new(west.pod_address, PORT);
    let mut conversation = Conversation::open(&east.pod, &west.pod, to).unwrap();
    conversation.say(b"hello").unwrap();
    conversation.hear(b"hello", READY).unwrap();
    conversation
}

#[test]
fn nothing_leaks_while_a_gateway_is_dead_and_old_flows_resume() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let mut conversation = conversation(&deployment);

    let watch = Watch::start(&deployment);
    deployment.kill("east", "gw", Role::Gateway).unwrap();
    conversation.say(MARKER).unwrap();
    probe_everything(&deployment, "east", "west");
    probe_everything(&deployment, "west", "east");
    deployment.start("east", "gw", Role::Gateway).unwrap();
    deployment.daemon("east", "gw", Role::Gateway).wait_ready(READY).unwrap();
    conversation.hear(MARKER, READY).unwrap();
    watch.assert_clean();
}

#[test]
fn nothing_leaks_while_no_gateway_is_active_and_old_flows_resume() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let mut conversation = conversation(&deployment);
    for cluster in ["east", "west"] {
        deployment.terminate(cluster, "gw", Role::Gateway).unwrap();
    }
    let watch = Watch::start(&deployment);
    conversation.say(MARKER).unwrap();
    probe_everything(&deployment, "east", "west");
    probe_everything(&deployment, "west", "east");
    for cluster in ["east", "west"] {
        deployment.start(cluster, "gw", Role::Gateway).unwrap();
        deployment.daemon(cluster, "gw", Role::Gateway).wait_ready(READY).unwrap();
    }
    conversation.hear(MARKER, READY).unwrap();
    watch.assert_clean();
}

#[test]
fn nothing_leaks_to_a_cluster_that_left_and_old_flows_resume_when_it_returns() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let mut conversation = conversation(&deployment);
    let watch = Watch::start(&deployment);
    deployment.uninstall("west").unwrap();
    assert_eq!(deployment.leftovers("west").unwrap(), Vec::<String>::new());
    probe_everything(&deployment, "east", "west");
    conversation.say(MARKER).unwrap();
    deployment.wait_disconnected("east", "west").unwrap();
    probe_everything(&deployment, "east", "west");
    watch.assert_clean();
    deployment.start_clusters(&["west"]).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    conversation.hear(MARKER, READY).unwrap();
}

#[test]
fn removal_leaves_nothing_on_any_node() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let there = |deployment: &Deployment| deployment.leftovers("east").unwrap();
    assert!(!there(&deployment).is_empty());
    deployment.uninstall("east").unwrap();
    wait_for("the removal", READY, || Ok(there(&deployment).is_empty().then_some(()))).unwrap();
}
