//! Real Kubernetes clusters on this machine, to work with by hand: brings them up, leaves them, takes them down.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use culvert_netns_tests::kubernetes::{Cluster, Lab, Plan, ProxyMode};
use nix::sys::signal::{SigSet, Signal};

/// Real Kubernetes clusters on this machine, joined by an Internet of network namespaces.
#[derive(Parser)]
#[command(name = "cargo xtask lab")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Brings a lab up and leaves it standing.
    Up(Up),
    /// Takes a lab down, also what is left of one that was killed.
    Down(Which),
    /// Shows the clusters, their nodes and pods.
    Status(Which),
    /// Loads an archive of images, such as that of `cargo xtask images`, on all nodes.
    Load {
        archive: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Prints the path of a cluster's kubeconfig.
    Kubeconfig {
        /// Name of the cluster.
        cluster: String,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args)]
struct Up {
    /// Names of the clusters.
    #[arg(long, value_delimiter = ',', default_value = "east,west")]
    clusters: Vec<String>,
    /// Nodes of each cluster; the first has the control plane and the label of gateways.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// How kube-proxy makes services work: iptables, nftables, or none for no kube-proxy.
    #[arg(long, default_value = "iptables")]
    proxy_mode: ProxyMode,
    /// Clusters whose nodes are behind a masquerading router.
    #[arg(long, value_delimiter = ',')]
    behind_nat: Vec<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(Args)]
struct Which {
    /// Name of the lab.
    #[arg(long = "name", default_value = "lab")]
    name: String,
}

fn main() -> ExitCode {
    match run(Arguments::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<()> {
    match action {
        Action::Up(up) => bring_up(&up),
        Action::Down(which) => Lab::down(&which.name),
        Action::Status(which) => status(&Lab::find(&which.name)?),
        Action::Load { archive, which } => {
            Lab::find(&which.name)?.clusters().iter().try_for_each(|cluster| cluster.import(&archive))
        }
        Action::Kubeconfig { cluster, which } => {
            let lab = Lab::find(&which.name)?;
            println!("{}", find(&lab, &cluster)?.kubeconfig().display());
            Ok(())
        }
    }
}

fn bring_up(up: &Up) -> Result<()> {
    let plan = plan(up)?;
    let (clusters, nodes) = (up.clusters.join(", "), up.nodes);
    eprintln!("Bringing up {clusters} with {nodes} nodes each; kube-proxy: {}.", up.proxy_mode);
    take_down_when_interrupted(&plan.name)?;
    let lab = Lab::up(&plan)?;
    for cluster in lab.clusters() {
        print_cluster(cluster);
    }
    println!("\nkubectl: {} kubectl", lab.programs().binary().display());
    println!("Take it down: cargo xtask lab down --name {}", plan.name);
    lab.keep()
}

/// An interrupt leaves nothing behind. Must run before any other thread starts: they inherit the mask.
fn take_down_when_interrupted(name: &str) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let program = std::env::current_exe().context("this executable has no path")?;
    let mut down = Command::new("sh");
    down.args(["-c", "\"$0\" down --name \"$1\"; exit 130"]).arg(program).arg(name);
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            eprintln!("Interrupted: the lab is being taken down.");
            // In place of this process, whose lock on labs ends so.
            eprintln!("error: cannot take the lab down: {}", down.exec());
            std::process::exit(1);
        }
    });
    Ok(())
}

fn plan(up: &Up) -> Result<Plan> {
    let names: Vec<&str> = up.clusters.iter().map(String::as_str).collect();
    let mut plan = Plan::new(&up.which.name, &names, up.nodes, up.proxy_mode)?;
    for name in &up.behind_nat {
        ensure!(names.contains(&name.as_str()), "--behind-nat names {name}, which is not among --clusters");
        plan.cluster_mut(name).network.behind_nat = true;
    }
    Ok(plan)
}

fn status(lab: &Lab) -> Result<()> {
    for cluster in lab.clusters() {
        print_cluster(cluster);
        println!("{}", cluster.kubectl("get nodes --output wide")?);
        println!("{}", cluster.kubectl("get pods --all-namespaces --output wide")?);
    }
    Ok(())
}

fn print_cluster(cluster: &Cluster) {
    let network = &cluster.plan.network;
    let nat = if network.behind_nat { ", behind NAT" } else { "" };
    println!("\n{}: API server https://{}:6443{nat}", cluster.name(), cluster.public_address);
    let (pods, services) = (network.pod_cidr, network.service_cidr);
    println!("  pods {pods}, services {services}, kube-proxy {}", cluster.plan.proxy_mode);
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    for node in &cluster.nodes {
        println!("  {} {}: nsenter --net=/run/netns/{} bash", node.name, node.address, node.namespace.name());
    }
}

fn find<'a>(lab: &'a Lab, name: &str) -> Result<&'a Cluster> {
    let names: Vec<&str> = lab.clusters().iter().map(Cluster::name).collect();
    let cluster = lab.clusters().iter().find(|cluster| cluster.name() == name);
    cluster.with_context(|| format!("the lab has no cluster {name}: it has {}", names.join(", ")))
}
