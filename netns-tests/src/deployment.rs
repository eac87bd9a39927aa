//! Culvert on a lab: the real daemons on every node, and what their records say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::command::run;
use crate::daemon::{Binaries, Daemon, Role};
use crate::lab::{Cluster, Lab, Node};
use crate::leftovers::leftovers;
use crate::namespace::Namespace;
use crate::ping::ping;
use crate::records::records;
use crate::topology::Topology;
use crate::wait::wait_for;

const READY: Duration = Duration::from_secs(20);
const CONNECTED: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(10);

const ROLES: [Role; 3] = [Role::Gateway, Role::Globalnet, Role::RouteAgent];

/// Returns what runs on a node of a deployment.
fn roles(cluster: &Cluster, node: &Node) -> Vec<Role> {
    let has = |role: &Role| match role {
        Role::Gateway => node.gateway,
        Role::Globalnet => node.gateway && cluster.plan.global_cidr.is_some(),
        Role::RouteAgent => true,
    };
    ROLES.into_iter().filter(has).collect()
}

/// How the clusters are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CableDriver {
    WireGuard,
    Vxlan,
}

/// What all gateways of a deployment are told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub driver: CableDriver,
    /// Whether the clusters exchange their records through the broker's directory.
    pub broker: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { driver: CableDriver::WireGuard, broker: true }
    }
}

/// A lab with daemons on it. When a method fails, its error has the ends of the daemons' logs.
pub struct Deployment {
    pub lab: Lab,
    binaries: Binaries,
    settings: Settings,
    /// By node name and role.
    daemons: BTreeMap<(String, Role), Daemon>,
}

impl Deployment {
    /// Prepares to run daemons on a lab; starts none.
    pub fn new(lab: Lab, settings: Settings) -> Result<Self> {
        Ok(Self { lab, binaries: Binaries::find()?, settings, daemons: BTreeMap::new() })
    }

    /// Builds a lab, starts every daemon, and waits until all clusters are joined.
    pub fn connected(topology: &Topology, settings: Settings) -> Result<Self> {
        Binaries::find()?;
        let mut deployment = Self::new(Lab::build(topology)?, settings)?;
        let ids: Vec<&str> = topology.clusters.iter().map(|cluster| cluster.id.as_str()).collect();
        deployment.start_clusters(&ids)?;
        deployment.wait_connected(&ids)?;
        Ok(deployment)
    }

    /// Starts the daemons of all nodes of these clusters.
    pub fn start_clusters(&mut self, ids: &[&str]) -> Result<()> {
        let mut starting = Vec::new();
        for id in ids {
            for node in &self.lab.cluster(id).nodes {
                let roles = roles(self.lab.cluster(id), node);
                starting.extend(roles.into_iter().map(|role| (node.short_name.clone(), *id, role)));
            }
        }
        for (node, cluster, role) in &starting {
            self.start(cluster, node, *role)?;
        }
        for (node, cluster, role) in &starting {
            self.daemon(cluster, node, *role).wait_ready(READY)?;
        }
        Ok(())
    }

    /// Starts one daemon; does not wait for it.
    pub fn start(&mut self, cluster: &str, node: &str, role: Role) -> Result<()> {
        self.start_with(cluster, node, role, |_| {})
    }

    /// Starts one daemon with flags or variables of its own; does not wait for it.
    pub fn start_with(
        &mut self,
        cluster: &str,
        node: &str,
        role: Role,
        adjust: impl FnOnce(&mut Command),
    ) -> Result<()> {
        let cluster = self.lab.cluster(cluster);
        let node = self.lab.node(&cluster.plan.id, node);
        let mut command = self.command(cluster, node, role);
        adjust(&mut command);
        let daemon = Daemon::start(role, command, &node.log(role.as_str()))?;
        self.daemons.insert((node.name.clone(), role), daemon);
        Ok(())
    }

    /// Returns a daemon that was started.
    ///
    /// # Panics
    ///
    /// If it was not.
    pub fn daemon(&mut self, cluster: &str, node: &str, role: Role) -> &mut Daemon {
        self.daemons.get_mut(&(format!("{cluster}-{node}"), role)).expect("the daemon was started")
    }

    /// Kills a daemon (SIGKILL) and waits for its end.
    pub fn kill(&mut self, cluster: &str, node: &str, role: Role) -> Result<()> {
        self.end(cluster, node, role, Signal::SIGKILL)
    }

    /// Asks a daemon to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self, cluster: &str, node: &str, role: Role) -> Result<()> {
        self.end(cluster, node, role, Signal::SIGTERM)
    }

    fn end(&mut self, cluster: &str, node: &str, role: Role, signal: Signal) -> Result<()> {
        let daemon = self.daemon(cluster, node, role);
        daemon.signal(signal)?;
        daemon.wait_end(END)?;
        self.daemons.remove(&(format!("{cluster}-{node}"), role));
        Ok(())
    }

    /// Lets a node die: the daemons that run there are killed and its link to the network goes.
    pub fn kill_node(&mut self, cluster: &str, node: &str) -> Result<()> {
        for role in ROLES {
            if self.daemons.contains_key(&(format!("{cluster}-{node}"), role)) {
                self.kill(cluster, node, role)?;
            }
        }
        self.lab.node(cluster, node).namespace.ip("link set eth0 down")
    }

    /// Gives a node that died its link to the network back; its daemons stay away.
    pub fn revive_node(&mut self, cluster: &str, node: &str) -> Result<()> {
        let gateway = self.lab.cluster(cluster).plan.router_address();
        self.lab.node(cluster, node).namespace.ip(&format!("link set eth0 up\nroute replace default via {gateway}\n"))
    }

    /// Waits until the active gateways of these clusters report a cable to each other one of them, and a pod of each
    /// node reaches the pods of the others' nodes.
    pub fn wait_connected(&self, ids: &[&str]) -> Result<()> {
        for id in ids {
            let others: BTreeSet<&str> = ids.iter().filter(|other| *other != id).copied().collect();
            self.explain(wait_for(&format!("connections of {id}"), CONNECTED, || {
                let connected = self.connected_clusters(id)?;
                Ok(others.iter().all(|other| connected.contains(*other)).then_some(()))
            }))?;
        }
        if ids.iter().any(|id| self.lab.cluster(id).plan.global_cidr.is_some()) {
            // Pods are not reached by their own addresses.
            return Ok(());
        }
        let nodes = |id: &&str| self.lab.cluster(id).nodes.iter();
        for from in ids {
            for to in ids.iter().filter(|to| *to != from) {
                for (node, other) in nodes(from).flat_map(|node| nodes(to).map(move |other| (node, other))) {
                    self.wait_reachable(&node.pod, other.pod_address)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until a probe from `from` to `to` is answered.
    pub fn wait_reachable(&self, from: &Namespace, to: Ipv4Addr) -> Result<()> {
        self.explain(wait_for(&format!("an answer of {to} to {}", from.name()), CONNECTED, || {
            let pings = ping(from, to, 1, Duration::from_millis(10))?;
            Ok((pings.lost == 0).then_some(()))
        }))
    }

    /// Copies what a cluster's store says of the cluster itself into another cluster's store, as `cp` does it by hand.
    pub fn copy_records(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.lab.cluster(from), self.lab.cluster(to));
        for plural in ["clusters", "endpoints"] {
            let target = to.records().join(plural);
            fs::create_dir_all(&target)?;
            for entry in fs::read_dir(from.records().join(plural))? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(&from.plan.id) {
                    fs::copy(entry.path(), target.join(entry.file_name()))?;
                }
            }
        }
        Ok(())
    }

    /// Returns the other clusters that the active gateway of a cluster reports as connected.
    pub fn connected_clusters(&self, id: &str) -> Result<BTreeSet<String>> {
        let Some(gateway) = self.active_gateway(id)? else {
            return Ok(BTreeSet::new());
        };
        let connections = gateway["status"]["connections"].as_array().cloned().unwrap_or_default();
        let connected = connections.iter().filter(|connection| connection["status"] == "connected");
        let cluster = |connection: &Value| connection["endpoint"]["cluster_id"].as_str().map(str::to_owned);
        Ok(connected.filter_map(cluster).collect())
    }

    /// Waits until what the active gateway of a cluster reports of its connection to another one is as it should be.
    pub fn wait_connection(&self, id: &str, other: &str, what: &str, check: impl Fn(&Value) -> bool) -> Result<Value> {
        self.explain(wait_for(&format!("{what} in the connection of {id} to {other}"), CONNECTED, || {
            let connection = self.connection(id, other)?.context("there is no such connection")?;
            anyhow::ensure!(check(&connection), "it is {connection}");
            Ok(Some(connection))
        }))
    }

    fn connection(&self, id: &str, other: &str) -> Result<Option<Value>> {
        let gateway = self.active_gateway(id)?.unwrap_or_default();
        let connections = gateway["status"]["connections"].as_array().cloned().unwrap_or_default();
        Ok(connections.into_iter().find(|connection| connection["endpoint"]["cluster_id"] == other))
    }

    /// Waits until a cluster has sent its Endpoint to the broker, and returns it.
    pub fn wait_endpoint(&self, id: &str) -> Result<Value> {
        self.explain(wait_for(&format!("the Endpoint of {id} at the broker"), CONNECTED, || {
            let endpoints = records(&self.lab.broker(), "endpoints")?;
            Ok(endpoints.into_iter().find(|endpoint| endpoint["spec"]["cluster_id"] == id))
        }))
    }

    /// Returns the Gateway record that says it is active, if there is one.
    pub fn active_gateway(&self, id: &str) -> Result<Option<Value>> {
        let gateways = records(&self.lab.cluster(id).records(), "gateways")?;
        Ok(gateways.into_iter().find(|gateway| gateway["status"]["haStatus"] == "active"))
    }

    /// Waits until a cluster's store names this node's gateway as the active one.
    pub fn wait_active(&self, cluster: &str, node: &str) -> Result<()> {
        let node = &self.lab.node(cluster, node).name;
        self.explain(wait_for(&format!("{node} as the active gateway"), CONNECTED, || {
            let active = self.active_gateway(cluster)?;
            Ok(active.filter(|gateway| gateway["metadata"]["name"] == node.as_str()).map(|_| ()))
        }))
    }

    /// Waits until the active gateway of a cluster reports no cable to another cluster, or one that does not work.
    pub fn wait_disconnected(&self, id: &str, other: &str) -> Result<()> {
        self.explain(wait_for(&format!("the loss of {other} at {id}"), CONNECTED, || {
            Ok((!self.connected_clusters(id)?.contains(other)).then_some(()))
        }))
    }

    /// Returns what `culvert show …` prints for a cluster.
    pub fn show(&self, what: &str, id: &str) -> Result<String> {
        let records = self.lab.cluster(id).records();
        run(Command::new(self.binaries.tool()).args(["show", what, "--records"]).arg(records))
    }

    /// Runs Globalnet's program on a node with these words, and returns what it prints.
    pub fn ask_globalnet(&self, cluster: &str, node: &str, words: &[&str]) -> Result<String> {
        let (cluster, node) = (self.lab.cluster(cluster), self.lab.node(cluster, node));
        run(self.command(cluster, node, Role::Globalnet).args(words))
    }

    /// Ends all daemons of a cluster and runs their uninstallation on every node.
    pub fn uninstall(&mut self, id: &str) -> Result<()> {
        let nodes: Vec<String> = self.lab.cluster(id).nodes.iter().map(|node| node.short_name.clone()).collect();
        for node in &nodes {
            for role in ROLES {
                if self.daemons.contains_key(&(format!("{id}-{node}"), role)) {
                    self.terminate(id, node, role)?;
                }
            }
        }
        let cluster = self.lab.cluster(id);
        for node in &cluster.nodes {
            for role in ROLES {
                run(self.command(cluster, node, role).arg("--uninstall"))
                    .with_context(|| format!("cannot uninstall the {} of {}", role.as_str(), node.name))?;
            }
        }
        Ok(())
    }

    /// Returns everything of Culvert's that is left on the nodes of a cluster, and its records at the broker.
    pub fn leftovers(&self, id: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for node in &self.lab.cluster(id).nodes {
            found.extend(leftovers(&node.namespace)?);
        }
        for plural in ["endpoints", "clusters"] {
            for record in records(&self.lab.broker(), plural)? {
                if record["spec"]["cluster_id"] == id {
                    found.push(format!("broker: {plural}/{}", record["metadata"]["name"]));
                }
            }
        }
        Ok(found)
    }

    /// Returns the ends of the logs of all daemons.
    pub fn logs(&self) -> String {
        self.daemons.values().map(|daemon| daemon.log_tail(15)).collect::<Vec<_>>().join("\n")
    }

    /// Adds the ends of the daemons' logs to an error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| anyhow::anyhow!("{error:#}\n{}", self.logs()))
    }

    fn command(&self, cluster: &Cluster, node: &Node, role: Role) -> Command {
        let plan = &cluster.plan;
        let mut command = node.command(self.binaries.daemon(role));
        let mut flag = |name: &str, value: &str| {
            command.arg(name).arg(value);
        };
        flag("--cluster-id", &plan.id);
        flag("--cluster-cidr", &plan.pod_cidr.to_string());
        flag("--service-cidr", &plan.service_cidr.to_string());
        flag("--records", &cluster.records().to_string_lossy());
        flag("--node-name", &node.name);
        if let Some(global) = plan.global_cidr {
            flag("--global-cidr", &global.to_string());
        }
        match role {
            Role::Globalnet | Role::RouteAgent => {}
            Role::Gateway => {
                let public = if plan.behind_nat { cluster.wan_address } else { node.address };
                if self.settings.broker {
                    flag("--broker-records", &self.lab.broker().to_string_lossy());
                }
                flag("--public-ip", &format!("ipv4:{public}"));
                flag("--nat-enabled", if plan.behind_nat { "true" } else { "false" });
                match self.settings.driver {
                    CableDriver::WireGuard => flag("--cable-driver", "wireguard"),
                    CableDriver::Vxlan => {
                        let others = self.lab.clusters().iter().filter(|other| other.plan.id != plan.id);
                        let others: Vec<&str> = others.map(|other| other.plan.id.as_str()).collect();
                        flag("--cable-driver", "vxlan");
                        flag("--allow-vxlan", &others.join(","));
                    }
                }
            }
        }
        command
    }
}
