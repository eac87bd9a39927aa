//! Decides how addresses are translated on a gateway's node: the nftables table, and which routes it needs.
//!
//! What leaves by a cable gets a global source, by Submariner's order of precedence (chapter 8.3): a pod selector, a
//! headless service's pod, a namespace, the cluster. That order is resolved here, so the kernel looks once. A pair of
//! source and destination always has the same of several addresses, and the same on every gateway.
//!
//! What comes by a cable for a headless service's pod is led to that pod, of whatever protocol; for services see
//! [`mod@crate::served`]. Both before kube-proxy, which then finds no address that it knows. Its source is bound to itself:
//! a server sees who called.
//!
//! The global CIDR is routed to the host itself, so that refusals, and answers to pings, come from the address that was
//! asked: an ICMP error from any other would not be let through by the other side. The route stands in the kernel's own table
//! of local addresses, since Linux takes no other address as the source of an answer. For errors over IPv6 that is not
//! enough: Linux sends them from an address that stands on a link, and the table puts the right one there.
//!
//! Nothing here depends on whether the gateway is the active one: a standby is ready before it takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;
use culvert_netstate::nft::{Chain, Hook, Map, Set, Table};
use culvert_netstate::{RouteKey, RouteTarget, State, own};
use ipnet::IpNet;

use crate::GlobalAddresses;

/// The nftables table, as `netstate::own` names it.
const TABLE: &str = "culvert_globalnet";

/// Counter of packets to global addresses of this cluster that nobody holds, or at which nobody serves.
pub const REFUSED: &str = "refused";

/// Counter of packets that would have left by a cable with a source that is not global: the cluster has no address left.
pub const UNTRANSLATED: &str = "untranslated";

/// Where VXLAN cables have their own addresses (Submariner chapter 4.9): no global address is for them.
const VTEPS: &str = "241.0.0.0/8";

/// Returns what Globalnet has in the kernel; nothing without global CIDRs.
pub fn desired(addresses: &GlobalAddresses) -> State {
    let mut state = State::default();
    if addresses.cidrs.is_empty() {
        return state;
    }
    state.nft.insert(TABLE.to_owned(), table(addresses));
    state.routes.extend(addresses.cidrs.iter().map(|cidr| {
        let key = RouteKey { table: own::LOCAL_TABLE, destination: cidr.trunc(), metric: own::ROUTE_METRIC };
        (key, RouteTarget::Local)
    }));
    state
}

/// Returns the rule's beginning that is true of packets from a cable.
pub fn from_cable() -> String {
    format!("iifname {{ \"{}\", \"{}\" }}", own::WIREGUARD_LINK, own::VXLAN_LINK)
}

fn table(addresses: &GlobalAddresses) -> Table {
    let mut table = Table { counters: BTreeSet::from([REFUSED, UNTRANSLATED].map(str::to_owned)), ..Table::default() };
    let (mut ingress, mut egress, mut input, mut guard) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for family in IpFamily::ALL {
        let of_family = |address: &&IpAddr| IpFamily::of(**address) == family;
        let Words { ip, key, echo } = words(family);
        let cidrs = addresses.cidrs.iter().filter(|cidr| IpFamily::of_net(cidr) == family);
        let cidrs: BTreeSet<String> = cidrs.map(|cidr| cidr.trunc().to_string()).collect();
        if cidrs.is_empty() {
            continue;
        }
        let answering = addresses.ingress_services.keys().chain(addresses.gateways.values()).filter(of_family);
        let answering = answering.map(ToString::to_string).collect();
        table.sets.insert(format!("cidrs{family}"), Set { key, interval: true, elements: cidrs });
        table.sets.insert(format!("answering{family}"), Set { key, interval: false, elements: answering });

        let senders = Senders::of(addresses, family);
        let hosts = addresses.ingress_hosts.iter().filter(|(global, host)| of_family(global) && of_family(host));
        let hosts = hosts.map(|(global, host)| (global.to_string(), host.to_string())).collect();
        table.maps.insert(format!("hosts{family}"), Map { key, value: key, elements: hosts });
        table.maps.insert(format!("sources{family}"), Map { key, value: key, elements: senders.single });
        table.maps.insert(format!("groups{family}"), Map { key, value: "verdict", elements: senders.grouped });
        for (name, group) in senders.chains {
            table.chains.insert(name, Chain { hook: None, rules: vec![spread(ip, &group)] });
        }

        ingress.push(format!("{} dnat {ip} to {ip} daddr map @hosts{family}", from_cable()));
        egress.push(format!("ct original {ip} daddr @cidrs{family} snat {ip} to {ip} saddr"));
        egress.push(format!("oifname @cables snat {ip} to {ip} saddr map @sources{family}"));
        egress.push(format!("oifname @cables {ip} saddr vmap @groups{family}"));
        let cluster: Vec<IpAddr> = addresses.cluster_egress.iter().filter(of_family).copied().collect();
        if !cluster.is_empty() {
            let except = if family == IpFamily::V4 { format!("ip daddr != {VTEPS} ") } else { String::new() };
            egress.push(format!("oifname @cables {except}{}", spread(ip, &cluster)));
        }
        // A flow is confirmed behind this, so what is dropped begins anew with its next packet.
        let except = if family == IpFamily::V4 { format!("ip saddr != {VTEPS} ") } else { String::new() };
        guard.push(format!("oifname @cables {ip} saddr != @cidrs{family} {except}counter name {UNTRANSLATED} drop"));
        input.push(format!("{ip} daddr @answering{family} {echo} accept"));
        input.push(format!("{ip} daddr @cidrs{family} goto refuse"));
    }
    let cables = [own::WIREGUARD_LINK, own::VXLAN_LINK].map(|link| format!("\"{link}\""));
    table.sets.insert("cables".to_owned(), Set { key: "ifname", interval: false, elements: cables.into() });
    let hooked = |kind, hook, priority, rules| Chain { hook: Some(Hook { kind, hook, priority }), rules };
    let errors: Vec<String> = addresses.cidrs.iter().filter_map(own_errors).collect();
    if !errors.is_empty() {
        table.chains.insert("errors".to_owned(), hooked("filter", "output", -5, errors));
    }
    table.chains.extend([
        ("ingress".to_owned(), hooked("nat", "prerouting", -111, ingress)),
        ("egress".to_owned(), hooked("nat", "postrouting", 80, egress)),
        ("guard".to_owned(), hooked("filter", "postrouting", 110, guard)),
        ("input".to_owned(), hooked("filter", "input", -5, input)),
        ("refuse".to_owned(), refuse()),
    ]);
    table
}

/// Answers at once, from the address that was asked.
fn refuse() -> Chain {
    let rules = [
        &format!("counter name {REFUSED}"),
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx type port-unreachable",
    ];
    Chain { hook: None, rules: rules.map(str::to_owned).into() }
}

/// Returns the rule that sends "port unreachable" from the address that was asked, if that is in `cidr`; of IPv6 only.
fn own_errors(cidr: &IpNet) -> Option<String> {
    let IpNet::V6(cidr) = cidr else { return None };
    // The error has the packet that it is about behind 8 bytes of its own, with its destination at byte 24 (RFC 4443
    // section 3.1, RFC 8200 section 3).
    let asked = "@th,256,128";
    let [mask, network] = [cidr.netmask(), cidr.network()].map(u128::from);
    Some(format!(
        "icmpv6 type destination-unreachable icmpv6 code port-unreachable {asked} & {mask:#034x} == {network:#034x} \
         ip6 saddr set {asked}"
    ))
}

/// Returns the rule that gives a source one of `addresses`, of which there is at least one.
fn spread(ip: &str, addresses: &[IpAddr]) -> String {
    match addresses {
        [address] => format!("snat {ip} to {address}"),
        addresses => {
            let slots: Vec<String> =
                addresses.iter().enumerate().map(|(slot, address)| format!("{slot} : {address}")).collect();
            // The seed is the same on every gateway.
            format!(
                "snat {ip} to jhash {ip} saddr . {ip} daddr mod {} seed 0x{SEED:x} map {{ {} }}",
                addresses.len(),
                slots.join(", ")
            )
        }
    }
}

const SEED: u32 = 0xc1;

/// Sources with addresses of their own, in nft syntax.
#[derive(Debug, Default, PartialEq, Eq)]
struct Senders {
    /// Global address by source.
    single: BTreeMap<String, String>,
    /// Verdict by source.
    grouped: BTreeMap<String, String>,
    /// Addresses by the chain that shares them out.
    chains: BTreeMap<String, Vec<IpAddr>>,
}

impl Senders {
    fn of(addresses: &GlobalAddresses, family: IpFamily) -> Self {
        let is_family = |address: &IpAddr| IpFamily::of(*address) == family;
        let mut by_source: BTreeMap<IpAddr, Vec<IpAddr>> = BTreeMap::new();
        let mut add = |source: &IpAddr, global: &[IpAddr]| {
            if is_family(source) && !global.is_empty() {
                // Who comes first comes before all others.
                by_source.entry(*source).or_insert_with(|| global.to_vec());
            }
        };
        let groups =
            |is_selective: bool| addresses.egress.values().filter(move |group| group.is_selective == is_selective);
        let own = |all: &BTreeSet<IpAddr>| all.iter().copied().filter(is_family).collect::<Vec<_>>();
        for group in groups(true) {
            let global = own(&group.addresses);
            group.sources.iter().for_each(|source| add(source, &global));
        }
        for (global, host) in &addresses.ingress_hosts {
            if is_family(global) && addresses.leaving.contains(global) {
                add(host, &[*global]);
            }
        }
        for group in groups(false) {
            let global = own(&group.addresses);
            group.sources.iter().for_each(|source| add(source, &global));
        }

        let mut senders = Self::default();
        let mut names: BTreeMap<Vec<IpAddr>, String> = BTreeMap::new();
        for (source, global) in by_source {
            match &global[..] {
                [address] => {
                    senders.single.insert(source.to_string(), address.to_string());
                }
                _ => {
                    let next = names.len();
                    let name = names.entry(global.clone()).or_insert_with(|| format!("group{family}_{next}"));
                    senders.grouped.insert(source.to_string(), format!("goto {name}"));
                    senders.chains.insert(name.clone(), global);
                }
            }
        }
        senders
    }
}

/// How nft names things of a family.
struct Words {
    ip: &'static str,
    key: &'static str,
    echo: &'static str,
}

fn words(family: IpFamily) -> Words {
    match family {
        IpFamily::V4 => Words { ip: "ip", key: "ipv4_addr", echo: "icmp type echo-request" },
        IpFamily::V6 => Words { ip: "ip6", key: "ipv6_addr", echo: "icmpv6 type echo-request" },
    }
}

#[cfg(test)]
#[path = "nat_tests.rs"]
mod tests;
