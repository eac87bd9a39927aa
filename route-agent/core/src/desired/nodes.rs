//! The way from the active gateway's node to the other nodes' own addresses, for what comes by a cable.
//!
//! A service may be served by a pod in the network of its node. The gateway translates the service's address to the
//! node's, and the packet's source is another cluster's: the network between nodes need not let it pass. So it goes over
//! the overlay, as the answer does. What the gateway's host itself sends to nodes, the overlay's datagrams among it, goes
//! by the main table as ever.

use culvert_model::{IpFamily, link_local, vtep_mac};
use culvert_netstate::own::{NODES_RULE, NODES_TABLE, OVERLAY_LINK, ROUTE_METRIC, VXLAN_LINK, WIREGUARD_LINK};
use culvert_netstate::{Fdb, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State};
use ipnet::IpNet;
use std::net::IpAddr;

use super::Overlay;
use crate::Inputs;

/// Adds the way to all nodes that have an address of the overlay's family.
pub(super) fn lead(inputs: &Inputs, overlay: &Overlay<'_>, state: &mut State) {
    let family = IpFamily::of(overlay.local);
    for node in inputs.nodes().into_iter().filter(|node| IpFamily::of(*node) == family) {
        if inputs.address.contains(node) {
            continue;
        }
        let mac = vtep_mac(node);
        let link = OVERLAY_LINK.to_owned();
        // As for the gateway itself: see `follow`.
        let next_hop = match family {
            IpFamily::V4 => node,
            IpFamily::V6 => IpAddr::V6(link_local(mac)),
        };
        state.fdb.insert(Fdb { link: link.clone(), mac, remote: node });
        state.neighbours.insert(Neighbour { link: link.clone(), address: next_hop }, mac);
        let key = RouteKey { table: NODES_TABLE, destination: IpNet::from(node), metric: ROUTE_METRIC };
        let route = Route { link, next_hop: Some(next_hop), preferred_source: None, mtu: None };
        state.routes.insert(key, RouteTarget::Via(route));
    }
    state.rules.extend([WIREGUARD_LINK, VXLAN_LINK].map(|link| Rule {
        priority: NODES_RULE,
        family,
        selector: RuleSelector::From(link.to_owned()),
        table: NODES_TABLE,
    }));
}
