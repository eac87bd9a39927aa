//! Builds a lab, and leaves nothing of it behind: neither of this run nor of one that crashed.
//!
//! Every namespace's name begins with the lab's prefix. The prefix carries the process id, so that the next run can tell
//! which labs nobody holds any more. One lab stands at a time (a file lock): the machine has few cores.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use nix::fcntl::Flock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{run, run_with_input};
use crate::lock::lock;
use crate::namespace::{self, Namespace};
use crate::topology::{ClusterPlan, Topology, nth_address};
use crate::wait::wait_for;
use crate::wiring::{self, SERVICE_PORT, Uplink};

/// Holds a directory for each lab, a tmpfs: the record stores, the nodes' `/run`, the logs.
const DIRECTORY: &str = "/var/lib/culvert-lab";

/// Standing networks. Dropping it ends every process inside and removes everything, unless it is kept.
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    clusters: Vec<Cluster>,
    internet: [Namespace; 2],
    kept: bool,
    _lock: Flock<File>,
}

/// A cluster's networks.
pub struct Cluster {
    pub plan: ClusterPlan,
    /// Between the node network (bridge `lan`) and the Internet (link `wan`).
    pub router: Namespace,
    /// The router's address on the Internet: what a NAT router shows for its nodes.
    pub wan_address: Ipv4Addr,
    pub nodes: Vec<Node>,
    directory: PathBuf,
}

/// A node and its pod.
#[derive(Clone)]
pub struct Node {
    /// The name among all nodes, `east-gw`: also its host name.
    pub name: String,
    /// The name within the cluster.
    pub short_name: String,
    pub gateway: bool,
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    pub pod: Namespace,
    pub pod_address: Ipv4Addr,
    pub pod_network: Ipv4Net,
    directory: PathBuf,
}

impl Lab {
    /// Builds a lab named after this process.
    ///
    /// # Errors
    ///
    /// Not root, or a command failed: the error has its words.
    pub fn build(topology: &Topology) -> Result<Self> {
        Self::build_named(&format!("cv{}", std::process::id()), topology)
    }

    /// Builds a lab with this prefix, in place of one that may stand there already.
    pub fn build_named(prefix: &str, topology: &Topology) -> Result<Self> {
        let lock = lock(DIRECTORY, "a lab of network namespaces")?;
        remove_stale()?;
        remove(prefix)?;
        let directory = Path::new(DIRECTORY).join(prefix);
        let cluster = |(index, plan)| Cluster::planned(prefix, &directory, index, plan);
        let lab = Self {
            prefix: prefix.to_owned(),
            clusters: topology.clusters.iter().enumerate().map(cluster).collect(),
            internet: [1, 2].map(|number| Namespace::new(format!("{prefix}-inet{number}"))),
            kept: false,
            _lock: lock,
            directory,
        };
        lab.make_directories()?;
        lab.make_networks()?;
        Ok(lab)
    }

    /// Removes the lab with this prefix, if there is one: one that was kept, or this process's own.
    pub fn remove_named(prefix: &str) -> Result<()> {
        remove(prefix)
    }

    /// Lets the lab stand when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Returns the beginning of all its namespaces' names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the clusters in the topology's order.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// Returns a cluster by its id.
    ///
    /// # Panics
    ///
    /// If the topology has no such cluster.
    pub fn cluster(&self, id: &str) -> &Cluster {
        self.clusters.iter().find(|cluster| cluster.plan.id == id).expect("the lab has this cluster")
    }

    /// Returns a node by the id of its cluster and its name within it.
    ///
    /// # Panics
    ///
    /// If the topology has no such node.
    pub fn node(&self, cluster: &str, name: &str) -> &Node {
        let mut nodes = self.cluster(cluster).nodes.iter();
        nodes.find(|node| node.short_name == name).expect("the cluster has this node")
    }

    /// Returns one of the two Internet routers; their link is named `core`.
    pub fn internet(&self) -> &[Namespace; 2] {
        &self.internet
    }

    /// Returns the root of the broker's record store.
    pub fn broker(&self) -> PathBuf {
        self.directory.join("broker")
    }

    fn make_directories(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=0755", "culvert-lab"]).arg(&self.directory))?;
        fs::create_dir_all(self.broker())?;
        for cluster in &self.clusters {
            fs::create_dir_all(cluster.records())?;
            for node in &cluster.nodes {
                fs::create_dir_all(node.run_directory())?;
            }
        }
        Ok(())
    }

    fn make_networks(&self) -> Result<()> {
        let names: String = self.namespaces().map(|namespace| format!("netns add {}\n", namespace.name())).collect();
        run_with_input(Command::new("ip").args(["-batch", "-"]), &names)?;
        join_clusters(&self.internet, &self.clusters)?;
        self.clusters.iter().try_for_each(Cluster::make_nodes)
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        let nodes = self.clusters.iter().flat_map(|cluster| &cluster.nodes);
        let routers = self.clusters.iter().map(|cluster| &cluster.router);
        self.internet.iter().chain(routers).chain(nodes.flat_map(|node| [&node.namespace, &node.pod]))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove(&self.prefix) {
            eprintln!("The lab {} could not be removed: {error:#}", self.prefix);
        }
    }
}

impl Cluster {
    pub(crate) fn planned(prefix: &str, lab: &Path, index: usize, plan: &ClusterPlan) -> Self {
        let directory = lab.join(&plan.id);
        let node = |(number, node): (u8, &crate::NodePlan)| {
            let name = format!("{}-{}", plan.id, node.name);
            let pod_network = plan.pod_network(number);
            Node {
                short_name: node.name.clone(),
                gateway: node.gateway,
                namespace: Namespace::new(format!("{prefix}-{name}")),
                address: plan.node_address(number),
                pod: Namespace::new(format!("{prefix}-{name}-pod")),
                pod_address: nth_address(pod_network, 2),
                pod_network,
                directory: directory.join(&node.name),
                name,
            }
        };
        Self {
            router: Namespace::new(format!("{prefix}-{}-router", plan.id)),
            wan_address: Uplink::of(index).router,
            nodes: (1u8..).zip(&plan.nodes).map(node).collect(),
            plan: plan.clone(),
            directory,
        }
    }

    /// Returns the root of the cluster's record store.
    pub fn records(&self) -> PathBuf {
        self.directory.join("records")
    }

    /// Returns the nodes that are labelled as gateways.
    pub fn gateways(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.gateway)
    }

    /// Returns the port of its one service, also that of the pods behind it.
    pub fn service_port(&self) -> u16 {
        SERVICE_PORT
    }

    fn make_nodes(&self) -> Result<()> {
        for node in &self.nodes {
            node.namespace.enter(|| {
                fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
                // Links made from here on filter by reverse path as strictly as Red Hat's default has it.
                fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
                fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", "1")?;
                fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "1")?;
                Ok(())
            })?;
            node.namespace.ip(&wiring::node(self, node))?;
            node.pod.ip(&wiring::pod(node))?;
            wiring::add_node_nat(&self.plan, node)?;
        }
        Ok(())
    }
}

impl Node {
    pub(crate) fn pod_gateway(&self) -> Ipv4Addr {
        nth_address(self.pod_network, 1)
    }

    pub(crate) fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// Returns a command that will run on the node: in its network, with its host name and its own `/run`, a tmpfs that
    /// outlives processes. It replaces the helpers that enter, so its process id is its own.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        const ENTER: &str =
            "mount --bind \"$1\" /run && echo \"$2\" >/proc/sys/kernel/hostname && shift 2 && exec \"$@\"";
        let mut command = self.namespace.command("unshare");
        command.args(["--mount", "--uts", "--", "sh", "-c", ENTER, "sh"]);
        command.arg(self.run_directory()).arg(&self.name).arg(program.as_ref());
        command
    }
}

/// Makes the clusters' routers, the ports for their nodes, and the Internet between them, in namespaces that are there.
pub(crate) fn join_clusters(internet: &[Namespace; 2], clusters: &[Cluster]) -> Result<()> {
    internet[0].ip(&wiring::core_link(&internet[1]))?;
    for (index, cluster) in clusters.iter().enumerate() {
        cluster.router.sysctl("net/ipv4/ip_forward", "1")?;
        cluster.router.ip(&wiring::router(index, cluster, &internet[wiring::attachment(index)]))?;
        if cluster.plan.behind_nat {
            cluster.router.nft(wiring::NAT_ROUTER)?;
        }
    }
    for (number, namespace) in internet.iter().enumerate() {
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.ip(&wiring::internet(number, clusters))?;
    }
    Ok(())
}

/// Removes every lab whose process is gone.
fn remove_stale() -> Result<()> {
    let mut prefixes: Vec<String> = Vec::new();
    for directory in [DIRECTORY, namespace::DIRECTORY] {
        for name in names_in(Path::new(directory))? {
            let prefix = name.split('-').next().unwrap_or_default();
            let process = prefix.strip_prefix("cv").and_then(|digits| digits.parse::<u32>().ok());
            if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
                prefixes.push(prefix.to_owned());
            }
        }
    }
    prefixes.sort();
    prefixes.dedup();
    prefixes.iter().try_for_each(|prefix| remove(prefix))
}

/// Removes the lab with this prefix, whatever is there of it.
fn remove(prefix: &str) -> Result<()> {
    let beginning = format!("{prefix}-");
    let names: Vec<String> = names_in(Path::new(namespace::DIRECTORY))?;
    let names: Vec<&String> = names.iter().filter(|name| name.starts_with(&beginning)).collect();
    for name in &names {
        end_processes(name)?;
    }
    let lines: String = names.iter().map(|name| format!("netns delete {name}\n")).collect();
    run_with_input(Command::new("ip").args(["-batch", "-"]), &lines)?;
    let directory = Path::new(DIRECTORY).join(prefix);
    if directory.exists() {
        // It may be no mount point, if a run was interrupted just there.
        let _ = run(Command::new("umount").arg("--lazy").arg(&directory));
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

/// Kills what runs in a namespace and waits until it is gone.
pub(crate) fn end_processes(namespace: &str) -> Result<()> {
    wait_for(&format!("the end of the processes in {namespace}"), std::time::Duration::from_secs(30), || {
        let listing = run(Command::new("ip").args(["netns", "pids", namespace]))?;
        let own = std::process::id();
        let processes: Vec<u32> =
            listing.lines().filter_map(|line| line.trim().parse().ok()).filter(|&process| process != own).collect();
        for &process in &processes {
            let process = Pid::from_raw(i32::try_from(process).context("a process id is positive")?);
            // It may have ended by itself since the listing.
            let _ = kill(process, Signal::SIGKILL);
        }
        Ok(processes.is_empty().then_some(()))
    })
}

pub(crate) fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}
