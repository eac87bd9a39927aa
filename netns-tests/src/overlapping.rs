//! Two clusters with the same CIDRs, with the same services in both, and what their records say of global addresses.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::run;
use crate::deployment::{Deployment, Settings};
use crate::greeter::{Greeter, Greeting, Transport, greet_from};
use crate::lab::{Lab, Node};
use crate::namespace::Namespace;
use crate::records::records;
use crate::services::{BackendPlan, NAMESPACE, ServicePlan, write_export, write_pod, write_service};
use crate::topology::Topology;
use crate::wait::wait_for;

const PATIENCE: Duration = Duration::from_secs(20);
/// The nodes of each cluster whose pods serve.
const NODES: [&str; 2] = ["gw", "worker"];

/// The clusters `east` and `west`, and who serves in them.
///
/// On every node two pods serve: the first behind the Service `web`, the second behind the headless Service `db`.
pub struct Overlapping {
    pub deployment: Deployment,
    servers: Vec<Greeter>,
}

impl Overlapping {
    /// Each cluster and the other one.
    pub const CLUSTERS: [(&str, &str); 2] = [("east", "west"), ("west", "east")];
    /// Port of the services.
    pub const PORT: u16 = 80;
    /// Port of the pods behind them, and of the headless service.
    pub const TARGET_PORT: u16 = 8080;

    /// Prepares clusters with these networks; starts no daemon.
    pub fn prepare(lab: Lab) -> Result<Self> {
        let deployment = Deployment::new(lab, Settings::default())?;
        let mut world = Self { deployment, servers: Vec::new() };
        for (cluster, _) in Self::CLUSTERS {
            for node in NODES {
                world.add_second_pod(cluster, node)?;
                let pods = [world.pod(cluster, node), world.second_pod(cluster, node)];
                let names = [format!("{cluster}-{node}"), format!("{cluster}-db-{node}")];
                for (pod, name) in pods.iter().zip(names) {
                    world.servers.push(Greeter::start(pod, &name, Self::TARGET_PORT)?);
                }
                let store = world.store(cluster);
                let address = world.node(cluster, node).pod_address;
                write_pod(&store, &format!("web-{node}"), address, json!({"app": "web", "node": node}))?;
                let address = world.second_address(cluster, node);
                write_pod(&store, &format!("db-{node}"), address, json!({"app": "db"}))?;
            }
            world.write_web(cluster)?;
            let db = ServicePlan { name: "db".to_owned(), cluster_ip: None, port: Self::TARGET_PORT, ..Self::web() };
            let backend = |node: &str| BackendPlan::ready(&format!("db-{node}"), world.second_address(cluster, node));
            write_service(&world.store(cluster), &db, &NODES.map(backend))?;
            for name in ["web", "db"] {
                write_export(&world.store(cluster), name)?;
            }
        }
        Ok(world)
    }

    /// Starts the daemons and waits until the clusters are connected, all services have their addresses, and pods of each
    /// node reach those of the others'.
    pub fn join(&mut self) -> Result<()> {
        let clusters = Self::CLUSTERS.map(|(cluster, _)| cluster);
        self.deployment.start_clusters(&clusters)?;
        self.deployment.wait_connected(&clusters)?;
        for cluster in clusters {
            for name in ["web", "pod-db-gw", "pod-db-worker"] {
                self.wait_address(cluster, name)?;
            }
        }
        // Every node has its routes once its pod is answered.
        for (here, there) in Self::CLUSTERS {
            for (node, other) in NODES.iter().flat_map(|node| NODES.map(|other| (node, other))) {
                let to = self.global_address(there, &format!("pod-db-{other}"))?;
                self.deployment.wait_reachable(&self.pod(here, node), to)?;
            }
        }
        Ok(())
    }

    /// Builds and joins clusters.
    pub fn up(topology: &Topology) -> Result<Self> {
        let mut world = Self::prepare(Lab::build(topology)?)?;
        world.join()?;
        Ok(world)
    }

    /// Returns the service of the first pods.
    pub fn web() -> ServicePlan {
        ServicePlan {
            name: "web".to_owned(),
            cluster_ip: Some(Ipv4Addr::new(10, 96, 0, 10)),
            port: Self::PORT,
            target_port: Self::TARGET_PORT,
            affinity: None,
        }
    }

    /// Writes the service `web` with the first pods of all nodes behind it.
    pub fn write_web(&self, cluster: &str) -> Result<()> {
        write_service(&self.store(cluster), &Self::web(), &self.web_backends(cluster))
    }

    /// Returns who serves `web`.
    pub fn web_backends(&self, cluster: &str) -> Vec<BackendPlan> {
        let backend = |node: &str| BackendPlan::ready(&format!("web-{node}"), self.node(cluster, node).pod_address);
        NODES.map(backend).into()
    }

    /// Writes and exports one more service, served by the first pod on the gateway's node.
    pub fn write_another(&self, cluster: &str, name: &str) -> Result<()> {
        let cluster_ip = Some(Ipv4Addr::new(10, 96, 0, 11));
        let plan = ServicePlan { name: name.to_owned(), cluster_ip, ..Self::web() };
        let backend = BackendPlan::ready("web-gw", self.node(cluster, "gw").pod_address);
        write_service(&self.store(cluster), &plan, &[backend])?;
        write_export(&self.store(cluster), name)
    }

    /// Returns the directory of a cluster's records.
    pub fn store(&self, cluster: &str) -> PathBuf {
        self.deployment.lab.cluster(cluster).records()
    }

    /// Returns a node.
    pub fn node(&self, cluster: &str, node: &str) -> &Node {
        self.deployment.lab.node(cluster, node)
    }

    /// Returns the network of the first pod of a node.
    pub fn pod(&self, cluster: &str, node: &str) -> Namespace {
        self.node(cluster, node).pod.clone()
    }

    /// Returns the network of the second pod of a node.
    pub fn second_pod(&self, cluster: &str, node: &str) -> Namespace {
        Namespace::new(format!("{}-db", self.node(cluster, node).pod.name()))
    }

    fn second_address(&self, cluster: &str, node: &str) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.node(cluster, node).pod_address) + 1)
    }

    fn add_second_pod(&self, cluster: &str, node: &str) -> Result<()> {
        let pod = self.second_pod(cluster, node);
        let Node { namespace, pod_network, .. } = self.node(cluster, node);
        run(Command::new("ip").args(["netns", "add", pod.name()]))?;
        let link = "link add pod2 type veth peer name eth0 netns";
        namespace.ip(&format!("{link} {}\nlink set pod2 master cni0 up\n", pod.name()))?;
        let gateway = Ipv4Addr::from(u32::from(pod_network.network()) + 1);
        let address = self.second_address(cluster, node);
        pod.ip(&format!(
            "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
        ))
    }

    /// Returns the address of a GlobalIngressIP.
    pub fn global_address(&self, cluster: &str, name: &str) -> Result<Ipv4Addr> {
        self.find_address(cluster, name)?.with_context(|| format!("{name} of {cluster} has no address"))
    }

    /// Waits until a GlobalIngressIP has its address.
    pub fn wait_address(&self, cluster: &str, name: &str) -> Result<()> {
        let what = format!("the global address of {name} in {cluster}");
        let found = wait_for(&what, PATIENCE, || Ok(self.find_address(cluster, name)?.map(|_| ())));
        self.deployment.explain(found)
    }

    fn find_address(&self, cluster: &str, name: &str) -> Result<Option<Ipv4Addr>> {
        let object = self.object(cluster, &format!("globalingressips/{NAMESPACE}"), name)?;
        let address = object["status"]["allocatedIP"].as_str().filter(|address| !address.is_empty());
        Ok(address.map(str::parse).transpose()?)
    }

    /// Returns the addresses by which a cluster's pods leave, once it has them.
    pub fn cluster_egress(&self, cluster: &str) -> Result<BTreeSet<Ipv4Addr>> {
        self.wait_addresses(cluster, "clusterglobalegressips", "cluster-egress.submariner.io")
    }

    /// Returns the addresses of a GlobalEgressIP, once it has them.
    pub fn egress(&self, cluster: &str, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
        self.wait_addresses(cluster, &format!("globalegressips/{NAMESPACE}"), name)
    }

    fn wait_addresses(&self, cluster: &str, place: &str, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
        let found = wait_for(&format!("the addresses of {name}"), PATIENCE, || {
            let object = self.object(cluster, place, name)?;
            let addresses = object["status"]["allocatedIPs"].as_array().cloned().unwrap_or_default();
            let addresses: BTreeSet<Ipv4Addr> =
                addresses.iter().filter_map(|address| address.as_str()?.parse().ok()).collect();
            Ok((!addresses.is_empty()).then_some(addresses))
        });
        self.deployment.explain(found)
    }

    /// Returns an object of a store, by its folder and name.
    pub fn object(&self, cluster: &str, place: &str, name: &str) -> Result<Value> {
        let objects = records(&self.store(cluster), place)?;
        let found = objects.into_iter().find(|object| object["metadata"]["name"] == name);
        found.with_context(|| format!("{place} of {cluster} has no {name}"))
    }

    /// Greets a server; a failure has the daemons' logs.
    pub fn greet(&self, from: &Namespace, transport: Transport, to: SocketAddrV4) -> Result<Greeting> {
        self.deployment.explain(greet_from(from, transport, to, 0))
    }

    /// Waits until a greeting is as it should be, and returns it.
    pub fn wait_greeting(
        &self,
        from: &Namespace,
        transport: Transport,
        to: SocketAddrV4,
        check: impl Fn(&Greeting) -> bool,
    ) -> Result<Greeting> {
        let what = format!("a greeting of {to} by {transport:?}");
        self.deployment.explain(wait_for(&what, PATIENCE, || {
            let greeting = greet_from(from, transport, to, 0)?;
            anyhow::ensure!(check(&greeting), "it was {greeting:?}");
            Ok(Some(greeting))
        }))
    }
}
