//! The real kernel is brought from any state to any other, and what is not ours stays as it is.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use culvert_kernel::{Interface, Kernel, node_facts};
use culvert_model::{IpFamily, MacAddr};
use culvert_netstate::own::{self, NODE_TABLE, OVERLAY_LINK, Owner, ROUTE_METRIC, UNREACHABLE_METRIC};
use culvert_netstate::{
    Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State, TableId, nft,
};
use support::{in_namespace, make_node, run};

const TABLE: &str = "culvert_route_agent";

async fn kernel() -> Kernel {
    Kernel::open(Owner::route_agent()).await.unwrap()
}

/// Brings `desired` about and checks that every step succeeded; returns how many there were.
async fn converge(kernel: &mut Kernel, desired: &State) -> usize {
    let report = kernel.converge(desired).await.unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    report.applied
}

fn route_key(table: TableId, destination: &str, metric: u32) -> RouteKey {
    RouteKey { table, destination: destination.parse().unwrap(), metric }
}

fn overlay_route(next_hop: &str) -> Route {
    Route {
        link: OVERLAY_LINK.to_owned(),
        next_hop: Some(next_hop.parse().unwrap()),
        preferred_source: None,
        mtu: None,
    }
}

fn nft_table(peers: &[&str]) -> nft::Table {
    let set =
        nft::Set { key: "ipv4_addr", interval: true, elements: peers.iter().map(|&peer| peer.to_owned()).collect() };
    // Both what it is updated to and what it is updated from name a chain.
    let map = nft::Map {
        key: "ipv4_addr",
        value: "verdict",
        elements: BTreeMap::from([("10.0.0.1".to_owned(), "goto sender".to_owned())]),
    };
    let hook = |kind, hook, priority| Some(nft::Hook { kind, hook, priority });
    nft::Table {
        counters: BTreeSet::from(["refused".to_owned()]),
        sets: BTreeMap::from([("peers".to_owned(), set)]),
        maps: BTreeMap::from([("senders".to_owned(), map)]),
        chains: BTreeMap::from([
            (
                "input".to_owned(),
                nft::Chain {
                    hook: hook("filter", "input", -5),
                    rules: vec![
                        "udp dport 4800 ip saddr != @peers counter name refused drop".to_owned(),
                        "ip saddr vmap @senders".to_owned(),
                    ],
                },
            ),
            ("sender".to_owned(), nft::Chain { hook: None, rules: vec!["accept".to_owned()] }),
            (
                "keep_source".to_owned(),
                nft::Chain {
                    hook: hook("nat", "postrouting", 90),
                    rules: vec!["ip daddr 10.2.0.0/16 snat ip to ip saddr".to_owned()],
                },
            ),
        ]),
    }
}

/// Something of every kind, in both address families.
fn rich() -> State {
    let mut state = State::default();
    let link = OVERLAY_LINK.to_owned();
    state.links.insert(
        link.clone(),
        Link {
            kind: LinkKind::Vxlan { vni: own::OVERLAY_VNI, port: 4800, local: "192.168.7.1".parse().unwrap() },
            mtu: 1450,
            mac: MacAddr([2, 0xc1, 192, 168, 7, 1]),
        },
    );
    state.addresses.insert((link.clone(), "240.0.0.1/8".parse().unwrap()));
    state.addresses.insert((link.clone(), "fd00:240::1/128".parse().unwrap()));
    for (address, last) in [("192.168.7.2", 2), ("fe80::2", 2), ("192.168.7.3", 3)] {
        let mac = MacAddr([2, 0xc1, 192, 168, 7, last]);
        state.neighbours.insert(Neighbour { link: link.clone(), address: address.parse().unwrap() }, mac);
        state.fdb.insert(Fdb { link: link.clone(), mac, remote: format!("192.168.7.{last}").parse().unwrap() });
    }
    for remote in ["192.168.7.2", "192.168.7.3"] {
        state.fdb.insert(Fdb { link: link.clone(), mac: MacAddr::ZERO, remote: remote.parse().unwrap() });
    }
    let mut with_mtu = overlay_route("192.168.7.2");
    with_mtu.mtu = Some(1390);
    with_mtu.preferred_source = Some("192.168.7.1".parse().unwrap());
    let direct = Route { next_hop: None, ..overlay_route("192.168.7.2") };
    for (destination, route) in [
        ("10.2.0.0/16", with_mtu),
        ("10.3.0.0/16", overlay_route("192.168.7.3")),
        ("10.4.0.0/16", direct.clone()),
        ("fd00:2::/48", Route { mtu: Some(1380), ..overlay_route("fe80::2") }),
        ("fd00:3::/48", direct),
    ] {
        state.routes.insert(route_key(NODE_TABLE, destination, ROUTE_METRIC), RouteTarget::Via(route));
        state.routes.insert(route_key(NODE_TABLE, destination, UNREACHABLE_METRIC), RouteTarget::Unreachable);
    }
    for destination in ["242.1.0.0/16", "fd00:242::/48"] {
        state.routes.insert(route_key(NODE_TABLE, destination, ROUTE_METRIC), RouteTarget::Local);
    }
    for family in IpFamily::ALL {
        let rule = |priority, selector, table| Rule { priority, family, selector, table };
        state.rules.insert(rule(own::NODE_RULE, RuleSelector::All, NODE_TABLE));
        state.rules.insert(rule(own::OUTER_RULE, RuleSelector::Mark(own::OUTER_MARK), own::MAIN_TABLE));
        state.rules.insert(rule(own::NODE_RULE, RuleSelector::From("not-there".to_owned()), NODE_TABLE));
    }
    state.sysctls.insert(format!("net/ipv4/conf/{OVERLAY_LINK}/rp_filter"), "2".to_owned());
    state.nft.insert(TABLE.to_owned(), nft_table(&["192.168.7.2", "192.168.8.0/24"]));
    state
}

/// Makes what others might have, near ours in every respect but the owner.
fn make_foreign() {
    for line in [
        "ip route add 10.2.0.0/16 dev eth0 table 7202 metric 7 proto 77",
        "ip route add unreachable 10.5.0.0/16 table 7202 metric 4278198272 proto 201",
        "ip route add 10.9.0.0/16 via 192.168.7.9 proto bird",
        "ip -6 route add fd00:9::/48 via fd00:7::9 proto bird",
        "ip rule add priority 142 from 10.77.0.0/16 table 7202 protocol 77",
        "ip rule add priority 140 fwmark 0x1 table 254",
        "ip neighbour add 192.168.7.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
        "nft add table inet kube",
        "nft add chain inet kube post { type nat hook postrouting priority 100 ; }",
    ] {
        run(line);
    }
}

/// All that is in the namespace, in the words of iproute2 and nft. What the kernel counts or times is left out.
fn everything() -> String {
    [
        "ip -d -oneline link show",
        "ip -oneline address show",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule show",
        "ip -6 rule show",
        "ip neighbour show nud permanent",
        "nft -s list ruleset",
    ]
    .map(run)
    .concat()
}

#[test]
fn a_rich_state_is_reached_once_and_left_without_a_trace() {
    in_namespace(|| async {
        make_node();
        make_foreign();
        let before = everything();
        let mut kernel = kernel().await;

        let first = converge(&mut kernel, &rich()).await;
        let second = converge(&mut kernel, &rich()).await;

        assert!(first > 20, "{first} steps");
        assert_eq!(second, 0);
        assert_eq!(kernel.observe(&rich()).await.unwrap(), rich());
        assert_ne!(everything(), before);
        converge(&mut kernel, &State::default()).await;
        assert_eq!(everything(), before);
    });
}

#[test]
fn iproute2_sees_what_was_desired() {
    in_namespace(|| async {
        make_node();

        converge(&mut kernel().await, &rich()).await;

        let link = run(&format!("ip -d link show {OVERLAY_LINK}"));
        for words in
            ["mtu 1450", "02:c1:c0:a8:07:01", "id 100", "local 192.168.7.1", "dstport 4800", "nolearning", "UP"]
        {
            assert!(link.contains(words), "{words} is not in {link}");
        }
        let routes = run("ip route show table 7202");
        let expected = format!(
            "10.2.0.0/16 via 192.168.7.2 dev {OVERLAY_LINK} proto 202 src 192.168.7.1 metric 100 onlink mtu 1390"
        );
        assert!(routes.replace("  ", " ").contains(&expected), "{expected} is not in {routes}");
        assert!(routes.contains("unreachable 10.2.0.0/16 proto 202 metric 4278198272"), "{routes}");
        assert!(run("ip -6 route show table 7202").contains("fd00:2::/48 via fe80::2 dev"));
        assert!(run("ip rule show").contains("140:\tfrom all fwmark 0xc10000 lookup main proto 202"));
        assert!(
            run(&format!("bridge fdb show dev {OVERLAY_LINK}"))
                .contains("02:c1:c0:a8:07:02 dst 192.168.7.2 self permanent")
        );
        assert_eq!(run(&format!("cat /proc/sys/net/ipv4/conf/{OVERLAY_LINK}/rp_filter")).trim(), "2");
    });
}

#[test]
fn a_new_process_finds_again_what_the_old_one_made() {
    in_namespace(|| async {
        make_node();
        converge(&mut kernel().await, &rich()).await;
        let before = everything();
        let mut second = kernel().await;

        let applied = converge(&mut second, &rich()).await;

        // The table alone is put again: nobody remembers how it was listed.
        assert_eq!(applied, 1);
        assert_eq!(everything(), before);
        converge(&mut kernel().await, &State::default()).await;
        assert!(!everything().contains("culvert"));
    });
}

#[test]
fn an_mtu_is_changed_in_place() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        converge(&mut kernel, &rich()).await;
        let before = node_facts().await.unwrap().interfaces[OVERLAY_LINK].clone();
        let mut narrower = rich();
        narrower.links.get_mut(OVERLAY_LINK).unwrap().mtu = 1350;

        let applied = converge(&mut kernel, &narrower).await;

        assert_eq!(applied, 1);
        let after = node_facts().await.unwrap().interfaces[OVERLAY_LINK].clone();
        assert_eq!(after, Interface { mtu: 1350, ..before });
    });
}

#[test]
fn another_mac_makes_the_link_and_all_on_it_anew() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        converge(&mut kernel, &rich()).await;
        let mut other = rich();
        other.links.get_mut(OVERLAY_LINK).unwrap().mac = MacAddr([2, 0xc1, 192, 168, 7, 99]);

        converge(&mut kernel, &other).await;

        assert_eq!(kernel.observe(&other).await.unwrap(), other);
        assert!(run(&format!("ip link show {OVERLAY_LINK}")).contains("02:c1:c0:a8:07:63"));
    });
}

#[test]
fn a_link_of_another_kind_under_our_name_is_replaced() {
    in_namespace(|| async {
        make_node();
        run(&format!("ip link add {OVERLAY_LINK} type veth peer name other"));
        let mut kernel = kernel().await;

        converge(&mut kernel, &rich()).await;

        assert_eq!(kernel.observe(&rich()).await.unwrap(), rich());
    });
}

#[test]
fn a_link_that_was_set_down_comes_up_with_its_routes() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        converge(&mut kernel, &rich()).await;
        run(&format!("ip link set {OVERLAY_LINK} down"));

        converge(&mut kernel, &rich()).await;
        // Only now is it known which addresses and routes went down with the link.
        converge(&mut kernel, &rich()).await;

        assert_eq!(kernel.observe(&rich()).await.unwrap(), rich());
    });
}

#[test]
fn routes_change_their_target_in_place() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        converge(&mut kernel, &rich()).await;
        let mut moved = rich();
        for (destination, next_hop) in [("10.2.0.0/16", "192.168.7.3"), ("fd00:2::/48", "fe80::3")] {
            let key = route_key(NODE_TABLE, destination, ROUTE_METRIC);
            moved.routes.insert(key, RouteTarget::Via(overlay_route(next_hop)));
        }

        let applied = converge(&mut kernel, &moved).await;

        assert_eq!(applied, 2);
        assert_eq!(kernel.observe(&moved).await.unwrap(), moved);
    });
}

#[test]
fn tampering_is_repaired() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        converge(&mut kernel, &rich()).await;
        run(&format!("nft flush chain inet {TABLE} keep_source"));
        run(&format!("nft add set inet {TABLE} stray {{ type ipv4_addr ; }}"));
        run("ip rule del priority 142");
        run("ip route del 10.3.0.0/16 table 7202 metric 100");
        run(&format!("bridge fdb del 02:c1:c0:a8:07:02 dev {OVERLAY_LINK} dst 192.168.7.2"));
        run(&format!("ip address del fd00:240::1/128 dev {OVERLAY_LINK}"));

        let applied = converge(&mut kernel, &rich()).await;

        assert_eq!(applied, 5);
        assert_eq!(kernel.observe(&rich()).await.unwrap(), rich());
        let table = run(&format!("nft list table inet {TABLE}"));
        assert!(table.contains("snat ip to ip saddr") && !table.contains("stray"), "{table}");
    });
}

#[test]
fn counters_survive_an_update_of_their_table() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        converge(&mut kernel, &rich()).await;
        let socket = std::net::UdpSocket::bind("192.168.7.1:0").unwrap();
        socket.send_to(b"not a peer", "192.168.7.1:4800").unwrap();
        assert_eq!(culvert_kernel::nft_counters(TABLE).await.unwrap()["refused"], (1, 38));
        let mut other = rich();
        other.nft.insert(TABLE.to_owned(), nft_table(&["192.168.7.4"]));

        let applied = converge(&mut kernel, &other).await;

        assert_eq!(applied, 1);
        assert_eq!(culvert_kernel::nft_counters(TABLE).await.unwrap()["refused"], (1, 38));
        assert_eq!(culvert_kernel::nft_counters("nobodys").await.unwrap(), BTreeMap::new());
    });
}

#[test]
fn a_route_on_a_missing_link_fails_alone_and_is_made_once_the_link_is_there() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        let mut desired = rich();
        let key = route_key(NODE_TABLE, "10.7.0.0/16", ROUTE_METRIC);
        let on_tun = Route { link: "culvert-wg".to_owned(), next_hop: None, preferred_source: None, mtu: Some(1400) };
        desired.routes.insert(key, RouteTarget::Via(on_tun));

        let report = kernel.converge(&desired).await.unwrap();

        let expected =
            "add route 10.7.0.0/16 metric 100 in table 7202 on culvert-wg mtu 1400: link culvert-wg is not there";
        assert_eq!(report.failed, vec![expected.to_owned()]);
        run("ip tuntap add culvert-wg mode tun");
        run("ip link set culvert-wg up");
        assert_eq!(converge(&mut kernel, &desired).await, 1);
        run("ip link del culvert-wg");
        assert_eq!(kernel.converge(&desired).await.unwrap().failed, vec![expected.to_owned()]);
    });
}

#[test]
fn a_foreign_route_under_our_key_is_left_alone() {
    in_namespace(|| async {
        make_node();
        run("ip route add 10.2.0.0/16 dev eth0 table 7202 metric 100 proto 77");
        let mut kernel = kernel().await;

        let report = kernel.converge(&rich()).await.unwrap();

        assert_eq!(report.failed.len(), 1);
        assert!(
            report.failed[0].contains("10.2.0.0/16") && report.failed[0].contains("File exists"),
            "{:?}",
            report.failed
        );
        assert!(run("ip route show table 7202").contains("10.2.0.0/16 dev eth0 proto 77"));
    });
}

#[test]
fn no_link_is_made_without_the_table_that_guards_it() {
    in_namespace(|| async {
        make_node();
        let mut kernel = kernel().await;
        let mut desired = rich();
        let table = desired.nft.get_mut(TABLE).unwrap();
        table.chains.get_mut("input").unwrap().rules.push("no such rule".to_owned());

        let report = kernel.converge(&desired).await.unwrap();

        assert!(report.failed[0].contains("syntax error"), "{:?}", report.failed);
        assert!(!run("ip link show").contains(OVERLAY_LINK));
        assert_eq!(run("nft list ruleset"), "");
        assert!(run("ip route show table 7202").contains("unreachable 10.2.0.0/16"));
    });
}

#[test]
fn a_vxlan_link_over_ipv6_is_made() {
    in_namespace(|| async {
        make_node();
        let mut kernel = Kernel::open(Owner::gateway()).await.unwrap();
        let mut desired = State::default();
        let kind = LinkKind::Vxlan { vni: own::CABLE_VNI, port: 4500, local: "fd00:7::1".parse().unwrap() };
        let mac = MacAddr([2, 0xc6, 0, 0, 0, 1]);
        desired.links.insert(own::VXLAN_LINK.to_owned(), Link { kind, mtu: 1430, mac });
        let remote = "fd00:7::2".parse().unwrap();
        desired.fdb.insert(Fdb { link: own::VXLAN_LINK.to_owned(), mac: MacAddr([2, 0xc6, 0, 0, 0, 2]), remote });

        converge(&mut kernel, &desired).await;

        assert_eq!(kernel.observe(&desired).await.unwrap(), desired);
        assert_eq!(converge(&mut kernel, &desired).await, 0);
    });
}
