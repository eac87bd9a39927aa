//! The networks of a Kubernetes lab: those of the lab of namespaces, with pods made by the CNI instead of by the lab.
//!
//! An API server is reached at its cluster's router, port 6443, which forwards to the first node: the same address
//! serves the cluster's own nodes, other clusters' nodes behind any NAT, and the host. The host has one link to the
//! Internet of the lab, [`HOST_LINK`], with an address of the documentation range 203.0.113.0/24 and a route to each of
//! these addresses; not to the whole range, which may have other uses on the host.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;

use super::plan::Plan;
use crate::command::{run, run_with_input};
use crate::lab::{Cluster, Node, join_clusters};
use crate::namespace::Namespace;
use crate::topology::nth_address;
use crate::wiring::{CORE, INTERNET};

/// The host's one link into a lab.
pub const HOST_LINK: &str = "culvert-k8s";

/// TCP port of every API server.
pub(crate) const API_PORT: u16 = 6443;

/// Offset of the link between the host and the first Internet router: the /30 below that between the routers.
const HOST: u32 = CORE - 4;

/// All namespaces of a lab.
pub(crate) struct Network {
    pub(crate) internet: [Namespace; 2],
    pub(crate) clusters: Vec<Cluster>,
}

/// Returns the beginning of the names of a lab's namespaces and control groups.
pub(crate) fn prefix(lab: &str) -> String {
    format!("kube-{lab}")
}

impl Network {
    /// Names everything; nothing is made yet.
    pub(crate) fn planned(plan: &Plan, directory: &Path) -> Self {
        let prefix = prefix(&plan.name);
        let cluster = |(index, cluster): (usize, &super::plan::ClusterPlan)| {
            Cluster::planned(&prefix, directory, index, &cluster.network)
        };
        Self {
            internet: [1, 2].map(|number| Namespace::new(format!("{prefix}-inet{number}"))),
            clusters: plan.clusters.iter().enumerate().map(cluster).collect(),
        }
    }

    /// Makes the namespaces and everything between them.
    pub(crate) fn make(&self) -> Result<()> {
        let nodes = self.clusters.iter().flat_map(|cluster| &cluster.nodes).map(|node| &node.namespace);
        let routers = self.clusters.iter().map(|cluster| &cluster.router);
        let namespaces = self.internet.iter().chain(routers).chain(nodes);
        let lines: String = namespaces.map(|namespace| format!("netns add {}\n", namespace.name())).collect();
        run_with_input(Command::new("ip").args(["-batch", "-"]), &lines)?;
        join_clusters(&self.internet, &self.clusters)?;
        for cluster in &self.clusters {
            cluster.router.nft(&api_forward(cluster))?;
            // Else the way back to the node that asked is bridged, not routed, and a bridge sends nothing back.
            cluster.router.enter(|| Ok(fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")?))?;
            for node in &cluster.nodes {
                node.namespace.ip(&node_links(cluster, node))?;
                node.namespace.nft(&pod_masquerade(cluster.plan.pod_cidr))?;
                set_sysctls(&node.namespace)?;
            }
        }
        self.make_host_link()
    }

    fn make_host_link(&self) -> Result<()> {
        let [first, second] = &self.internet;
        let network = Ipv4Net::new_assert(nth_address(INTERNET, HOST), 30);
        let [router, host, core] = [HOST + 1, HOST + 2, CORE + 1].map(|offset| nth_address(INTERNET, offset));
        let mut lines = format!(
            "link add {HOST_LINK} type veth peer name host netns {}\n\
             addr add {host}/30 dev {HOST_LINK}\n\
             link set {HOST_LINK} up\n",
            first.name()
        );
        lines
            .extend(self.clusters.iter().map(|cluster| format!("route add {}/32 via {router}\n", cluster.wan_address)));
        run_with_input(Command::new("ip").args(["-batch", "-"]), &lines)
            .context("the host has no way to the lab: is another lab, or one of its addresses in 203.0.113.0/24, on this machine?")?;
        first.ip(&format!("addr add {router}/30 dev host\nlink set host up\n"))?;
        second.ip(&format!("route add {network} via {core}\n"))
    }
}

/// Removes the host's link, if there is one, and with it its address and route.
pub(crate) fn remove_host_link() -> Result<()> {
    if Path::new("/sys/class/net").join(HOST_LINK).exists() {
        run(Command::new("ip").args(["link", "delete", HOST_LINK]))?;
    }
    Ok(())
}

/// Leads the router's port of the API server to the first node; the cluster's own nodes find their way back too.
fn api_forward(cluster: &Cluster) -> String {
    let (public, api) = (cluster.wan_address, cluster.nodes[0].address);
    let nodes = cluster.plan.node_network;
    format!(
        "table ip api {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr {public} tcp dport {API_PORT} dnat to {api}:{API_PORT}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ct status dnat ip saddr {nodes} ip daddr {api} masquerade
    }}
}}"
    )
}

/// Configures a node: its address, and the routes to the other nodes' pods.
fn node_links(cluster: &Cluster, node: &Node) -> String {
    let plan = &cluster.plan;
    let mut lines = format!(
        "link set lo up\naddr add {}/{} dev eth0\nlink set eth0 up\nroute add default via {}\n",
        node.address,
        plan.node_network.prefix_len(),
        plan.router_address()
    );
    for other in cluster.nodes.iter().filter(|other| other.name != node.name) {
        let _ = writeln!(lines, "route add {} via {}", other.pod_network, other.address);
    }
    lines
}

/// Masquerades what pods send out of their cluster, as common container networks do.
fn pod_masquerade(pods: Ipv4Net) -> String {
    format!(
        "table ip nat-cni {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {pods} ip daddr != {pods} ip daddr != 224.0.0.0/4 masquerade
    }}
}}"
    )
}

/// Sets what a distribution and the installation of Kubernetes would have set on a node.
fn set_sysctls(node: &Namespace) -> Result<()> {
    node.enter(|| {
        let settings = [
            ("net/ipv4/ip_forward", "1"),
            // As systemd has it; a node with strict filtering is a case of its own.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "2"),
            ("net/ipv4/conf/eth0/rp_filter", "2"),
            // Else a service leads to no pod on the caller's own bridge.
            ("net/bridge/bridge-nf-call-iptables", "1"),
        ];
        for (name, value) in settings {
            fs::write(format!("/proc/sys/{name}"), value).with_context(|| {
                format!("cannot set {name} on a node: load the kernel module br_netfilter if it is missing")
            })?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::ProxyMode;

    fn network() -> Network {
        let plan = Plan::new("lab", &["east", "west"], 2, ProxyMode::Iptables).unwrap();
        Network::planned(&plan, Path::new("/nowhere"))
    }

    #[test]
    fn a_node_has_its_way_out_and_a_route_to_every_other_nodes_pods() {
        let network = network();
        let west = &network.clusters[1];
        assert_eq!(west.nodes[0].namespace.name(), "kube-lab-west-node1");
        assert_eq!(
            node_links(west, &west.nodes[0]),
            "link set lo up\naddr add 192.168.20.11/24 dev eth0\nlink set eth0 up\n\
             route add default via 192.168.20.1\nroute add 10.2.2.0/24 via 192.168.20.12\n"
        );
    }

    #[test]
    fn the_routers_public_address_leads_to_the_first_node() {
        let rules = api_forward(&network().clusters[1]);
        assert!(rules.contains("ip daddr 203.0.113.6 tcp dport 6443 dnat to 192.168.20.11:6443"), "{rules}");
    }
}
