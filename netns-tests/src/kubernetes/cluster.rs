//! One cluster: how its parts are started, in which order, and how it is asked afterwards.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::certificates::{Account, Certificates, write_secret};
use super::control_plane::{Accounts, ControlPlane, server_url};
use super::image::BUSYBOX;
use super::network::API_PORT;
use super::node::{Enrolment, Node};
use super::plan::ClusterPlan;
use super::programs::Programs;
use crate::command::{run, run_with_input};
use crate::lab;
use crate::namespace::Namespace;

/// How long `kubectl` waits for nodes and for DNS: minutes on a machine that is busy with other things.
const TIMEOUT: &str = "--timeout=300s";

/// A cluster of a lab.
pub struct Cluster {
    pub plan: ClusterPlan,
    /// The first has the control plane.
    pub nodes: Vec<Node>,
    /// Between the node network and the Internet.
    pub router: Namespace,
    /// The router's address on the Internet, where the API server is reached.
    pub public_address: Ipv4Addr,
    /// Where this process asks the API server from, so that what it starts ends with the lab.
    internet: Namespace,
    directory: PathBuf,
    programs: Programs,
}

impl Cluster {
    /// Names a cluster's parts; nothing is made yet.
    pub(crate) fn planned(
        plan: &ClusterPlan,
        network: &lab::Cluster,
        internet: &Namespace,
        lab: &Path,
        programs: &Programs,
    ) -> Self {
        let directory = lab.join(&plan.network.id);
        Self {
            plan: plan.clone(),
            nodes: network.nodes.iter().map(|node| Node::planned(&directory, node)).collect(),
            router: network.router.clone(),
            public_address: network.wan_address,
            internet: internet.clone(),
            directory,
            programs: programs.clone(),
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.plan.network.id
    }

    /// Returns the path of the administrator's kubeconfig. It holds on the host and in every namespace of the lab.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Returns a node by its name within the cluster, `node1`.
    ///
    /// # Panics
    ///
    /// If the cluster has no such node.
    pub fn node(&self, name: &str) -> &Node {
        let name = format!("{}-{name}", self.name());
        self.nodes.iter().find(|node| node.name == name).expect("the cluster has this node")
    }

    /// Runs `kubectl` on the lab's Internet with the words of a line, split at spaces, and returns its standard output.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        run(self.kubectl_command().args(line.split_whitespace()))
    }

    /// Returns what a `kubectl` line prints as JSON.
    ///
    /// # Errors
    ///
    /// As those of [`Cluster::kubectl`].
    pub fn json(&self, line: &str) -> Result<Value> {
        let text = self.kubectl(&format!("{line} --output json"))?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {line} printed no JSON"))
    }

    /// Returns the objects that a `kubectl get` line lists.
    pub fn items(&self, line: &str) -> Result<Vec<Value>> {
        let listing = self.json(line)?;
        let items = listing["items"].as_array();
        items.cloned().with_context(|| format!("kubectl {line} printed no list"))
    }

    /// Returns a `kubectl` command that will run on the lab's Internet, as the cluster's administrator.
    pub fn kubectl_command(&self) -> Command {
        let [binary, kubectl] = self.programs.words("kubectl");
        let mut command = self.internet.command(&binary);
        command.arg(kubectl).arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// Applies manifests, YAML or JSON.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        run_with_input(self.kubectl_command().args(["apply", "--filename", "-"]), manifests)?;
        Ok(())
    }

    /// Imports an archive of images into all nodes.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.on_all_nodes(|node| node.import(archive))?;
        Ok(())
    }

    /// Starts everything in namespaces that are there, and waits until nodes and DNS are ready.
    pub(crate) fn start(&self, archives: &[PathBuf]) -> Result<Vec<Child>> {
        let accounts = Accounts::new()?;
        let administrator = Account::new("admin", Some("system:masters"))?;
        let proxy = Account::new("system:kube-proxy", None)?;
        let kubelet = |node: &Node| Account::new(format!("system:node:{}", node.name), Some("system:nodes"));
        let kubelets = self.nodes.iter().map(kubelet).collect::<Result<Vec<_>>>()?;
        let others = [&accounts.controllers, &accounts.scheduler, &administrator, &proxy];
        let everyone: Vec<&Account> = others.into_iter().chain(&kubelets).collect();
        let certificates = Certificates::make(self.directory.join("pki"), &self.server_names(), &everyone)?;
        let kubeconfig = |address, account| certificates.kubeconfig(self.name(), &server_url(address), account);
        write_secret(&self.kubeconfig(), &kubeconfig(self.public_address, &administrator)?)?;
        let first = &self.nodes[0];
        for (node, account) in self.nodes.iter().zip(&kubelets) {
            node.prepare(
                &self.plan,
                &Enrolment {
                    authority: fs::read_to_string(certificates.path("ca.crt"))?,
                    kubelet_kubeconfig: kubeconfig(first.address, account)?,
                    proxy_kubeconfig: kubeconfig(first.address, &proxy)?,
                },
            )?;
        }

        let mut control_plane =
            ControlPlane::start(&self.directory, &self.plan, first, &certificates, &accounts, &self.programs)?;
        let mut children = self.on_all_nodes(|node| node.start_runtime(archives))?;
        control_plane.wait_ready()?;
        children.push(control_plane.child);
        self.apply(&self.node_objects())?;
        self.apply(&self.dns_manifests())?;
        children.extend(self.on_all_nodes(|node| node.start_agents(&self.programs))?.into_iter().flatten());
        self.kubectl(&format!("wait node --all --for=condition=Ready {TIMEOUT}"))?;
        self.kubectl(&format!("--namespace kube-system rollout status deployment/coredns {TIMEOUT}"))?;
        Ok(children)
    }

    /// Returns the names and addresses that the API server's certificate is for.
    fn server_names(&self) -> Vec<String> {
        let addresses = [self.nodes[0].address, self.public_address, self.plan.api_service(), Ipv4Addr::LOCALHOST];
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let addresses = addresses.iter().map(|address| format!("IP:{address}"));
        addresses.chain(names.iter().map(|name| format!("DNS:{name}"))).collect()
    }

    /// The nodes as objects, made before kubelet runs: it may neither choose its pods' network nor all of its labels.
    fn node_objects(&self) -> String {
        let object = |(index, node): (usize, &Node)| {
            let mut labels = serde_json::Map::new();
            if index == 0 {
                labels.insert("node-role.kubernetes.io/control-plane".to_owned(), json!(""));
            }
            if node.gateway {
                labels.insert("submariner.io/gateway".to_owned(), json!("true"));
            }
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name, "labels": labels},
                "spec": {"podCIDR": node.pod_network, "podCIDRs": [node.pod_network]},
            })
        };
        let items: Vec<_> = self.nodes.iter().enumerate().map(object).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }

    fn dns_manifests(&self) -> String {
        include_str!("coredns.yaml")
            .replace("IMAGE", BUSYBOX)
            .replace("API_ADDRESS", &self.nodes[0].address.to_string())
            .replace("API_PORT", &API_PORT.to_string())
            .replace("DNS_ADDRESS", &self.plan.dns_service().to_string())
            .replace("BINARY", &self.programs.binary().display().to_string())
    }

    /// Does the same on all nodes at once; returns what it gave in the nodes' order.
    fn on_all_nodes<T: Send>(&self, work: impl Fn(&Node) -> Result<T> + Sync) -> Result<Vec<T>> {
        thread::scope(|scope| {
            let threads: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| work(node))).collect();
            let results = threads.into_iter().map(|thread| thread.join().expect("a node's work does not panic"));
            results.zip(&self.nodes).map(|(result, node)| result.with_context(|| node.name.clone())).collect()
        })
    }
}
