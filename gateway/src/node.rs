//! What the gateway asks its node: addresses, networks, MTU, and a random number.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_gateway_core::local_endpoint::cni_addresses;
use culvert_kernel::{NodeFacts, route_to};
use culvert_model::{Addresses, ForeignSubnets};
use culvert_netstate::own::{OUTER_MARK, VXLAN_LINK};
use ipnet::IpNet;

use crate::config::Config;

/// Links of ours, which are no networks of the node.
const OWN_LINKS: &str = "culvert-";

/// Returns what no other cluster may claim here: this cluster's CIDRs and the networks that the node is attached to.
pub(crate) fn foreign_subnets(config: &Config, facts: &NodeFacts) -> ForeignSubnets {
    let attached = facts
        .interfaces
        .iter()
        .filter(|(name, _)| !name.starts_with(OWN_LINKS) && name.as_str() != "lo")
        .flat_map(|(_, interface)| &interface.addresses)
        .map(IpNet::trunc);
    let local: Vec<IpNet> = config.services.iter().chain(&config.pods).chain(&config.global).copied().collect();
    // Pod networks are named by their CIDRs already.
    let nodes = attached.filter(|net| !local.iter().any(|cidr| cidr.contains(net))).collect();
    ForeignSubnets { local, nodes }
}

/// Returns the addresses from which this node's own packets go through cables: in the pod network, which others can
/// answer to, or with Globalnet its `private` ones, which become global.
pub(crate) fn sources(config: &Config, facts: &NodeFacts, private: Addresses) -> Addresses {
    if config.global.is_empty() { cni(config, facts) } else { private }
}

/// Returns this node's addresses in the pod network.
pub(crate) fn cni(config: &Config, facts: &NodeFacts) -> Addresses {
    let addresses = facts.interfaces.values().flat_map(|interface| &interface.addresses).map(IpNet::addr);
    cni_addresses(addresses, &config.pods)
}

/// Returns the addresses from which this node reaches the Internet, by family; no packet is sent to find out.
///
/// One that was found `before` stays while the node has it, so that a default route that flaps renames nothing.
pub(crate) async fn default_sources(facts: &NodeFacts, before: Addresses) -> Addresses {
    let targets =
        [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888))];
    let has = |address: &IpAddr| {
        let mut all = facts.interfaces.values().flat_map(|interface| &interface.addresses);
        all.any(|net| net.addr() == *address)
    };
    let mut sources: Addresses = before.iter().filter(has).collect();
    for target in targets {
        if let Ok(Some(route)) = route_to(target, Some(OUTER_MARK)).await
            && let Some(source) = route.source
            && !source.is_loopback()
        {
            sources.set(source);
        }
    }
    sources
}

/// Returns the MTU of the link that holds the private address.
pub(crate) fn link_mtu(facts: &NodeFacts, private: Addresses) -> u16 {
    const ETHERNET: u16 = 1500;
    let holds = |address: IpAddr| {
        facts
            .interfaces
            .values()
            .find(|interface| interface.addresses.iter().any(|net| net.addr() == address))
            .map(|interface| interface.mtu)
    };
    private.iter().find_map(holds).unwrap_or(ETHERNET)
}

/// Tells whether the VXLAN device of the cables is there.
pub(crate) fn has_vxlan_device(facts: &NodeFacts) -> bool {
    facts.interfaces.contains_key(VXLAN_LINK)
}

/// Returns a number that nobody can guess, where the standard library's hash seeds come from.
pub(crate) fn random_number() -> u64 {
    RandomState::new().build_hasher().finish()
}
