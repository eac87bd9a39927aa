//! Decides which subnets of other clusters this node takes, and says what it refuses.
//!
//! The rules are [`ForeignSubnets`]': no record takes traffic away from its reader. A refused subnet gets no route at
//! all, not even an `unreachable` one, which would cut off the local network that it collides with.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_model::{ForeignSubnets, IpFamily, SubnetError};
use ipnet::IpNet;

use crate::Inputs;

/// Something that the records ask for and that is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("cluster {cluster}: {reason}")]
    Subnet { cluster: String, reason: SubnetError },
    #[error("this node's address is not known, so there is no overlay: give it with `--node-ip`")]
    NoNodeAddress,
    #[error("no link of this node holds {address}, so there is no overlay: correct `--node-ip`")]
    NoLink { address: IpAddr },
    #[error(
        "gateway {gateway} has no private IPv{family} address, so the overlay cannot reach it from {node}: give both \
         nodes addresses of one family"
    )]
    NoOuterAddress { gateway: String, family: IpFamily, node: IpAddr },
    #[error(
        "gateway {gateway} has no private IPv{family} address: the IPv{family} subnets of other clusters are not routed"
    )]
    NoNextHop { gateway: String, family: IpFamily },
    #[error(
        "this node's gateway is published with {published}, and its overlay has {address}, so other nodes do not reach \
         it: give both daemons the same address with `--private-ip` and `--node-ip`"
    )]
    AddressesDiffer { published: IpAddr, address: IpAddr },
}

/// The subnets of other clusters that may have routes here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Behind a gateway that is known: routed if this cluster has a gateway.
    pub(crate) routed: BTreeSet<IpNet>,
    /// All that is known, for as long as it is known: never sent elsewhere.
    pub(crate) known: BTreeSet<IpNet>,
}

impl Remote {
    /// Returns the families that occur, IPv4 first.
    pub(crate) fn families(&self) -> impl Iterator<Item = IpFamily> {
        IpFamily::ALL.into_iter().filter(|family| self.known.iter().any(|subnet| IpFamily::of_net(subnet) == *family))
    }

    /// Returns the subnets that need an `unreachable` route.
    ///
    /// One strictly inside a routed subnet gets none: it would cut a hole into that, which has its own already.
    pub(crate) fn guarded(&self) -> impl Iterator<Item = IpNet> {
        let inside = |subnet: &IpNet| self.routed.iter().any(|routed| routed != subnet && routed.contains(subnet));
        self.known.iter().copied().filter(move |subnet| !inside(subnet))
    }
}

/// Sorts what the other clusters announce into what is taken and what is refused.
pub(crate) fn remote(inputs: &Inputs) -> (Remote, Vec<Refused>) {
    let foreign = foreign_subnets(inputs);
    let mut remote = Remote::default();
    let mut refused = Vec::new();
    let mut take = |cluster: &str, subnet: IpNet| match foreign.check(subnet) {
        Ok(()) => true,
        Err(reason) => {
            let refusal = Refused::Subnet { cluster: cluster.to_owned(), reason };
            // A subnet stands in the Cluster and in the Endpoint record alike.
            if !refused.contains(&refusal) {
                refused.push(refusal);
            }
            false
        }
    };
    for endpoint in inputs.remote_endpoints() {
        for subnet in endpoint.subnets.iter().map(IpNet::trunc) {
            if take(endpoint.cluster.as_str(), subnet) {
                remote.routed.insert(subnet);
                remote.known.insert(subnet);
            }
        }
    }
    for cluster in inputs.clusters.iter().filter(|cluster| cluster.name != inputs.cluster.as_str()) {
        for subnet in cluster.subnets.iter().map(IpNet::trunc) {
            if take(&cluster.name, subnet) {
                remote.known.insert(subnet);
            }
        }
    }
    (remote, refused)
}

/// Other nodes' addresses count as well: an overlay datagram to one must not be routed into the overlay.
fn foreign_subnets(inputs: &Inputs) -> ForeignSubnets {
    let attached = inputs.foreign_interfaces().flat_map(|(_, interface)| interface.addresses.iter().map(IpNet::trunc));
    ForeignSubnets {
        local: inputs.pods.iter().chain(&inputs.services).chain(&inputs.global).copied().collect(),
        nodes: attached.chain(inputs.nodes().into_iter().map(IpNet::from)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, endpoint, inputs, net};

    #[test]
    fn a_subnet_of_ours_is_refused_once_and_the_others_are_taken() {
        let mut inputs = inputs();
        inputs.endpoints.push(endpoint("north", "g9", "192.168.9.2", &["10.1.7.0/24", "10.9.0.0/16"]));
        inputs.clusters.push(cluster("north", &["10.1.7.0/24"]));

        let (remote, refused) = remote(&inputs);

        assert!(remote.routed.contains(&net("10.9.0.0/16")));
        assert!(!remote.known.contains(&net("10.1.7.0/24")));
        let words: Vec<String> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(words.len(), 1, "{words:?}");
        assert!(words[0].starts_with("cluster north: subnet 10.1.7.0/24 overlaps 10.1.0.0/16"), "{words:?}");
    }

    #[test]
    fn a_subnet_over_an_attached_network_or_another_nodes_address_is_refused() {
        for subnet in ["192.168.1.128/25", "172.16.5.0/24"] {
            let mut inputs = inputs();
            inputs.node_addresses.insert("172.16.5.9".parse().unwrap());
            inputs.endpoints.push(endpoint("north", "g9", "192.168.9.2", &[subnet]));

            let (remote, refused) = remote(&inputs);

            assert!(!remote.known.contains(&net(subnet)), "{subnet}");
            assert!(
                matches!(&refused[..], [Refused::Subnet { reason: SubnetError::OverlapsNode { .. }, .. }]),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn addresses_on_culverts_own_links_refuse_nothing() {
        let mut inputs = inputs();
        let cable = crate::Interface { mtu: 1450, addresses: vec![net("10.2.0.1/16")] };
        inputs.interfaces.insert("culvert-vx".to_owned(), cable);

        let (remote, refused) = remote(&inputs);

        assert!(remote.routed.contains(&net("10.2.0.0/16")));
        assert_eq!(refused, []);
    }

    #[test]
    fn a_known_subnet_inside_a_routed_one_cuts_no_hole() {
        let mut inputs = inputs();
        inputs.clusters.push(cluster("gone", &["10.2.3.0/24", "10.3.0.0/16"]));

        let (remote, _) = remote(&inputs);
        let guarded: Vec<IpNet> = remote.guarded().collect();

        assert!(!guarded.contains(&net("10.2.3.0/24")));
        assert!(guarded.contains(&net("10.2.0.0/16")) && guarded.contains(&net("10.3.0.0/16")), "{guarded:?}");
    }
}
