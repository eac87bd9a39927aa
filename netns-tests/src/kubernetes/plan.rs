//! What a Kubernetes lab looks like, as data, and which plans cannot be built.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::topology::{self, NodePlan, nth_address};

/// The longest name of a cluster, in bytes: a link is named after it.
const LONGEST_NAME: usize = 15;
/// The most clusters that the addresses of [`Plan::new`] suffice for.
const MOST_CLUSTERS: usize = 20;
/// The most nodes of a cluster: each has a /24 for its pods and an address in a /24.
const MOST_NODES: usize = 200;

/// All clusters of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The lab's name: lower-case letters and digits.
    pub name: String,
    pub clusters: Vec<ClusterPlan>,
}

/// One cluster. Its first node has the control plane, and pods as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPlan {
    /// The networks and the nodes. A node that is a gateway there has Submariner's label for it.
    pub network: topology::ClusterPlan,
    pub proxy_mode: ProxyMode,
}

/// How kube-proxy makes service addresses work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    Iptables,
    Nftables,
    /// No kube-proxy: whoever plans this brings another.
    None,
}

impl Plan {
    /// Plans clusters with these names, without NAT, with `nodes` nodes each: `node1`, a gateway, `node2` and so on.
    ///
    /// Cluster number n, from 1, has nodes in 192.168.(10 n).0/24, pods in 10.n.0.0/16, services in 100.n.0.0/16.
    ///
    /// # Errors
    ///
    /// As those of [`Plan::check`].
    pub fn new(name: &str, clusters: &[&str], nodes: usize, proxy_mode: ProxyMode) -> Result<Self> {
        ensure!(clusters.len() <= MOST_CLUSTERS, "a lab has at most {MOST_CLUSTERS} clusters");
        let node = |number: usize| match number {
            1 => NodePlan::gateway("node1"),
            _ => NodePlan::worker(&format!("node{number}")),
        };
        let cluster = |(number, id): (u8, &&str)| {
            let mut network = topology::ClusterPlan::numbered(id, number, Ipv4Addr::new(192, 168, 10 * number, 0));
            network.nodes = (1..=nodes).map(node).collect();
            ClusterPlan { network, proxy_mode }
        };
        let plan = Self { name: name.to_owned(), clusters: (1..).zip(clusters).map(cluster).collect() };
        plan.check()?;
        Ok(plan)
    }

    /// Returns a cluster by its name.
    ///
    /// # Panics
    ///
    /// If there is none: a plan is written by its reader.
    pub fn cluster_mut(&mut self, name: &str) -> &mut ClusterPlan {
        self.clusters.iter_mut().find(|cluster| cluster.network.id == name).expect("the plan has this cluster")
    }

    /// Tells whether the plan can be built.
    ///
    /// Pod and service networks of two clusters may overlap; that is a case to be tested.
    ///
    /// # Errors
    ///
    /// Says what cannot be, and of which cluster.
    pub fn check(&self) -> Result<()> {
        check_lab_name(&self.name)?;
        ensure!(!self.clusters.is_empty(), "the lab {} has no clusters", self.name);
        let mut names = BTreeSet::new();
        let mut node_networks: Vec<(&str, Ipv4Net)> = Vec::new();
        for ClusterPlan { network, .. } in &self.clusters {
            let id = &network.id;
            let well_formed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            if id.is_empty() || id.len() > LONGEST_NAME || id == "core" || id == "host" || !id.bytes().all(well_formed)
            {
                bail!(
                    "a cluster cannot be named {id:?}: use 1 to {LONGEST_NAME} lower-case letters and digits, \
                     not core or host"
                );
            }
            ensure!(names.insert(id), "two clusters are named {id}");
            let nodes = network.nodes.len();
            ensure!((1..=MOST_NODES).contains(&nodes), "cluster {id} has {nodes} nodes: plan 1 to {MOST_NODES}");
            for (what, cidr) in [("pods", network.pod_cidr), ("services", network.service_cidr)] {
                let size = cidr.prefix_len();
                ensure!(size == 16, "the {what} of cluster {id} have {cidr}: give them a /16");
            }
            let overlaps = |cidr: Ipv4Net| cidr.contains(&network.node_network) || network.node_network.contains(&cidr);
            if let Some((other, _)) = node_networks.iter().find(|(_, cidr)| overlaps(*cidr)) {
                bail!("the node networks of clusters {other} and {id} overlap");
            }
            node_networks.push((id, network.node_network));
        }
        Ok(())
    }
}

/// Tells whether a lab may have this name: names of namespaces begin with it, and a hyphen ends it there.
pub(crate) fn check_lab_name(name: &str) -> Result<()> {
    let well_formed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    ensure!(
        !name.is_empty() && name.bytes().all(well_formed),
        "a lab cannot be named {name:?}: use lower-case letters and digits"
    );
    Ok(())
}

impl ClusterPlan {
    /// Returns the address of the API server within the cluster's pods: its first service address.
    pub(crate) fn api_service(&self) -> Ipv4Addr {
        nth_address(self.network.service_cidr, 1)
    }

    /// Returns the service address of the cluster's DNS.
    pub fn dns_service(&self) -> Ipv4Addr {
        nth_address(self.network.service_cidr, 10)
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::None => "none",
        })
    }
}

impl FromStr for ProxyMode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "iptables" => Ok(Self::Iptables),
            "nftables" => Ok(Self::Nftables),
            "none" => Ok(Self::None),
            "ipvs" => bail!(
                "kube-proxy's mode ipvs is not offered: it needs the kernel's ip_vs modules, which machines for tests \
                 often lack, and Kubernetes is giving it up; use nftables, which took its place"
            ),
            other => bail!("kube-proxy has no mode {other:?}: use iptables, nftables or none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn east_west() -> Plan {
        Plan::new("lab", &["east", "west"], 2, ProxyMode::Iptables).unwrap()
    }

    fn refusal(plan: &Plan) -> String {
        plan.check().unwrap_err().to_string()
    }

    #[test]
    fn networks_follow_from_the_clusters_numbers() {
        let plan = east_west();
        let west = &plan.clusters[1];
        assert_eq!(west.network.node_network.to_string(), "192.168.20.0/24");
        assert_eq!(west.network.pod_cidr.to_string(), "10.2.0.0/16");
        assert_eq!(west.dns_service(), Ipv4Addr::new(100, 2, 0, 10));
        assert_eq!(west.network.nodes, [NodePlan::gateway("node1"), NodePlan::worker("node2")]);
    }

    #[test]
    fn two_clusters_may_share_pod_networks_but_not_node_networks() {
        let mut plan = east_west();
        let pods = plan.clusters[0].network.pod_cidr;
        plan.cluster_mut("west").network.pod_cidr = pods;
        plan.check().unwrap();

        let nodes = plan.clusters[0].network.node_network;
        plan.cluster_mut("west").network.node_network = nodes;
        assert_eq!(refusal(&plan), "the node networks of clusters east and west overlap");
    }

    #[test]
    fn names_that_no_link_or_namespace_can_have_are_refused() {
        for name in ["", "East", "far-east", "a234567890123456", "core"] {
            let mut plan = east_west();
            plan.clusters[0].network.id = name.to_owned();
            assert!(refusal(&plan).contains(&format!("{name:?}")), "{name}");
        }
        let mut plan = east_west();
        plan.name = "my-lab".to_owned();
        assert!(refusal(&plan).contains("\"my-lab\""));
        assert!(Plan::new("lab", &["east", "east"], 1, ProxyMode::None).is_err());
    }

    #[test]
    fn a_cluster_needs_a_node() {
        assert!(Plan::new("lab", &["east"], 0, ProxyMode::None).is_err());
        assert!(Plan::new("lab", &[], 1, ProxyMode::None).is_err());
    }

    #[test]
    fn every_mode_is_read_as_it_is_written_and_ipvs_is_refused_with_a_way_out() {
        for mode in [ProxyMode::Iptables, ProxyMode::Nftables, ProxyMode::None] {
            assert_eq!(mode.to_string().parse::<ProxyMode>().unwrap(), mode);
        }
        assert!("ipvs".parse::<ProxyMode>().unwrap_err().to_string().contains("use nftables"));
    }
}
