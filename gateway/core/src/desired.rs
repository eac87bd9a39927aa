//! Decides what the gateway wants in the kernel of its node: routes and rules of all cables, and the VXLAN device.
//!
//! A gateway that stands by wants nothing: what it had is removed by the diff against the empty state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_model::{Addresses, CableKind, CableName, IpFamily, MIN_MTU, MacAddr, cable_mtu, vtep_mac};
use culvert_netstate::{Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State, own};
use ipnet::{IpNet, Ipv4Net};

use crate::cables::{Choices, ChosenCable, vtep_address};
use crate::election::Role;
use crate::firewall;

/// Prefix length of the VXLAN link's address (Submariner chapter 4.9).
const VTEP_PREFIX: u8 = 8;

/// What the state rests on.
#[derive(Clone, Copy, Debug)]
pub struct DesiredInputs<'a> {
    pub role: Role,
    pub choices: &'a Choices,
    /// Subnets of this cluster, to which peers may send.
    pub local_subnets: &'a [IpNet],
    /// This gateway's addresses in its own network.
    pub private: Addresses,
    /// What the host itself sends through cables comes from these.
    pub sources: Addresses,
    /// `None` where VXLAN is neither allowed for a cluster nor the cable driver.
    pub vxlan: Option<VxlanSettings>,
    /// What is known of the paths to the peers.
    pub paths: &'a BTreeMap<CableName, Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanSettings {
    pub port: u16,
    /// MTU of the link that holds the private address, in bytes.
    pub link_mtu: u16,
}

/// The way to a peer, outside of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The largest outer packet that it takes, in bytes.
    pub mtu: u16,
    pub family: IpFamily,
}

/// Returns all that the gateway wants in the kernel.
pub fn desired(inputs: &DesiredInputs<'_>) -> State {
    let mut state = State::default();
    match inputs.role {
        Role::Standby => return state,
        Role::Active => {}
    }
    state.rules = rules().collect();
    for (name, choice) in &inputs.choices.0 {
        match &choice.cable {
            ChosenCable::WireGuard(cable) => {
                let mtu = route_mtu(CableKind::WireGuard, inputs.paths.get(name));
                for &subnet in &cable.subnets {
                    add_route(&mut state, inputs, subnet, own::WIREGUARD_LINK, None, mtu);
                }
            }
            ChosenCable::Vxlan(cable) => {
                let next_hop = IpAddr::V4(vtep_address(cable.private));
                let mtu = route_mtu(CableKind::Vxlan, inputs.paths.get(name));
                for &subnet in &cable.subnets {
                    add_route(&mut state, inputs, subnet, own::VXLAN_LINK, Some(next_hop), mtu);
                }
                let link = own::VXLAN_LINK.to_owned();
                let remote = IpAddr::V4(cable.remote);
                if cable.culvert {
                    // The MAC is known on both sides: no ARP, and no frame for this peer goes to any other.
                    let mac = vtep_mac(IpAddr::V4(cable.private));
                    state.neighbours.insert(Neighbour { link: link.clone(), address: next_hop }, mac);
                    state.fdb.insert(Fdb { link, mac, remote });
                } else {
                    state.fdb.insert(Fdb { link, mac: MacAddr::ZERO, remote });
                }
            }
            ChosenCable::Refused(_) => {}
        }
    }
    add_vxlan(&mut state, inputs);
    add_sysctls(&mut state);
    state
}

/// Marked outer packets follow the main table, whatever subnets peers announce; all others look for a cable first.
fn rules() -> impl Iterator<Item = Rule> {
    IpFamily::ALL.into_iter().flat_map(|family| {
        [
            Rule {
                priority: own::OUTER_RULE,
                family,
                selector: RuleSelector::Mark(own::OUTER_MARK),
                table: own::MAIN_TABLE,
            },
            Rule { priority: own::CABLE_RULE, family, selector: RuleSelector::All, table: own::CABLE_TABLE },
        ]
    })
}

fn add_route(
    state: &mut State,
    inputs: &DesiredInputs<'_>,
    destination: IpNet,
    link: &str,
    next_hop: Option<IpAddr>,
    mtu: Option<u16>,
) {
    let key = RouteKey { table: own::CABLE_TABLE, destination, metric: own::ROUTE_METRIC };
    let preferred_source = inputs.sources.of(IpFamily::of_net(&destination));
    let route = Route { link: link.to_owned(), next_hop, preferred_source, mtu };
    state.routes.insert(key, RouteTarget::Via(route));
}

fn route_mtu(kind: CableKind, path: Option<&Path>) -> Option<u16> {
    path.map(|path| cable_mtu(kind, path.mtu, path.family))
}

/// Adds the VXLAN device if a cable needs it, and its guard as soon as VXLAN is possible at all.
fn add_vxlan(state: &mut State, inputs: &DesiredInputs<'_>) {
    let (Some(settings), Some(private)) = (inputs.vxlan, inputs.private.v4) else { return };
    let vtep = vtep_address(private);
    let local = inputs.local_subnets.iter().copied();
    let destinations = local
        .filter_map(|net| match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        })
        .chain([Ipv4Net::from(vtep)]);
    let table = firewall::table(settings.port, inputs.choices, destinations);
    state.nft.insert(firewall::TABLE.to_owned(), table);

    if inputs.choices.vxlan().next().is_none() {
        return;
    }
    let local = IpAddr::V4(private);
    let link = Link {
        kind: LinkKind::Vxlan { vni: own::CABLE_VNI, port: settings.port, local },
        mtu: cable_mtu(CableKind::Vxlan, settings.link_mtu.max(MIN_MTU), IpFamily::V4),
        mac: vtep_mac(local),
    };
    state.links.insert(own::VXLAN_LINK.to_owned(), link);
    let address = Ipv4Net::new(vtep, VTEP_PREFIX).expect("8 is a prefix length of IPv4");
    state.addresses.insert((own::VXLAN_LINK.to_owned(), IpNet::V4(address)));
}

/// Lets packets pass between the cables and the node's other links; paths are asymmetric, hence the loose filter.
fn add_sysctls(state: &mut State) {
    let links: Vec<String> = state
        .routes
        .values()
        .filter_map(|target| match target {
            RouteTarget::Via(route) => Some(route.link.clone()),
            RouteTarget::Local | RouteTarget::Unreachable => None,
        })
        .collect();
    if links.is_empty() {
        return;
    }
    state.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
    for link in links {
        // The data plane has checked a WireGuard packet's source already, so the kernel need not look it up once more.
        let rp_filter = if link == own::WIREGUARD_LINK { "0" } else { "2" };
        state.sysctls.insert(format!("net/ipv4/conf/{link}/rp_filter"), rp_filter.to_owned());
        state.sysctls.insert(format!("net/ipv4/conf/{link}/forwarding"), "1".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use culvert_model::{PublicKey, WireGuardCable};

    use super::*;
    use crate::cables::{Choice, Refusal, VxlanCable};
    use crate::testing::{address, cluster, endpoint, net};

    fn choice(id: &str, number: u8, cable: ChosenCable) -> (CableName, Choice) {
        let endpoint = endpoint(id, number);
        (endpoint.cable_name.clone(), Choice { endpoint, cable, refused_subnets: Vec::new() })
    }

    fn west() -> (CableName, Choice) {
        let subnets = vec![net("10.2.0.0/16"), net("fd00:2::/48")];
        let cable = WireGuardCable { public_key: PublicKey([2; 32]), candidates: Vec::new(), subnets };
        choice("west", 2, ChosenCable::WireGuard(cable))
    }

    fn vxlan(id: &str, number: u8, culvert: bool) -> (CableName, Choice) {
        let cable = VxlanCable {
            remote: Ipv4Addr::new(198, 51, 100, number),
            private: Ipv4Addr::new(192, 168, number, 10),
            subnets: vec![net(&format!("10.{number}.0.0/16"))],
            culvert,
        };
        choice(id, number, ChosenCable::Vxlan(cable))
    }

    fn state(role: Role, choices: impl IntoIterator<Item = (CableName, Choice)>, vxlan: bool) -> State {
        let paths = BTreeMap::from([(west().0, Path { mtu: 1400, family: IpFamily::V4 })]);
        desired(&DesiredInputs {
            role,
            choices: &Choices(choices.into_iter().collect()),
            local_subnets: &[net("100.1.0.0/16"), net("10.1.0.0/16")],
            private: address("192.168.1.10").into(),
            sources: address("10.1.0.1").into(),
            vxlan: vxlan.then_some(VxlanSettings { port: 4500, link_mtu: 1500 }),
            paths: &paths,
        })
    }

    fn route(state: &State, destination: &str) -> Route {
        let key = RouteKey { table: own::CABLE_TABLE, destination: net(destination), metric: own::ROUTE_METRIC };
        let RouteTarget::Via(route) = &state.routes[&key] else { panic!("{destination} is unreachable") };
        route.clone()
    }

    #[test]
    fn a_standby_wants_nothing() {
        assert_eq!(state(Role::Standby, [west(), vxlan("north", 3, true)], true), State::default());
    }

    #[test]
    fn without_a_cable_there_are_only_rules() {
        let refused = choice("west", 2, ChosenCable::Refused(Refusal::NoSubnets { cluster: cluster("west") }));
        let state = state(Role::Active, [refused], false);
        assert_eq!(state.rules.len(), 4);
        assert_eq!(State { rules: state.rules.clone(), ..State::default() }, state);
    }

    #[test]
    fn wireguard_subnets_are_routed_with_the_mtu_of_the_path() {
        let state = state(Role::Active, [west()], false);

        let expected = Route {
            link: "culvert-wg".to_owned(),
            next_hop: None,
            preferred_source: Some(address("10.1.0.1")),
            mtu: Some(1340),
        };
        assert_eq!(route(&state, "10.2.0.0/16"), expected);
        assert_eq!(route(&state, "fd00:2::/48").preferred_source, None);
        assert_eq!(state.sysctls["net/ipv4/conf/culvert-wg/rp_filter"], "0");
        assert!(state.links.is_empty() && state.nft.is_empty());
    }

    #[test]
    fn the_vxlan_device_follows_from_the_private_address() {
        let state = state(Role::Active, [vxlan("north", 3, true)], true);

        let link = &state.links["culvert-vx"];
        assert_eq!(link.kind, LinkKind::Vxlan { vni: 1000, port: 4500, local: address("192.168.1.10") });
        assert_eq!((link.mtu, link.mac), (1450, vtep_mac(address("192.168.1.10"))));
        assert!(state.addresses.contains(&("culvert-vx".to_owned(), net("241.168.1.10/8"))));
        assert_eq!(route(&state, "10.3.0.0/16").next_hop, Some(address("241.168.3.10")));
        assert_eq!(state.sysctls["net/ipv4/conf/culvert-vx/forwarding"], "1");
    }

    #[test]
    fn the_mac_of_a_culvert_peer_is_known_and_a_submariner_peer_is_asked() {
        let state = state(Role::Active, [vxlan("north", 3, true), vxlan("south", 4, false)], true);

        let link = || "culvert-vx".to_owned();
        let north_mac = vtep_mac(address("192.168.3.10"));
        let north = Fdb { link: link(), mac: north_mac, remote: address("198.51.100.3") };
        let south = Fdb { link: link(), mac: MacAddr::ZERO, remote: address("198.51.100.4") };
        assert_eq!(state.fdb, [north, south].into());
        let neighbour = Neighbour { link: link(), address: address("241.168.3.10") };
        assert_eq!(state.neighbours, [(neighbour, north_mac)].into());
    }

    #[test]
    fn vxlan_is_guarded_by_outer_source_inner_source_and_inner_destination() {
        let state = state(Role::Active, [vxlan("north", 3, true)], true);

        let table = &state.nft[firewall::TABLE];
        assert_eq!(
            table.chains["outer"].rules,
            [
                "udp dport 4500 ip saddr vmap { 198.51.100.3 : goto from_198_51_100_3 }",
                "udp dport 4500 counter name dropped_unknown_peer drop",
            ]
        );
        assert_eq!(
            table.chains["from_198_51_100_3"].rules,
            [
                "@th,224,16 0x0800 @th,336,32 0xf1a8030a accept",
                "@th,224,16 0x0800 @th,336,32 & 0xffff0000 == 0x0a030000 accept",
                "@th,224,16 0x0806 @th,352,32 0xf1a8030a accept",
                "@th,224,16 0x0806 @th,352,32 & 0xffff0000 == 0x0a030000 accept",
                "counter name dropped_source drop",
            ]
        );
        assert_eq!(
            table.chains["inner"].rules,
            [
                "iifname != \"culvert-vx\" accept",
                "ip daddr @own_destinations accept",
                "counter name dropped_destination drop",
            ]
        );
        let destinations = ["10.1.0.0/16", "100.1.0.0/16", "241.168.1.10/32"].map(str::to_owned);
        assert_eq!(table.sets["own_destinations"].elements, destinations.into());
    }

    #[test]
    fn an_allowed_vxlan_port_without_a_peer_is_closed() {
        let state = state(Role::Active, [west()], true);
        let expected = ["udp dport 4500 counter name dropped_unknown_peer drop"];
        assert_eq!(state.nft[firewall::TABLE].chains["outer"].rules, expected);
        assert!(state.links.is_empty());
    }
}
