//! What the route agent decides from, and which part its node plays.
//!
//! "On gateway" follows Submariner chapter 7.1, with one difference: of several Endpoints of this cluster the newest
//! one counts, so that a gateway that died without removing its own is followed no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{Addresses, ClusterId, Endpoint, IpFamily};
use culvert_netstate::own;
use ipnet::IpNet;

/// All that the desired state of a node follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// This cluster.
    pub cluster: ClusterId,
    /// This node's name, as it stands in the `hostname` of an Endpoint.
    pub node: String,
    /// Where this node's overlay datagrams come from; the other nodes know it by these.
    pub address: Addresses,
    /// Pod CIDRs of this cluster.
    pub pods: Vec<IpNet>,
    /// Service CIDRs of this cluster.
    pub services: Vec<IpNet>,
    /// Global CIDRs of this cluster; none without Globalnet.
    pub global: Vec<IpNet>,
    /// Endpoints of all clusters, this one's included.
    pub endpoints: Vec<Endpoint>,
    /// Clusters that are known, also those that have left.
    pub clusters: Vec<KnownCluster>,
    /// The node's links by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Addresses of the nodes of this cluster, as they published them.
    pub node_addresses: BTreeSet<IpAddr>,
}

/// A cluster and what it announced: nothing may leave for these subnets except through a cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownCluster {
    /// The cluster's id as written, since a record that is otherwise wrong may still name subnets.
    pub name: String,
    pub subnets: Vec<IpNet>,
}

/// A link of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Bytes.
    pub mtu: u16,
    /// Addresses, each with the prefix length of its network.
    pub addresses: Vec<IpNet>,
}

/// The part that a node plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// Cables end here; the gateway daemon routes into them.
    Gateway(&'a Endpoint),
    /// Traffic for other clusters goes over the overlay to this gateway.
    Worker(&'a Endpoint),
    /// No gateway is active: other clusters are unreachable.
    Waiting,
}

impl Inputs {
    /// Returns the part that this node plays.
    pub fn role(&self) -> Role<'_> {
        let local = self.endpoints.iter().filter(|endpoint| endpoint.cluster == self.cluster);
        match local.max_by_key(|endpoint| (endpoint.created, &endpoint.cable_name)) {
            Some(active) if self.is_here(active) => Role::Gateway(active),
            Some(active) => Role::Worker(active),
            None => Role::Waiting,
        }
    }

    /// Returns the Endpoints of the other clusters.
    pub fn remote_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.cluster != self.cluster)
    }

    /// Returns the addresses that may send to this node over the overlay: all nodes', the gateways' and its own.
    pub fn nodes(&self) -> BTreeSet<IpAddr> {
        let gateways = self.endpoints.iter().filter(|endpoint| endpoint.cluster == self.cluster);
        let gateways = gateways.flat_map(|gateway| gateway.private.iter());
        self.node_addresses.iter().copied().chain(gateways).chain(self.address.iter()).collect()
    }

    /// Returns the node's links that are not Culvert's.
    pub(crate) fn foreign_interfaces(&self) -> impl Iterator<Item = (&str, &Interface)> {
        const OWN: [&str; 3] = [own::WIREGUARD_LINK, own::VXLAN_LINK, own::OVERLAY_LINK];
        let interfaces = self.interfaces.iter().map(|(name, interface)| (name.as_str(), interface));
        interfaces.filter(|(name, _)| !OWN.contains(name))
    }

    /// Returns the address by which this host's own packets leave for other clusters: one that these can answer to. With
    /// Globalnet they see another one anyway, and it is the node's own: a server bound to no address answers by the one
    /// that was asked.
    pub fn source(&self, family: IpFamily) -> Option<IpAddr> {
        match self.global.is_empty() {
            true => self.cni_address(family).map(|(_, address)| address),
            false => self.address.of(family),
        }
    }

    /// Returns the link that the CNI gave an address of `family`, and the address: the first link that holds one
    /// inside a pod CIDR, over the CIDRs in order (Submariner chapter 7.4).
    ///
    /// Without Globalnet it is the only address of a node that other clusters can answer to.
    pub fn cni_address(&self, family: IpFamily) -> Option<(&str, IpAddr)> {
        self.pods.iter().filter(|pods| IpFamily::of_net(pods) == family).find_map(|pods| {
            self.foreign_interfaces().find_map(|(name, interface)| {
                let inside = interface.addresses.iter().map(IpNet::addr).find(|address| pods.contains(address));
                inside.map(|address| (name, address))
            })
        })
    }

    /// The node name is the operating system's in Submariner, so it may differ in form: the address tells as well.
    fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.hostname == self.node || endpoint.private.iter().any(|address| self.address.contains(address))
    }
}
