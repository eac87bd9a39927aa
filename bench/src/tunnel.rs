//! Sets a candidate up: pod - gateway - one link of MTU 1500 - gateway - pod, and the candidate between the gateways.
//!
//! The networks are those of the lab, with the gateways' links to their routers replaced by one link between them. The
//! nodes' NAT rules, which each candidate would get past in its own way, give way to one rule that tracks connections, as
//! every node of a cluster does: all candidates pay for that alike. Everything is made anew for each visit, so that no
//! candidate idles beside another. WireGuard devices of all kinds have the MTU that fits the link, 1440.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_netns_tests::{
    CableDriver, Deployment, Lab, Namespace, Node, NodePlan, Role, Settings, Topology, run, wait_for,
};
use ipnet::Ipv4Net;

use crate::candidate::Candidate;
use crate::cpu::CpuGroup;
use crate::tools::Tool;

/// The beginning of all names of the bench's namespaces.
pub(crate) const PREFIX: &str = "culvert-bench";
const CLUSTERS: [&str; 2] = ["east", "west"];
const NODE: &str = "gw";
const DEVICE: &str = "tunnel";
const READY: Duration = Duration::from_secs(10);

/// A candidate that carries traffic. Dropping it removes everything.
pub(crate) struct Standing {
    // The order matters: processes end before their control group is removed.
    _processes: Vec<Process>,
    deployment: Deployment,
    /// The clusters that Culvert's daemons run in.
    started: Vec<&'static str>,
    cpu: Option<CpuGroup>,
}

impl Drop for Standing {
    fn drop(&mut self) {
        for cluster in &self.started {
            for role in [Role::Gateway, Role::RouteAgent] {
                // Whatever is left is ended together with the lab.
                let _ = self.deployment.kill(cluster, NODE, role);
            }
        }
    }
}

/// A process of a candidate; ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A gateway, as the other end sees it too.
struct Side<'a> {
    node: &'a Node,
    peer: &'a Node,
    /// All pods behind the peer.
    remote: Ipv4Net,
    /// An address within a tunnel that needs one.
    inner: &'static str,
    peer_inner: &'static str,
}

impl Standing {
    /// Sets a candidate up and waits until one pod reaches the other.
    ///
    /// # Errors
    ///
    /// A command failed or the pods did not reach each other in time.
    pub(crate) fn set_up(candidate: Candidate, tool: Option<&Tool>) -> Result<Self> {
        let mut topology = Topology::routed();
        for cluster in &mut topology.clusters {
            cluster.nodes = vec![NodePlan::gateway(NODE)];
        }
        let lab = Lab::build_named(PREFIX, &topology)?;
        join(&lab)?;
        let driver = match candidate {
            Candidate::CulvertVxlan => CableDriver::Vxlan,
            Candidate::Raw
            | Candidate::Vxlan
            | Candidate::WireguardGo
            | Candidate::BoringtunCli
            | Candidate::CulvertWireguard => CableDriver::WireGuard,
        };
        let mut deployment = Deployment::new(lab, Settings { driver, broker: true })?;
        let mut processes = Vec::new();
        let mut started = Vec::new();
        let mut ids: Vec<u32> = Vec::new();
        match candidate {
            Candidate::Raw => for_each_side(&deployment.lab, |side| {
                let Side { peer, remote, .. } = side;
                side.node.namespace.ip(&format!("route add {remote} via {} dev eth0 onlink\n", peer.address))
            })?,
            Candidate::Vxlan => for_each_side(&deployment.lab, vxlan)?,
            Candidate::WireguardGo | Candidate::BoringtunCli => {
                let tool = tool.context("the candidate has no program")?;
                for_each_side(&deployment.lab, |side| {
                    processes.push(wireguard_device(side.node, tool)?);
                    Ok(())
                })?;
                for_each_side(&deployment.lab, wireguard_peer)?;
                ids.extend(processes.iter().map(|process| process.0.id()));
            }
            Candidate::CulvertVxlan | Candidate::CulvertWireguard => {
                deployment.start_clusters(&CLUSTERS)?;
                deployment.wait_connected(&CLUSTERS)?;
                started.extend(CLUSTERS);
                ids.extend(CLUSTERS.map(|cluster| deployment.daemon(cluster, NODE, Role::Gateway).process_id()));
            }
        }
        let cpu = if ids.is_empty() { None } else { Some(CpuGroup::of(&ids)?) };
        let standing = Self { _processes: processes, deployment, started, cpu };
        let (from, far) = standing.pods();
        standing.deployment.wait_reachable(from, far.pod_address)?;
        Ok(standing)
    }

    /// Returns the pod to send from, and the node whose pod is to be sent to.
    pub(crate) fn pods(&self) -> (&Namespace, &Node) {
        let lab = &self.deployment.lab;
        (&lab.node(CLUSTERS[0], NODE).pod, lab.node(CLUSTERS[1], NODE))
    }

    /// Returns the control group of both gateways' processes, if the candidate has any.
    pub(crate) fn cpu(&self) -> Option<&CpuGroup> {
        self.cpu.as_ref()
    }
}

fn for_each_side(lab: &Lab, mut work: impl FnMut(&Side<'_>) -> Result<()>) -> Result<()> {
    let inner = ["169.254.77.1", "169.254.77.2"];
    for (here, there) in [(0, 1), (1, 0)] {
        let node = |at: usize| lab.node(CLUSTERS[at], NODE);
        let remote = lab.cluster(CLUSTERS[there]).plan.pod_cidr;
        let side = Side { node: node(here), peer: node(there), remote, inner: inner[here], peer_inner: inner[there] };
        work(&side).with_context(|| format!("at {}", side.node.name))?;
    }
    Ok(())
}

/// Replaces the gateways' links to their routers by one link between them, and removes the nodes' NAT rules.
///
/// Without a tunnel the pods do not reach each other: a candidate that does not work must not be measured as raw.
fn join(lab: &Lab) -> Result<()> {
    for_each_side(lab, |side| {
        side.node.namespace.ip("link delete eth0\n")?;
        side.node.namespace.nft(
            "delete table ip nat-cni\ndelete table ip kube-proxy\n\
             add table ip node\nadd chain ip node forward { type filter hook forward priority 0; }\n\
             add rule ip node forward ct state invalid drop\n",
        )
    })?;
    let [near, far] = CLUSTERS.map(|cluster| &lab.node(cluster, NODE).namespace);
    near.ip(&format!("link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}\n", far.name()))?;
    for_each_side(lab, |side| {
        side.node.namespace.ip(&format!(
            "addr add {}/24 dev eth0\nlink set eth0 up\nroute add unreachable {} metric 4000000000\n",
            side.node.address, side.remote
        ))
    })?;
    for_each_side(lab, |side| {
        side.node.namespace.ip(&format!("route add default via {} dev eth0 onlink\n", side.peer.address))
    })
}

fn vxlan(side: &Side<'_>) -> Result<()> {
    let Side { node, peer, remote, inner, peer_inner } = side;
    node.namespace.ip(&format!(
        "link add {DEVICE} mtu 1450 type vxlan id 7 local {} remote {} dstport 4789 dev eth0\n\
         addr add {inner}/30 dev {DEVICE}\n\
         link set {DEVICE} up\n\
         route add {remote} via {peer_inner} dev {DEVICE}\n",
        node.address, peer.address
    ))
}

/// Starts the program and gives its device a key. The node's own `/run` holds the key and the control socket.
fn wireguard_device(node: &Node, tool: &Tool) -> Result<Process> {
    let mut command = node.command(&tool.path);
    command.args(tool.arguments).arg(DEVICE).env("LOG_LEVEL", "error");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process(command.spawn().with_context(|| format!("cannot start {}", tool.path.display()))?);
    wait_for(&format!("a device of {}", tool.path.display()), READY, || {
        if let Some(status) = process.0.try_wait()? {
            return Ok(Some(Some(status)));
        }
        wg(node, &["show", DEVICE])?;
        Ok(Some(None))
    })
    .and_then(|ended| match ended {
        None => Ok(()),
        Some(status) => bail!("{} ended at once ({status})", tool.path.display()),
    })?;
    run(node.command("sh").args(["-c", "umask 077 && wg genkey >/run/key"]))?;
    wg(node, &["set", DEVICE, "listen-port", "51820", "private-key", "/run/key"])?;
    Ok(process)
}

fn wireguard_peer(side: &Side<'_>) -> Result<()> {
    let Side { node, peer, remote, .. } = side;
    // Not from `wg show`: boringtun-cli does not tell its own key in the usual way.
    let key = run(peer.command("sh").args(["-c", "wg pubkey </run/key"]))?;
    let (remote, endpoint) = (remote.to_string(), format!("{}:51820", peer.address));
    wg(node, &["set", DEVICE, "peer", key.trim(), "allowed-ips", &remote, "endpoint", &endpoint])?;
    node.namespace.ip(&format!("link set {DEVICE} mtu 1440 up\nroute add {remote} dev {DEVICE}\n"))
}

fn wg(node: &Node, arguments: &[&str]) -> Result<String> {
    run(node.command("wg").args(arguments))
}
