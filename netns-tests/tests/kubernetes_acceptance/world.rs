//! The clusters of the acceptance list, what runs in them, and what is asked of them in every case.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_netns_tests::kubernetes::{
    BROKER_NAMESPACE, Cluster, Installer, Lab, NAMESPACE, Pod, Web, deploy, host_pods, serve, service_address, state,
};
use culvert_netns_tests::{Conversation, Pinger, Pings, wait_for};
use serde_json::Value;

/// How long anything may take: minutes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Of flows that live through everything.
const FLOW_PORT: u16 = 7000;
const PROBE: Duration = Duration::from_millis(25);
/// Pods of the Deployment `shop`: enough to be on several nodes.
pub(crate) const SHOP: usize = 3;

pub(crate) struct World<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) installer: Installer,
    /// Has the broker, and kube-proxy in its iptables form.
    pub(crate) east: Site<'a>,
    /// Has kube-proxy in its nftables form.
    pub(crate) west: Site<'a>,
    /// Joins later; its nodes are behind NAT.
    pub(crate) north: Site<'a>,
}

/// A cluster, and pods of every kind in it.
pub(crate) struct Site<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) web: Web,
    /// Pods in the nodes' own network.
    pub(crate) hosts: Vec<Pod>,
    /// Address of the Service before the Deployment `shop`.
    pub(crate) shop: String,
}

impl<'a> World<'a> {
    /// Makes the image and starts pods in all clusters at once. Nothing of Culvert is in their API servers yet.
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let clusters = ["east", "west", "north"].map(|name| lab.cluster(name));
        let (sites, installer) = thread::scope(|scope| {
            let sites = clusters.map(|cluster| scope.spawn(|| Site::new(cluster).unwrap()));
            let installer = Installer::new(lab).unwrap();
            (sites.map(|site| site.join().unwrap()), installer)
        });
        let [east, west, north] = sites;
        Self { lab, installer, east, west, north }
    }

    pub(crate) fn sites(&self) -> [&Site<'a>; 3] {
        [&self.east, &self.west, &self.north]
    }

    /// Runs a line of `culvert` that succeeds, and returns what it prints.
    pub(crate) fn culvert(&self, site: &Site, line: &str) -> String {
        self.installer.run(site.cluster, line).unwrap()
    }
}

impl<'a> Site<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        deploy(cluster, "shop", SHOP)?;
        let shop = service_address(cluster, "shop")?.to_string();
        Ok(Self { cluster, web: serve(cluster)?, hosts: host_pods(cluster)?, shop })
    }

    pub(crate) fn name(&self) -> &str {
        self.cluster.name()
    }

    /// Returns the Gateway records.
    pub(crate) fn gateways(&self) -> Result<Vec<Value>> {
        self.cluster.items(&format!("get gateways.submariner.io --namespace {NAMESPACE}"))
    }

    /// Waits until the Gateway records are of these nodes and no others, one of them active and connected to just these
    /// clusters, the others passive; returns the active one's.
    pub(crate) fn wait_gateways(&self, nodes: &[&str], remote: &[&str]) -> Value {
        wait_for(&format!("gateways {nodes:?} of {}", self.name()), PATIENCE, || self.active(nodes, remote).map(Some))
            .unwrap()
    }

    /// Waits as [`Site::wait_gateways`] does, until the first of the nodes has the active gateway.
    pub(crate) fn wait_active(&self, nodes: &[&str], remote: &[&str]) -> Value {
        let first = format!("{}-{}", self.name(), nodes[0]);
        wait_for(&format!("an active gateway on {first}"), PATIENCE, || {
            let active = self.active(nodes, remote)?;
            ensure!(active["metadata"]["name"] == first, "{} is active", active["metadata"]["name"]);
            Ok(Some(active))
        })
        .unwrap()
    }

    fn active(&self, nodes: &[&str], remote: &[&str]) -> Result<Value> {
        let wanted: BTreeSet<String> = nodes.iter().map(|node| format!("{}-{node}", self.name())).collect();
        let records = self.gateways()?;
        let found: BTreeSet<&str> = records.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
        ensure!(found == wanted.iter().map(String::as_str).collect(), "there are {found:?}");
        let (active, passive): (Vec<&Value>, Vec<&Value>) =
            records.iter().partition(|one| one["status"]["haStatus"] == "active");
        let are_passive = passive.iter().all(|one| one["status"]["haStatus"] == "passive");
        ensure!(active.len() == 1 && are_passive, "{records:?}");
        let connections = active[0]["status"]["connections"].as_array().cloned().unwrap_or_default();
        let connected = connections.iter().filter(|one| one["status"] == "connected");
        let connected: BTreeSet<&str> = connected.filter_map(|one| one["endpoint"]["cluster_id"].as_str()).collect();
        ensure!(connected == remote.iter().copied().collect(), "connected to just {connected:?}");
        Ok(active[0].clone())
    }

    /// Returns Culvert's pods of this name, `culvert-gateway` or `culvert-route-agent`, on all nodes or on one.
    pub(crate) fn own_pods(&self, name: &str, node: Option<&str>) -> Result<Vec<Value>> {
        let on = node.map(|node| format!("--field-selector spec.nodeName={}-{node}", self.name())).unwrap_or_default();
        self.cluster.items(&format!("get pods --namespace {NAMESPACE} --selector app={name} {on}"))
    }

    /// Deletes Culvert's pods of this name on a node, and waits until others are ready in their place.
    pub(crate) fn replace_pods(&self, name: &str, node: &str) {
        let uids = |pods: &[Value]| -> BTreeSet<String> {
            pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)).collect()
        };
        let pods = self.own_pods(name, Some(node)).unwrap();
        let before = uids(&pods);
        assert_eq!(before.len(), 1, "{name} on {node} of {}", self.name());
        let pod = pods[0]["metadata"]["name"].as_str().unwrap();
        self.cluster.kubectl(&format!("delete pod {pod} --namespace {NAMESPACE}")).unwrap();
        wait_for(&format!("another {name} on {node} of {}", self.name()), PATIENCE, || {
            let pods = self.own_pods(name, Some(node))?;
            let is_ready = pods.iter().all(|pod| pod["status"]["containerStatuses"][0]["ready"] == true);
            Ok((pods.len() == 1 && is_ready && uids(&pods).is_disjoint(&before)).then_some(()))
        })
        .unwrap();
    }

    /// Sets a label of a node, or takes it away with `label-`.
    pub(crate) fn label(&self, node: &str, label: &str) {
        self.cluster.kubectl(&format!("label node {}-{node} {label}", self.name())).unwrap();
    }

    /// Returns every object of the API server that is not of the moment, as `KIND NAMESPACE NAME`.
    pub(crate) fn objects(&self) -> BTreeSet<String> {
        let kinds = self.cluster.kubectl("api-resources --verbs=list,delete --output name").unwrap();
        let kinds: Vec<&str> = kinds.lines().collect();
        let columns = "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name";
        let line = format!("get {} --all-namespaces --no-headers --output {columns}", kinds.join(","));
        let listing = self.cluster.kubectl(&line).unwrap();
        let objects = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // Pods of Deployments come and go, and so do an API server's own leases.
        let is_of_the_moment = |kind: &str| ["Event", "Pod", "Lease"].contains(&kind);
        objects.filter(|words| !is_of_the_moment(words[0])).map(|words| words.join(" ")).collect()
    }
}

/// Asserts that all pods of one site reach all of the other's by TCP, data go both ways, and they are seen as who they are.
pub(crate) fn assert_pods_reach_pods(from: &Site, to: &Site) {
    for pod in &from.web.pods {
        for other in &to.web.pods {
            let what = format!("an answer of {} to {} on {}", other.address, pod.address, pod.node.name);
            let source = wait_for(&what, PATIENCE, || pod.source_seen_by(&other.web()).map(Some)).unwrap();
            assert_eq!(source, pod.address, "{what}");
            pod.fetch_large(&other.web()).unwrap();
        }
    }
}

/// Asserts that every pod of one site is answered by every pod behind the other's Service, and is seen as who it is.
pub(crate) fn assert_pods_reach_service(from: &Site, to: &Site) {
    let behind: BTreeSet<String> = to.web.pods.iter().map(|pod| pod.name.clone()).collect();
    for pod in &from.web.pods {
        let service = to.web.service.to_string();
        let mut answered = BTreeSet::new();
        let what = format!("answers of all behind service {service} to {} on {}", pod.address, pod.node.name);
        wait_for(&what, PATIENCE, || {
            let answer = pod.ask(&service)?;
            assert_eq!(answer.source, pod.address, "{what}");
            answered.insert(answer.server);
            Ok((answered == behind).then_some(()))
        })
        .unwrap();
    }
}

/// Asserts that pods reach pods and Services, both ways.
pub(crate) fn assert_joined(one: &Site, other: &Site) {
    for (from, to) in [(one, other), (other, one)] {
        assert_pods_reach_pods(from, to);
        assert_pods_reach_service(from, to);
    }
}

/// Probes between all nodes' pods of two sites, and a connection between two workers' that was open before.
pub(crate) struct Traffic {
    probes: Vec<(String, Pinger)>,
    flow: Conversation,
}

impl Traffic {
    pub(crate) fn start(from: &Site, to: &Site) -> Self {
        let mut probes = Vec::new();
        for pod in &from.web.pods {
            let network = pod.network().unwrap();
            for other in &to.web.pods {
                let name = format!("{} to {}", pod.node.name, other.node.name);
                probes.push((name, Pinger::start(&network, other.address, PROBE).unwrap()));
            }
        }
        let [client, server] = [from, to].map(|site| site.web.pods.last().unwrap());
        let address = SocketAddrV4::new(server.address, FLOW_PORT);
        let flow = Conversation::open(&client.network().unwrap(), &server.network().unwrap(), address).unwrap();
        let mut traffic = Self { probes, flow };
        traffic.assert_flow_lives();
        traffic
    }

    /// Asserts that words go over the connection and come back.
    pub(crate) fn assert_flow_lives(&mut self) {
        self.flow.say(b"alive?").unwrap();
        self.flow.hear(b"alive?", PATIENCE).unwrap();
    }

    /// Ends it, and tells what became of the probes from each node to each other.
    pub(crate) fn finish(mut self) -> Vec<(String, Pings)> {
        self.assert_flow_lives();
        self.flow.close().unwrap();
        self.probes.into_iter().map(|(name, pinger)| (name, pinger.finish().unwrap())).collect()
    }

    /// Ends it, and asserts that most probes were answered: a pod on the leaving gateway's own node has its way out and its
    /// way in changed one after the other, and connection tracking drops an answer whose question went elsewhere.
    pub(crate) fn finish_with_little_loss(self) {
        for (name, pings) in self.finish() {
            assert!(pings.lost < pings.sent / 5, "{name}: {pings:?}");
        }
    }

    /// Ends it, and asserts that no probe was lost.
    pub(crate) fn finish_without_loss(self) {
        for (name, pings) in self.finish() {
            assert!(pings.sent > 0 && pings.lost == 0, "{name}: {pings:?}");
        }
    }
}

/// Returns the names of what is at the broker.
pub(crate) fn broker_records(broker: &Site) -> Vec<String> {
    let kinds = "clusters.submariner.io,endpoints.submariner.io";
    let listing = broker.cluster.kubectl(&format!("get {kinds} --namespace {BROKER_NAMESPACE} --output name")).unwrap();
    listing.lines().map(str::to_owned).collect()
}

/// Shows how everything is if a case fails.
pub(crate) struct LastWords<'a>(pub(crate) &'a Lab);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", state(self.0));
        }
    }
}
