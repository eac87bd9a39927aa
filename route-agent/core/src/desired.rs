//! Decides the kernel state of a node: the overlay to the gateway, the routes to other clusters, and what guards them.
//!
//! Every node has an `unreachable` route for all that other clusters announced, so that nothing leaves in the clear
//! when a cable or a gateway is away, and one for this cluster's own global CIDRs, which lead nowhere but on the gateway's
//! node, where Globalnet's routes come first. A worker has, above these, routes over the overlay to the active gateway; on the
//! gateway node the cable routes of the gateway daemon come first by their rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use culvert_model::{Endpoint, IpFamily, link_local, overlay_mtu, vtep_mac};
use culvert_netstate::own::{NODE_RULE, NODE_TABLE, OVERLAY_LINK, OVERLAY_VNI, ROUTE_METRIC, UNREACHABLE_METRIC};
use culvert_netstate::{Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State};
use ipnet::IpNet;

use crate::remote::{Remote, remote};
use crate::{Inputs, Refused, Role, filter};

/// UDP port of the overlay, as Submariner's (chapter 7.3).
pub(crate) const OVERLAY_PORT: u16 = 4800;

/// The address of the overlay link on every node: the IPv4 dummy address (RFC 7600 section 4.8).
///
/// Nothing is sent to it or from it. Linux drops whatever comes in on a link without any address unless the reverse
/// path filter is off altogether, even if it is loose, and `conf/all` may not let us switch it off.
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Lets TCP packets outside of the tracked window pass as valid, for both address families.
const LIBERAL_WINDOWS: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// The nftables table, as `netstate::own` names it.
const NFT_TABLE: &str = "culvert_route_agent";

/// The overlay as this node has it.
struct Overlay<'a> {
    local: IpAddr,
    /// The link below.
    carrier: &'a str,
    /// Bytes, of the link below.
    carrier_mtu: u16,
}

/// Returns the state that this node's kernel should have, and what is left out of it for a reason.
pub fn desired(inputs: &Inputs) -> (State, Vec<Refused>) {
    let (remote, mut refused) = remote(inputs);
    let mut state = State::default();
    let guarded: BTreeSet<IpNet> = remote.guarded().chain(inputs.global.iter().map(IpNet::trunc)).collect();
    let has = |family: &IpFamily| guarded.iter().any(|subnet| IpFamily::of_net(subnet) == *family);
    state.rules.extend(IpFamily::ALL.into_iter().filter(has).map(node_rule));
    state.routes.extend(guarded.into_iter().map(unreachable_route));
    state.nft.insert(NFT_TABLE.to_owned(), filter::table(inputs, &remote));
    let overlay = match overlay(inputs) {
        Ok(overlay) => Some(overlay),
        Err(reason) => {
            refused.push(reason);
            None
        }
    };
    if let Some(overlay) = &overlay {
        state.links.insert(OVERLAY_LINK.to_owned(), overlay_link(overlay));
        state.addresses.insert((OVERLAY_LINK.to_owned(), IpNet::from(IpAddr::from(DUMMY))));
        match inputs.role() {
            Role::Worker(gateway) => follow(inputs, &remote, overlay, gateway, &mut state, &mut refused),
            Role::Gateway(gateway) => {
                refused.extend(addresses_differ(gateway, overlay.local));
                nodes::lead(inputs, overlay, &mut state);
            }
            Role::Waiting => {}
        }
    }
    state.sysctls = sysctls(inputs, &remote, overlay.as_ref());
    (state, refused)
}

fn node_rule(family: IpFamily) -> Rule {
    Rule { priority: NODE_RULE, family, selector: RuleSelector::All, table: NODE_TABLE }
}

fn unreachable_route(destination: IpNet) -> (RouteKey, RouteTarget) {
    (RouteKey { table: NODE_TABLE, destination, metric: UNREACHABLE_METRIC }, RouteTarget::Unreachable)
}

/// Adds the way to `gateway` and the routes over it.
///
/// The next hop is the gateway's node address, taken as on-link. Its MAC follows from its address, so neither ARP nor
/// flooding is needed, and a change of gateway replaces next hops and nothing else.
fn follow(
    inputs: &Inputs,
    remote: &Remote,
    overlay: &Overlay<'_>,
    gateway: &Endpoint,
    state: &mut State,
    refused: &mut Vec<Refused>,
) {
    let outer = IpFamily::of(overlay.local);
    let Some(outer_address) = gateway.private.of(outer) else {
        let gateway = gateway.hostname.clone();
        refused.push(Refused::NoOuterAddress { gateway, family: outer, node: overlay.local });
        return;
    };
    let mac = vtep_mac(outer_address);
    state.fdb.insert(Fdb { link: OVERLAY_LINK.to_owned(), mac, remote: outer_address });
    for family in remote.families() {
        let next_hop = match family {
            IpFamily::V4 => gateway.private.of(family),
            // Linux takes no global IPv6 next hop as on-link that another link leads to; a link-local one is every link's.
            IpFamily::V6 => Some(IpAddr::V6(link_local(mac))),
        };
        let Some(next_hop) = next_hop else {
            refused.push(Refused::NoNextHop { gateway: gateway.hostname.clone(), family });
            continue;
        };
        state.neighbours.insert(Neighbour { link: OVERLAY_LINK.to_owned(), address: next_hop }, mac);
        state.routes.extend(overlay_routes(inputs, remote, family, next_hop));
    }
}

fn overlay_routes(
    inputs: &Inputs,
    remote: &Remote,
    family: IpFamily,
    next_hop: IpAddr,
) -> impl Iterator<Item = (RouteKey, RouteTarget)> {
    let route = Route {
        link: OVERLAY_LINK.to_owned(),
        next_hop: Some(next_hop),
        preferred_source: inputs.source(family),
        mtu: None,
    };
    let subnets = remote.routed.iter().copied().filter(move |subnet| IpFamily::of_net(subnet) == family);
    subnets.map(move |destination| {
        (RouteKey { table: NODE_TABLE, destination, metric: ROUTE_METRIC }, RouteTarget::Via(route.clone()))
    })
}

/// Finds the link that carries the overlay: the one that holds the node's address, IPv4 preferred.
fn overlay(inputs: &Inputs) -> Result<Overlay<'_>, Refused> {
    let local = inputs.address.iter().next().ok_or(Refused::NoNodeAddress)?;
    let holds = |addresses: &[IpNet]| addresses.iter().any(|net| net.addr() == local);
    inputs
        .foreign_interfaces()
        .find(|(_, interface)| holds(&interface.addresses))
        .map(|(carrier, interface)| Overlay { local, carrier, carrier_mtu: interface.mtu })
        .ok_or(Refused::NoLink { address: local })
}

fn overlay_link(overlay: &Overlay<'_>) -> Link {
    Link {
        kind: LinkKind::Vxlan { vni: OVERLAY_VNI, port: OVERLAY_PORT, local: overlay.local },
        mtu: overlay_mtu(overlay.carrier_mtu, IpFamily::of(overlay.local)),
        mac: vtep_mac(overlay.local),
    }
}

/// The other nodes derive the MAC of the gateway's overlay device from the address in its Endpoint.
fn addresses_differ(gateway: &Endpoint, address: IpAddr) -> Option<Refused> {
    let published = gateway.private.of(IpFamily::of(address))?;
    (published != address).then_some(Refused::AddressesDiffer { published, address })
}

/// Lets packets pass, also where they come in on another link than answers to them leave by.
///
/// The path between clusters is asymmetric: out over the overlay, back by the CNI's routes.
fn sysctls(inputs: &Inputs, remote: &Remote, overlay: Option<&Overlay<'_>>) -> BTreeMap<String, String> {
    let cni = inputs.cni_address(IpFamily::V4).map(|(link, _)| link);
    let forwarding = overlay.map(|_| OVERLAY_LINK).into_iter().chain(cni);
    let loose = forwarding.clone().chain(overlay.map(|overlay| overlay.carrier));
    let mut sysctls = BTreeMap::from([("net/ipv4/ip_forward".to_owned(), "1".to_owned())]);
    sysctls.extend(forwarding.map(|link| (format!("net/ipv4/conf/{link}/forwarding"), "1".to_owned())));
    sysctls.extend(loose.map(|link| (format!("net/ipv4/conf/{link}/rp_filter"), "2".to_owned())));
    if remote.families().any(|family| family == IpFamily::V6) {
        // Linux forwards IPv6 for all links or for none.
        sysctls.insert("net/ipv6/conf/all/forwarding".to_owned(), "1".to_owned());
    }
    if matches!(inputs.role(), Role::Gateway(_)) {
        // A connection that was carried by another gateway meanwhile is out of the window that this node remembers.
        // Our NAT chain, which is put first, loads connection tracking and with it this sysctl.
        sysctls.insert(LIBERAL_WINDOWS.to_owned(), "1".to_owned());
    }
    sysctls
}

mod nodes;
#[cfg(test)]
mod tests;
