//! The kernel state of workers, gateway nodes and nodes without a gateway, as text.

use culvert_model::Addresses;
use culvert_netstate::{Step, diff};

use super::*;
use crate::testing::{cluster, endpoint, inputs, net};

/// Routes as `ip route` would show them, one a line.
fn shown(state: &State) -> String {
    let line = |(key, target): (&RouteKey, &RouteTarget)| {
        let RouteKey { table, destination, metric } = key;
        let target = match target {
            RouteTarget::Local => "local".to_owned(),
            RouteTarget::Unreachable => "unreachable".to_owned(),
            RouteTarget::Via(Route { link, next_hop, preferred_source, mtu }) => {
                let next_hop = next_hop.expect("a next hop");
                let source = preferred_source.map_or("none".to_owned(), |source| source.to_string());
                assert_eq!(*mtu, None);
                format!("via {next_hop} dev {link} src {source}")
            }
        };
        format!("{destination} {target} table {} metric {metric}", table.0)
    };
    state.routes.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn overlay_routes_of(state: &State) -> usize {
    state.routes.keys().filter(|key| key.metric == ROUTE_METRIC).count()
}

#[test]
fn a_worker_routes_over_the_overlay_and_guards_every_subnet() {
    let (state, refused) = desired(&inputs());

    assert_eq!(refused, []);
    insta::assert_snapshot!(shown(&state), @r"
    10.2.0.0/16 via 192.168.1.10 dev culvert-ov src 10.1.2.1 table 7202 metric 100
    10.2.0.0/16 unreachable table 7202 metric 4278198272
    100.2.0.0/16 via 192.168.1.10 dev culvert-ov src 10.1.2.1 table 7202 metric 100
    100.2.0.0/16 unreachable table 7202 metric 4278198272
    ");
    let gateway: IpAddr = "192.168.1.10".parse().unwrap();
    let link = OVERLAY_LINK.to_owned();
    assert_eq!(
        state.neighbours,
        BTreeMap::from([(Neighbour { link: link.clone(), address: gateway }, vtep_mac(gateway))])
    );
    assert_eq!(state.fdb.into_iter().collect::<Vec<_>>(), [Fdb { link, mac: vtep_mac(gateway), remote: gateway }]);
}

#[test]
fn own_global_addresses_lead_nowhere_on_any_node_and_are_nobody_elses() {
    let mut inputs = Inputs { global: vec![net("242.1.0.0/16")], ..inputs() };
    inputs.endpoints[1].subnets = vec![net("242.1.7.0/24"), net("242.2.0.0/16")];
    inputs.clusters.clear();
    let (state, refused) = desired(&inputs);

    assert_eq!(refused.len(), 1, "{refused:?}");
    insta::assert_snapshot!(shown(&state), @r"
    242.1.0.0/16 unreachable table 7202 metric 4278198272
    242.2.0.0/16 via 192.168.1.10 dev culvert-ov src 192.168.1.20 table 7202 metric 100
    242.2.0.0/16 unreachable table 7202 metric 4278198272
    ");
    // Without any other cluster too.
    inputs.endpoints.truncate(1);
    let (state, _) = desired(&inputs);
    assert_eq!((state.rules.len(), state.routes.len()), (1, 1));
}

#[test]
fn every_node_has_the_overlay_link_and_the_rule() {
    for hostname in ["gateway", "worker"] {
        let mut inputs = inputs();
        inputs.endpoints[0].hostname = hostname.to_owned();
        inputs.interfaces.get_mut("eth0").unwrap().mtu = 1400;

        let (state, _) = desired(&inputs);

        let local = "192.168.1.20".parse().unwrap();
        let kind = LinkKind::Vxlan { vni: 100, port: 4800, local };
        assert_eq!(state.links[OVERLAY_LINK], Link { kind, mtu: 1350, mac: vtep_mac(local) });
        assert!(state.rules.contains(&node_rule(IpFamily::V4)));
        let dummy = (OVERLAY_LINK.to_owned(), net("192.0.0.8/32"));
        assert!(state.addresses.contains(&dummy), "else the reverse path filter drops what comes in");
    }
}

#[test]
fn a_gateway_node_has_no_overlay_routes() {
    let mut inputs = inputs();
    inputs.endpoints[0] = endpoint("east", "worker", "192.168.1.20", &["10.1.0.0/16"]);

    let (state, refused) = desired(&inputs);

    assert_eq!(refused, []);
    insta::assert_snapshot!(shown(&state), @r"
    10.2.0.0/16 unreachable table 7202 metric 4278198272
    100.2.0.0/16 unreachable table 7202 metric 4278198272
    192.168.1.21/32 via 192.168.1.21 dev culvert-ov src none table 7203 metric 100
    ");
}

#[test]
fn a_gateway_node_leads_what_comes_by_a_cable_to_nodes_over_the_overlay() {
    let mut inputs = inputs();
    inputs.endpoints[0] = endpoint("east", "worker", "192.168.1.20", &["10.1.0.0/16"]);
    inputs.node_addresses.insert("fd00::21".parse().unwrap());

    let (state, _) = desired(&inputs);

    let node: IpAddr = "192.168.1.21".parse().unwrap();
    let link = OVERLAY_LINK.to_owned();
    assert_eq!(state.neighbours, BTreeMap::from([(Neighbour { link: link.clone(), address: node }, vtep_mac(node))]));
    assert_eq!(state.fdb.into_iter().collect::<Vec<_>>(), [Fdb { link, mac: vtep_mac(node), remote: node }]);
    let rules: Vec<String> = state.rules.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(rules.join("\n"), @r"
    IPv4 rule 142 to table 7202
    IPv4 rule 143 to table 7203 for what comes from culvert-vx
    IPv4 rule 143 to table 7203 for what comes from culvert-wg
    ");
}

#[test]
fn a_gateway_with_a_long_host_name_is_known_by_its_address() {
    let mut inputs = inputs();
    inputs.endpoints[0] = endpoint("east", "worker.example.org", "192.168.1.20", &["10.1.0.0/16"]);

    assert!(matches!(inputs.role(), Role::Gateway(_)));
}

#[test]
fn without_a_gateway_every_subnet_is_unreachable() {
    let mut inputs = inputs();
    inputs.endpoints.remove(0);

    let (state, refused) = desired(&inputs);

    assert_eq!(refused, []);
    assert_eq!(overlay_routes_of(&state), 0);
    assert_eq!(state.routes.len(), 2);
    assert!(state.links.contains_key(OVERLAY_LINK));
}

#[test]
fn a_cluster_that_left_stays_unreachable() {
    let mut inputs = inputs();
    inputs.endpoints.pop();
    inputs.clusters.push(cluster("gone", &["10.7.0.0/16"]));

    let (state, _) = desired(&inputs);

    assert_eq!(overlay_routes_of(&state), 0);
    for subnet in ["10.7.0.0/16", "10.2.0.0/16", "100.2.0.0/16"] {
        let key = RouteKey { table: NODE_TABLE, destination: net(subnet), metric: UNREACHABLE_METRIC };
        assert_eq!(state.routes[&key], RouteTarget::Unreachable);
    }
}

#[test]
fn the_newest_gateway_of_the_cluster_is_followed_and_replaces_next_hops_in_place() {
    let mut inputs = inputs();
    let (before, _) = desired(&inputs);
    let mut newer = endpoint("east", "standby", "192.168.1.11", &["10.1.0.0/16"]);
    newer.created = 101;
    inputs.endpoints.push(newer);

    let (after, _) = desired(&inputs);

    let steps = diff(&before, &after).steps;
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::ReplaceRoute { .. })).count(), 2, "{steps:?}");
    let gap = |step: &&Step| {
        matches!(step, Step::DeleteRoute(_) | Step::AddRoute { .. } | Step::DeleteLink { .. } | Step::DeleteRule(_))
    };
    assert_eq!(steps.iter().find(gap), None);
    assert!(shown(&after).contains("via 192.168.1.11") && !shown(&after).contains("via 192.168.1.10"));
}

#[test]
fn a_refused_subnet_has_no_route_of_either_kind() {
    let mut inputs = inputs();
    inputs.endpoints.push(endpoint("north", "g9", "192.168.9.2", &["192.168.1.0/24", "0.0.0.0/0", "10.9.0.0/16"]));

    let (state, refused) = desired(&inputs);

    assert_eq!(refused.len(), 2, "{refused:?}");
    let destinations: Vec<IpNet> = state.routes.keys().map(|key| key.destination).collect();
    assert!(destinations.contains(&net("10.9.0.0/16")));
    assert!(!destinations.contains(&net("192.168.1.0/24")) && !destinations.contains(&net("0.0.0.0/0")));
}

#[test]
fn with_globalnet_the_source_is_the_nodes_own_address() {
    let mut inputs = inputs();
    inputs.global = vec![net("242.1.0.0/16")];

    let (state, _) = desired(&inputs);

    assert!(shown(&state).contains("10.2.0.0/16 via 192.168.1.10 dev culvert-ov src 192.168.1.20 table 7202"));
}

#[test]
fn the_source_is_the_cni_address_or_none() {
    let mut inputs = inputs();
    inputs.pods = vec![net("10.8.0.0/16"), net("10.1.0.0/16")];
    let second = crate::Interface { mtu: 1500, addresses: vec![net("10.8.0.1/24")] };
    inputs.interfaces.insert("zcni".to_owned(), second);
    assert!(shown(&desired(&inputs).0).contains("src 10.8.0.1"), "pod CIDRs in order, not links");

    inputs.interfaces.remove("zcni");
    inputs.interfaces.remove("cni0");
    assert!(shown(&desired(&inputs).0).contains("src none"));
}

#[test]
fn ipv6_subnets_go_to_the_gateways_link_local_address_over_the_same_overlay() {
    let mut inputs = inputs();
    inputs.pods.push(net("fd01::/48"));
    inputs.interfaces.get_mut("cni0").unwrap().addresses.push(net("fd01:0:0:2::1/64"));
    inputs.endpoints[1].subnets.push(net("fd02::/48"));

    let (state, refused) = desired(&inputs);

    assert_eq!(refused, []);
    assert_eq!(state.rules.len(), 2);
    let next_hop = link_local(vtep_mac("192.168.1.10".parse().unwrap()));
    let route = format!("fd02::/48 via {next_hop} dev culvert-ov src fd01:0:0:2::1");
    assert!(shown(&state).contains(&route), "{}", shown(&state));
    let neighbour = Neighbour { link: OVERLAY_LINK.to_owned(), address: next_hop.into() };
    assert_eq!(state.neighbours[&neighbour], vtep_mac("192.168.1.10".parse().unwrap()), "one device, one MAC");
    assert_eq!(state.sysctls["net/ipv6/conf/all/forwarding"], "1");
}

#[test]
fn a_node_that_cannot_make_the_overlay_fails_closed_and_says_so() {
    let address: IpAddr = "192.168.1.77".parse().unwrap();
    for (addresses, refusal) in
        [(Addresses::default(), Refused::NoNodeAddress), (address.into(), Refused::NoLink { address })]
    {
        let mut inputs = inputs();
        inputs.address = addresses;

        let (state, refused) = desired(&inputs);

        assert_eq!(refused, [refusal]);
        assert!(state.links.is_empty() && state.fdb.is_empty());
        assert_eq!((overlay_routes_of(&state), state.routes.len()), (0, 2));
    }
}

#[test]
fn a_gateway_of_another_family_is_not_reached() {
    let mut inputs = inputs();
    inputs.endpoints[0].private = "fd00::10".parse::<IpAddr>().unwrap().into();

    let (state, refused) = desired(&inputs);

    assert!(matches!(&refused[..], [Refused::NoOuterAddress { family: IpFamily::V4, .. }]), "{refused:?}");
    assert_eq!(overlay_routes_of(&state), 0);
}

#[test]
fn a_gateway_node_whose_daemons_disagree_on_its_address_says_so() {
    let mut inputs = inputs();
    inputs.endpoints[0] = endpoint("east", "worker", "172.20.0.20", &["10.1.0.0/16"]);

    let (_, refused) = desired(&inputs);

    assert!(matches!(&refused[..], [Refused::AddressesDiffer { .. }]), "{refused:?}");
}

#[test]
fn sysctls_loosen_the_reverse_path_filter_and_switch_forwarding_on() {
    let (state, _) = desired(&inputs());

    let lines: Vec<String> = state.sysctls.iter().map(|(path, value)| format!("{path} {value}")).collect();

    insta::assert_snapshot!(lines.join("\n"), @r"
    net/ipv4/conf/cni0/forwarding 1
    net/ipv4/conf/cni0/rp_filter 2
    net/ipv4/conf/culvert-ov/forwarding 1
    net/ipv4/conf/culvert-ov/rp_filter 2
    net/ipv4/conf/eth0/rp_filter 2
    net/ipv4/ip_forward 1
    ");
}

#[test]
fn only_a_gateway_node_takes_connections_back_whose_window_it_does_not_know() {
    let mut inputs = inputs();
    let (worker, _) = desired(&inputs);
    assert_eq!(worker.sysctls.get(LIBERAL_WINDOWS), None);
    inputs.endpoints[0] = endpoint("east", "worker", "192.168.1.20", &["10.1.0.0/16"]);

    let (gateway, _) = desired(&inputs);

    assert_eq!(gateway.sysctls[LIBERAL_WINDOWS], "1");
    let steps = diff(&State::default(), &gateway).steps;
    let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    let tracked = at(|step| matches!(step, Step::PutTable { .. }));
    let set = at(|step| matches!(step, Step::SetSysctl { path, .. } if path == LIBERAL_WINDOWS));
    assert!(tracked < set, "the sysctl is there only once connections are tracked");
}

#[test]
fn the_nft_table_keeps_sources_clamps_and_guards() {
    let (state, _) = desired(&inputs());

    insta::assert_snapshot!(state.nft[NFT_TABLE], @r"
    counter dropped_overlay { }
    set local4 {
      type ipv4_addr;
      flags interval; auto-merge;
      elements = { 10.1.0.0/16, 100.1.0.0/16 }
    }
    set local6 {
      type ipv6_addr;
      flags interval; auto-merge;
    }
    set nodes4 {
      type ipv4_addr;
      elements = { 192.168.1.10, 192.168.1.20, 192.168.1.21 }
    }
    set nodes6 {
      type ipv6_addr;
    }
    set remote4 {
      type ipv4_addr;
      flags interval; auto-merge;
      elements = { 10.2.0.0/16, 100.2.0.0/16 }
    }
    set remote6 {
      type ipv6_addr;
      flags interval; auto-merge;
    }
    chain clamp_mss {
      type filter hook forward priority -150; policy accept;
      meta l4proto != tcp accept
      tcp flags & (syn | rst) != syn accept
      ip saddr @local4 ip daddr @remote4 tcp option maxseg size set rt mtu
      ip saddr @remote4 ip daddr @local4 tcp option maxseg size set rt mtu
      ip6 saddr @local6 ip6 daddr @remote6 tcp option maxseg size set rt mtu
      ip6 saddr @remote6 ip6 daddr @local6 tcp option maxseg size set rt mtu
    }
    chain keep_source {
      type nat hook postrouting priority 90; policy accept;
      ip saddr @local4 ip daddr @remote4 snat ip to ip saddr
      ip saddr @remote4 ip daddr @local4 snat ip to ip saddr
      ip6 saddr @local6 ip6 daddr @remote6 snat ip6 to ip6 saddr
      ip6 saddr @remote6 ip6 daddr @local6 snat ip6 to ip6 saddr
      ip saddr @remote4 ct original ip daddr @local4 snat ip to ip saddr
      ip6 saddr @remote6 ct original ip6 daddr @local6 snat ip6 to ip6 saddr
    }
    chain overlay_guard {
      type filter hook input priority -10; policy accept;
      udp dport 4800 ip saddr != @nodes4 counter name dropped_overlay drop
      udp dport 4800 ip6 saddr != @nodes6 counter name dropped_overlay drop
    }
    ");
}
