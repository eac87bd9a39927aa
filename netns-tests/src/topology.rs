//! What a lab looks like, as data: clusters, their networks, their nodes, and what lies before them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// All clusters of a lab. Each is attached to one of two Internet routers, in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    pub clusters: Vec<ClusterPlan>,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPlan {
    pub id: String,
    /// Network of the nodes; its first address is the router's.
    pub node_network: Ipv4Net,
    /// Node number n, from 1, has the n-th /24 of it.
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    /// With Globalnet: the addresses by which the cluster is known to others.
    pub global_cidr: Option<Ipv4Net>,
    pub proxy: Proxy,
    pub nodes: Vec<NodePlan>,
    /// Whether the router masquerades (no port is forwarded) instead of routing the node network.
    pub behind_nat: bool,
    /// MTU in bytes of the link from the router to the Internet.
    pub internet_mtu: u16,
}

/// Whose rules the nodes have for services, beside a container network's masquerade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proxy {
    /// kube-proxy's, in its nftables form.
    Nftables,
    /// kube-proxy's, in its iptables form.
    Iptables,
    /// Nobody's: not even a masquerade.
    None,
}

/// One node, with one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// The name within its cluster.
    pub name: String,
    /// Whether it is labelled as a gateway.
    pub gateway: bool,
}

impl Topology {
    /// `east` with public nodes and `west` behind NAT, a gateway and a worker node in each.
    pub fn east_west() -> Self {
        Self { clusters: vec![ClusterPlan::east(), ClusterPlan { behind_nat: true, ..ClusterPlan::west() }] }
    }

    /// `east` and `west` without any NAT.
    pub fn routed() -> Self {
        Self { clusters: vec![ClusterPlan::east(), ClusterPlan::west()] }
    }

    /// `east` and `west` with the same CIDRs for pods and services, told apart by global ones.
    pub fn overlapping(proxy: Proxy) -> Self {
        let overlapping = |plan: ClusterPlan, number: u8| ClusterPlan {
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12),
            global_cidr: Some(Ipv4Net::new_assert(Ipv4Addr::new(242, number, 0, 0), 16)),
            proxy,
            ..plan
        };
        let west = ClusterPlan { behind_nat: true, ..ClusterPlan::west() };
        Self { clusters: vec![overlapping(ClusterPlan::east(), 1), overlapping(west, 2)] }
    }

    /// Adds a third cluster, `north`, with public nodes.
    pub fn with_north(mut self) -> Self {
        self.clusters.push(ClusterPlan::north());
        self
    }

    /// Returns a cluster by its id.
    ///
    /// # Panics
    ///
    /// If there is none: a topology is written by its reader.
    pub fn cluster_mut(&mut self, id: &str) -> &mut ClusterPlan {
        self.clusters.iter_mut().find(|cluster| cluster.id == id).expect("the topology has this cluster")
    }
}

impl ClusterPlan {
    /// Nodes in 198.51.100.0/24, pods in 10.1.0.0/16, services in 100.1.0.0/16.
    pub fn east() -> Self {
        Self::numbered("east", 1, Ipv4Addr::new(198, 51, 100, 0))
    }

    /// Nodes in 192.168.20.0/24, pods in 10.2.0.0/16, services in 100.2.0.0/16.
    pub fn west() -> Self {
        Self::numbered("west", 2, Ipv4Addr::new(192, 168, 20, 0))
    }

    /// Nodes in 192.0.2.0/24, pods in 10.3.0.0/16, services in 100.3.0.0/16.
    pub fn north() -> Self {
        Self::numbered("north", 3, Ipv4Addr::new(192, 0, 2, 0))
    }

    pub(crate) fn numbered(id: &str, number: u8, node_network: Ipv4Addr) -> Self {
        Self {
            id: id.to_owned(),
            node_network: Ipv4Net::new_assert(node_network, 24),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, number, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(100, number, 0, 0), 16),
            global_cidr: None,
            proxy: Proxy::Nftables,
            nodes: vec![NodePlan::gateway("gw"), NodePlan::worker("worker")],
            behind_nat: false,
            internet_mtu: 1500,
        }
    }

    /// Returns the router's address in the nodes' network.
    pub fn router_address(&self) -> Ipv4Addr {
        nth_address(self.node_network, 1)
    }

    pub(crate) fn node_address(&self, number: u8) -> Ipv4Addr {
        nth_address(self.node_network, 10 + u32::from(number))
    }

    pub(crate) fn pod_network(&self, number: u8) -> Ipv4Net {
        Ipv4Net::new_assert(nth_address(self.pod_cidr, u32::from(number) << 8), 24)
    }

    /// Returns the one cluster IP that kube-proxy's rules of this lab know; each node leads it to its own pod.
    pub fn service_address(&self) -> Ipv4Addr {
        nth_address(self.service_cidr, 10)
    }
}

impl NodePlan {
    /// A node that may run a gateway.
    pub fn gateway(name: &str) -> Self {
        Self { name: name.to_owned(), gateway: true }
    }

    /// A node without a gateway.
    pub fn worker(name: &str) -> Self {
        Self { name: name.to_owned(), gateway: false }
    }
}

/// Returns the address at `offset` from the beginning of `network`.
pub(crate) fn nth_address(network: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()) + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_numbers() {
        let east = ClusterPlan::east();
        assert_eq!(east.router_address(), Ipv4Addr::new(198, 51, 100, 1));
        assert_eq!(east.node_address(2), Ipv4Addr::new(198, 51, 100, 12));
        assert_eq!(east.pod_network(2).to_string(), "10.1.2.0/24");
        assert_eq!(east.service_address(), Ipv4Addr::new(100, 1, 0, 10));
    }
}
