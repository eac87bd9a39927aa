//! Decides what the VXLAN device may receive: nftables rules for its outer and inner packets.
//!
//! VXLAN has no authentication (RFC 7348 section 7), so the outer source must be a peer's, the inner source one of that
//! peer's, and the inner destination one of ours. Encrypted cables are checked by the data plane instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use culvert_netstate::nft::{Chain, Hook, Set, Table};
use culvert_netstate::own;
use ipnet::{IpNet, Ipv4Net};

use crate::cables::{Choices, VxlanCable, vtep_address};

/// The gateway's nftables table.
pub const TABLE: &str = "culvert_gateway";

/// Datagrams to the VXLAN port from others than peers.
pub const DROPPED_UNKNOWN_PEER: &str = "dropped_unknown_peer";
/// Packets of peers whose inner source is not theirs.
pub const DROPPED_SOURCE: &str = "dropped_source";
/// Packets of peers whose inner destination is not ours.
pub const DROPPED_DESTINATION: &str = "dropped_destination";

const OWN_DESTINATIONS: &str = "own_destinations";

/// Bits from the UDP header on: UDP 64 and VXLAN 64, then the inner frame: two MACs of 48, type 16, then its payload.
const ETHER_TYPE: &str = "@th,224,16";
/// Sender protocol address of ARP (RFC 826), 14 bytes into the payload.
const ARP_SENDER: &str = "@th,352,32";
/// Source address of IPv4 (RFC 791), 12 bytes into the payload.
const IPV4_SOURCE: &str = "@th,336,32";

/// Returns the table for VXLAN on `port`, with `own` the addresses and subnets that peers may send to.
pub(crate) fn table(port: u16, choices: &Choices, own: impl IntoIterator<Item = Ipv4Net>) -> Table {
    let mut chains = BTreeMap::new();
    let mut verdicts = Vec::new();
    for (_, cable) in choices.vxlan() {
        let name = format!("from_{}", cable.remote.to_string().replace('.', "_"));
        verdicts.push(format!("{} : goto {name}", cable.remote));
        chains.insert(name, Chain { hook: None, rules: peer_rules(cable) });
    }
    verdicts.sort_unstable();

    let mut outer = Vec::new();
    if !verdicts.is_empty() {
        outer.push(format!("udp dport {port} ip saddr vmap {{ {} }}", verdicts.join(", ")));
    }
    outer.push(format!("udp dport {port} counter name {DROPPED_UNKNOWN_PEER} drop"));
    let outer_hook = Hook { kind: "filter", hook: "input", priority: -10 };
    chains.insert("outer".to_owned(), Chain { hook: Some(outer_hook), rules: outer });

    // Before destination NAT: a service address is ours, although the pod or host behind it may not be in our subnets.
    let inner_hook = Hook { kind: "filter", hook: "prerouting", priority: -150 };
    let inner = vec![
        format!("iifname != \"{}\" accept", own::VXLAN_LINK),
        format!("ip daddr @{OWN_DESTINATIONS} accept"),
        format!("counter name {DROPPED_DESTINATION} drop"),
    ];
    chains.insert("inner".to_owned(), Chain { hook: Some(inner_hook), rules: inner });

    let elements: BTreeSet<String> = own.into_iter().map(|net| net.trunc().to_string()).collect();
    Table {
        counters: [DROPPED_UNKNOWN_PEER, DROPPED_SOURCE, DROPPED_DESTINATION].map(str::to_owned).into(),
        sets: BTreeMap::from([(OWN_DESTINATIONS.to_owned(), Set { key: "ipv4_addr", interval: true, elements })]),
        chains,
        ..Table::default()
    }
}

/// Accepts ARP and IPv4 from the peer's address on the VXLAN link and from its subnets, and nothing else.
///
/// ARP counts as well, so that no peer takes another's address; its sender may be any address of the peer's node.
fn peer_rules(cable: &VxlanCable) -> Vec<String> {
    let subnets = cable.subnets.iter().filter_map(|subnet| match subnet {
        IpNet::V4(subnet) => Some(*subnet),
        IpNet::V6(_) => None,
    });
    let sources: Vec<Ipv4Net> = std::iter::once(Ipv4Net::from(vtep_address(cable.private))).chain(subnets).collect();
    let ipv4 = sources.iter().map(|source| format!("{ETHER_TYPE} 0x0800 {} accept", matches(IPV4_SOURCE, *source)));
    let arp = sources.iter().map(|source| format!("{ETHER_TYPE} 0x0806 {} accept", matches(ARP_SENDER, *source)));
    let rest = format!("counter name {DROPPED_SOURCE} drop");
    ipv4.chain(arp).chain([rest]).collect()
}

fn matches(field: &str, net: Ipv4Net) -> String {
    let number = |address: Ipv4Addr| format!("0x{:08x}", u32::from(address));
    if net.prefix_len() == 32 {
        format!("{field} {}", number(net.addr()))
    } else {
        format!("{field} & {} == {}", number(net.netmask()), number(net.network()))
    }
}
