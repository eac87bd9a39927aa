//! The nftables table of the route agent: no masquerading between clusters, MSS, and who may send on the overlay.
//!
//! An `accept` does not stop another table's masquerade, but the first NAT binding of a flow wins: a source is kept by
//! binding it to itself at a priority below everybody's 100 (the table of priorities stands in ARCHITECTURE.md).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;
use culvert_netstate::nft::{Chain, Hook, Set, Table};
use ipnet::IpNet;

use crate::remote::Remote;
use crate::{Inputs, desired::OVERLAY_PORT};

/// Counter of overlay datagrams that did not come from a node of this cluster.
pub const DROPPED_OVERLAY: &str = "dropped_overlay";

/// Returns the table for this cluster's and the other clusters' subnets.
///
/// Subnets that are known without a gateway count as remote, so that a flow's source does not depend on the moment at
/// which its first packet passes.
pub(crate) fn table(inputs: &Inputs, remote: &Remote) -> Table {
    let local: BTreeSet<IpNet> = inputs.pods.iter().chain(&inputs.services).map(IpNet::trunc).collect();
    let nodes = inputs.nodes();
    let mut sets = BTreeMap::new();
    for family in IpFamily::ALL {
        sets.insert(format!("local{family}"), subnet_set(family, &local));
        sets.insert(format!("remote{family}"), subnet_set(family, &remote.known));
        sets.insert(format!("nodes{family}"), address_set(family, &nodes));
    }
    Table {
        counters: BTreeSet::from([DROPPED_OVERLAY.to_owned()]),
        sets,
        chains: BTreeMap::from([
            ("keep_source".to_owned(), keep_source()),
            ("clamp_mss".to_owned(), clamp_mss()),
            ("overlay_guard".to_owned(), overlay_guard()),
        ]),
        ..Table::default()
    }
}

/// Binds the source of whatever passes between this cluster and others to itself.
///
/// What came for a service of this cluster counts although its destination may be a node by now: the source of a flow
/// to a pod in its node's network is kept like any other.
fn keep_source() -> Chain {
    let mut rules = between_clusters(|ip| format!("snat {ip} to {ip} saddr"));
    rules.extend(IpFamily::ALL.map(|family| {
        let ip = keyword(family);
        format!("{ip} saddr @remote{family} ct original {ip} daddr @local{family} snat {ip} to {ip} saddr")
    }));
    Chain { hook: Some(Hook { kind: "nat", hook: "postrouting", priority: 90 }), rules }
}

/// Lowers the MSS of forwarded connections to what the routes of both directions carry.
fn clamp_mss() -> Chain {
    // First of all what is true of nearly every packet: it is none to be changed.
    let mut rules = vec!["meta l4proto != tcp accept".to_owned(), "tcp flags & (syn | rst) != syn accept".to_owned()];
    rules.extend(between_clusters(|_| "tcp option maxseg size set rt mtu".to_owned()));
    Chain { hook: Some(Hook { kind: "filter", hook: "forward", priority: -150 }), rules }
}

/// Drops overlay datagrams of strangers, and counts them.
fn overlay_guard() -> Chain {
    let rules = IpFamily::ALL.map(|family| {
        let ip = keyword(family);
        format!("udp dport {OVERLAY_PORT} {ip} saddr != @nodes{family} counter name {DROPPED_OVERLAY} drop")
    });
    Chain { hook: Some(Hook { kind: "filter", hook: "input", priority: -10 }), rules: rules.into() }
}

/// Returns one rule for each family and direction.
fn between_clusters(action: impl Fn(&str) -> String) -> Vec<String> {
    let mut rules = Vec::new();
    for family in IpFamily::ALL {
        let ip = keyword(family);
        for (from, to) in [("local", "remote"), ("remote", "local")] {
            rules.push(format!("{ip} saddr @{from}{family} {ip} daddr @{to}{family} {}", action(ip)));
        }
    }
    rules
}

fn keyword(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

fn key(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ipv4_addr",
        IpFamily::V6 => "ipv6_addr",
    }
}

fn subnet_set(family: IpFamily, subnets: &BTreeSet<IpNet>) -> Set {
    let elements = subnets.iter().filter(|subnet| IpFamily::of_net(subnet) == family).map(ToString::to_string);
    Set { key: key(family), interval: true, elements: elements.collect() }
}

fn address_set(family: IpFamily, addresses: &BTreeSet<IpAddr>) -> Set {
    let elements = addresses.iter().filter(|address| IpFamily::of(**address) == family).map(ToString::to_string);
    Set { key: key(family), interval: false, elements: elements.collect() }
}
